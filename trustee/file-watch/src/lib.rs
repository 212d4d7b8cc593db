//! Tells when files have changed.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
