//! Attestation agent: proves to the key broker what this guest is, holds the token, and fetches resources with it.
//!
//! ```text
//! service (ttrpc) ─┐
//! data-hub ────────┴─> agent ─> tokens (one handshake at a time) ─> rcar ─> kbs (HTTP) ─> tls
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod as_token;
mod config;
pub mod endpoint;
mod error;
mod kbs;
mod rcar;
mod retry;
mod service;
mod tls;
mod tokens;

pub use agent::AttestationAgent;
pub use config::{AaConfig, AsConfig, ConfigError, EventLogConfig, KbsConfig, LogConfig, TokenConfigs};
pub use error::{Error, Stage};
pub use kbs::Kbs;
pub use service::{ADDRESS, serve};
pub use tokens::{Clock, Token};
