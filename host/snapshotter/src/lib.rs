//! The node's part in pulling images that only guests unpack: a snapshotter for containerd and a cache of blobs.
//!
//! containerd asks a *snapshotter* where a layer is to be unpacked. This one answers that every layer is there already,
//! so that containerd neither fetches nor unpacks it, and hands a container a mount that tells the shim to have the image
//! pulled inside the guest. While containerd waits for that answer, the image's blobs are downloaded, as they are and
//! once for all pods, into a *cache*, from which guests take them by digest over vsock.
//!
//! Nothing here is trusted: a guest checks every byte that it gets, and pulls from the registry what it doesn't get.
//!
//! ```text
//! containerd ─ gRPC ─▶ service ─▶ prefetch ─▶ registry ─▶ cache ◀─ server ◀─ HTTP over vsock ─ guest
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cache;
mod config;
mod credentials;
mod daemon;
mod hosts;
mod names;
mod prefetch;
mod registry;
mod server;
mod service;
mod snapshots;
mod unpacking;
mod volume;

#[cfg(test)]
mod tests;

pub use cache::{Cache, Error as CacheError};
pub use config::{Config, Error as ConfigError};
pub use daemon::{Daemon, Error};

/// containerd's services, generated from `proto/`.
#[allow(clippy::all, clippy::pedantic, dead_code, missing_docs)]
mod proto {
    pub(crate) mod containerd {
        pub(crate) mod types {
            tonic::include_proto!("containerd.types");
        }
        pub(crate) mod services {
            pub(crate) mod content {
                pub(crate) mod v1 {
                    tonic::include_proto!("containerd.services.content.v1");
                }
            }
            pub(crate) mod snapshots {
                pub(crate) mod v1 {
                    tonic::include_proto!("containerd.services.snapshots.v1");
                }
            }
        }
    }
}
