//! Workload API: what a container sees at `http://127.0.0.1:8006`, its own pod's resources above all.
//!
//! ```text
//! program ─> clients (ttrpc) ─┐
//! guestd ─────────────────────┴─> server ─> api ─> routes ─> openapi
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod api;
mod backend;
mod clients;
mod openapi;
mod peer;
pub mod program;
mod routes;
mod server;

pub use api::Api;
pub use backend::{Attestation, Failure, Measured, Resources, Tees};
pub use openapi::openapi;
pub use peer::{Caller, Guard};
pub use routes::{Features, UnknownFeatures};
pub use server::{Error, WorkloadApi};
