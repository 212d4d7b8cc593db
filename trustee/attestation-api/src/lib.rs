//! The attestation service and the reference value provider over gRPC and REST, and clients of both.
//!
//! The interfaces are upstream's, so that each side can be replaced by its upstream counterpart. Neither has a notion
//! of who asks: whoever reaches them may set policies and register reference values. Serve them where only the key
//! broker can, or demand client certificates of all connections; the clients here can present one.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attestation_client;
mod connections;
mod error;
mod evaluation;
mod grpc;
mod health;
mod intel;
mod reference_client;
mod rest;
mod well_known;

pub use attestation_client::AttestationClient;
pub use connections::ClientSettings;
pub use error::Error;
pub use grpc::{grpc_attestation_service, reference_value_provider};
pub use health::{Ready, Serving};
pub use intel::{IntelSettings, IntelTrustAuthority};
pub use reference_client::ReferenceValueClient;
pub use rest::rest_attestation_service;

/// The longest request that is read, in bytes; a message of evidence is some hundred kilobytes.
pub const MAX_REQUEST: usize = 10 * 1024 * 1024;
