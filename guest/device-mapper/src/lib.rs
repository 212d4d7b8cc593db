//! Device-mapper targets by ioctl: dm-crypt, dm-integrity and dm-verity, without a C library.
//!
//! ```no_run
//! use device_mapper::{Mapping, Target, Verity};
//!
//! let layer = Verity {
//!     data_device: "/dev/vdb".into(),
//!     hash_device: "/dev/vdb".into(),
//!     data_block_size: 4096,
//!     hash_block_size: 4096,
//!     data_blocks: 1024,
//!     hash_start_block: 1024,
//!     root_hash: [0; 32],
//!     salt: Vec::new(),
//! };
//! let mapping = Mapping::open("layer-1", &[Target::Verity(layer)], true)?;
//! println!("{}", mapping.path().display());
//! # Ok::<(), device_mapper::Error>(())
//! ```
//!
//! Blocking, each call for about a millisecond. Needs CAP_SYS_ADMIN, the modules of the targets, and a devtmpfs on `/dev`.
//!
//! Source: Linux, include/uapi/linux/dm-ioctl.h and Documentation/admin-guide/device-mapper.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod control;
mod error;
mod mapping;
mod message;
mod target;

pub use error::Error;
pub use mapping::Mapping;
pub use target::{Cipher, Crypt, Integrity, IntegrityMode, Target, Verity};

/// What the kernel counts devices and tables in, whatever a device's own block size is.
pub const SECTOR: u64 = 512;
