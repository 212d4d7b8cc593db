//! Image layers that are EROFS images: mounted as they are, through a hash tree where a manifest binds one.
//!
//! Blocking, each call for some milliseconds. Needs CAP_SYS_ADMIN, the modules erofs and loop, and dm-verity for hash
//! trees.
//!
//! Source: containerd's EROFS layers, media type `application/vnd.erofs.layer.v1`, and its annotations
//! `dev.containerd.erofs.dmverity.*`.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod loop_device;
mod mount;
mod verity;

#[cfg(test)]
mod tests;

pub use mount::{Error, MountedImage, mount};
pub use verity::{VerityError, VerityRoot};
