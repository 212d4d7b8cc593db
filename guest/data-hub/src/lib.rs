//! Data hub: resources of the key broker, keys of encrypted layers, and images, for the guest's other parts.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod credentials;
mod error;
mod hub;
mod secrets;
mod service;

pub use config::{CdhConfig, ConfigError, Credential, KbcConfig, LogConfig};
pub use error::Error;
pub use hub::DataHub;
pub use image::{Pulled, Resolved};
pub use service::serve;
