//! The contracts between Cocoon's trust domains: what crosses a boundary is parsed here into types.
//!
//! Nothing in this crate opens a file or a socket, decides a policy or needs an async runtime. A parser here
//! never panics, and never allocates more than its input justifies.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod blob;
pub mod event_log;
pub mod evidence;
pub mod image_reference;
pub mod initdata;
pub mod jwe;
pub mod key_provider;
pub mod layer;
pub mod luks2;
pub mod metrics;
pub mod milestone;
pub mod named_user;
pub mod pkcs12;
pub mod port_forward;
pub mod rcar;
pub mod reference_value;
pub mod resource;
pub mod sealed_secret;
pub mod token;

mod encoding;
