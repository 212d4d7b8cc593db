//! Data hub: resources of the key broker, sealed secrets, keys of encrypted layers, volumes and images, for the guest's
//! other parts.
//!
//! ```text
//! program ─> service (ttrpc, gRPC) ─┐           ┌─> secrets ─┬─> broker (attestation agent here or there, or files)
//! guestd ───────────────────────────┴─> hub ────┤            ├─> anchors (who may seal)
//!                                               │            └─> kms
//!                                               ├─> image
//!                                               └─> secure-mount
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod anchors;
mod broker;
mod config;
mod credentials;
mod error;
mod hub;
mod offline;
pub mod program;
mod secrets;
mod service;
mod surroundings;

pub use config::{AaConfig, CdhConfig, ConfigError, Credential, KbcConfig, LogConfig, Places, SealedSecretConfig};
pub use error::Error;
pub use hub::DataHub;
pub use image::{NodeAddress, Pulled, Resolved};
pub use service::serve;
