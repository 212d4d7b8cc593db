//! Keys in a hardware security module, through PKCS#11.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
