//! What the programs `cocoon` and `kbs-client` share with tests: work on images that needs no guest.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod image;
