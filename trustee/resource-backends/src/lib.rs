//! Where resources may lie besides the own store.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
