//! Workload API: what a container sees at `http://127.0.0.1:8006`, its own pod's resources above all.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod resources;
mod routes;
mod server;

pub use resources::{ResourceError, Resources};
pub use server::{Error, WorkloadApi};
