//! What the programs `cocoon` and `kbs-client` share with tests: work on images, keys and secrets that needs no guest.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod image;
pub mod kek;
pub mod key_provider;
pub mod secret;
pub mod signing_key;
pub mod trustee;

mod pem;
