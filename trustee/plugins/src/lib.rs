//! What a key broker serves beside its resources.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]
