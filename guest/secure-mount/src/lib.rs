//! Volumes for containers: LUKS2 with and without integrity, opened, made, mounted and released.
//!
//! | `sourceType` | key | what happens |
//! |---|---|---|
//! | `empty` | none | encrypted under a random key that nobody keeps: nothing on the disk outlives the pod |
//! | `empty` | one | formatted with a LUKS2 header on the disk, to be opened as `encrypted` later |
//! | `encrypted` | one | the header is checked ([`wire::luks2`]), the volume opened, its content used as it is |
//!
//! The header of a new volume is written last, once its file system is mounted: a crash before that leaves a disk that
//! is still empty, and one after it a volume that is whole. A disk with a header is never formatted under a key, so that
//! nobody loses data by a wrong `sourceType`.
//!
//! With `dataIntegrity` each sector has a tag, and what the host has changed reads as EIO. Sectors that were never written
//! have none either: a file system is made so that the kernel writes each block before it reads it, and a raw device is
//! written once as a whole.
//! What a host that writes the disk can still do stands in [`wire::luks2`].
//!
//! Only `luks2` and `ext4` are there. How a file system comes without time and space: [`ext4`].

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block_device;
mod config;
mod error;
mod flags;
mod mkfs;
mod mounts;
mod place;
mod request;
mod volume;

pub use config::Config;
pub use error::Error;
pub use mounts::SecureMounts;
pub use request::MountRequest;
