//! Images inside the guest: pull from the registry, verify, decrypt, unpack, mount.
//!
//! A layer never touches a disk before it is unpacked: its bytes stream from the registry through hash, decryption,
//! inflation and the archive reader into the guest's work directory, in memory that does not grow with the image. A
//! layer counts only once the digest of its blob, its HMAC if it is encrypted, and its diff id have all been checked;
//! until then, whatever it unpacked is removed again on any failure.
//!
//! ```text
//! registry ─ Bytes ─▶ blob digest ─▶ AES-CTR + HMAC ─▶ gzip | zstd ─▶ diff id ─▶ tar ─▶ layers/N ─▶ overlay
//!  (async)   channel  └───────── one thread a layer ────────────────────────┘ └── another ──┘
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
mod auth;
mod config;
mod digest;
mod documents;
mod encryption;
mod error;
mod fetch;
mod handoff;
mod header;
mod layer_dir;
mod manifest;
mod media;
mod node_cache;
mod overlay;
mod pax;
mod pipeline;
mod platform;
mod puller;
mod registries;
mod registry;
mod root;
mod signatures;
mod sparse;
mod store;
mod unpack;
mod zstd;

#[cfg(test)]
mod tests;

pub use config::{ImageConfig, ProxyConfig};
pub use documents::{DocumentError, Documents};
pub use encryption::{KeyError, LayerKeys};
pub use error::{Error, Stage};
pub use manifest::Resolved;
pub use node_cache::NodeAddress;
pub use oci_spec::image::ImageConfiguration;
pub use puller::{Pulled, Puller, Unpacked};
pub use registries::RegistryConfig;
pub use registry::RegistryError;
pub use registry::error::Attempt;
