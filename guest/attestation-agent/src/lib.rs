//! Attestation agent: proves to the key broker what this guest is, holds the token, and fetches resources with it.
//!
//! ```text
//! program ─> service (ttrpc, gRPC) ─┐               ┌─> tokens (one handshake at a time) ─> rcar ─> kbs (HTTP) ─> tls
//! data-hub ─────────────────────────┴─> agent ──────┴─> platform ─> event_log
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod as_token;
mod config;
pub mod endpoint;
mod error;
mod event_log;
mod kbs;
mod passport;
mod platform;
pub mod process;
pub mod program;
mod rcar;
mod resource;
mod retry;
mod service;
mod tls;
mod tokens;

pub use agent::AttestationAgent;
pub use config::{AaConfig, AsConfig, ConfigError, EventLogConfig, KbsConfig, LogConfig, TokenConfigs};
pub use error::{Error, Stage};
pub use event_log::Error as EventLogError;
pub use kbs::Kbs;
pub use passport::Passport;
pub use platform::Measured;
pub use service::{ADDRESS, GRPC_ADDRESS, serve, serve_grpc};
pub use tokens::{Clock, Token};
