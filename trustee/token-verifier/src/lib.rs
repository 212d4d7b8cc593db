//! Verifies JWTs of administrators and of attestation services against keys that are reloaded.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
