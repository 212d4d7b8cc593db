//! Verifies JWTs of administrators and of attestation services against keys that are reloaded while they are used.
//!
//! A key decides which algorithms are good for it; a token can only agree. Keys come from files, which are watched,
//! and from HTTPS, whence they are fetched again when they are due and when a token names one that is not known.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin;
mod attestation;
mod chain;
mod claims;
mod error;
mod http;
mod jwk;
mod key;
mod key_set;
mod live;
mod place;
#[cfg(test)]
mod tests;
mod token;
mod version_one;

pub use admin::{AdminTokens, IdentityProvider, KeySource};
pub use attestation::{AttestationTokens, AttestationTrust};
pub use error::{Error, Kind};
pub use http::Http;
