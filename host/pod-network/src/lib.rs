//! A pod's network on the node, handed to the pod's machine: each interface of the namespace becomes one of the guest.
//!
//! What arrives at an interface of the namespace is redirected to a tap device and the reverse, before the node's own
//! network stack sees it. The guest has the interface's address, so the rest of the cluster sees no difference. The
//! taps end with whoever holds them; nothing else stays but a queueing discipline, which
//! [`Namespace::disconnect`] takes away.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod namespace;
mod netlink;
mod survey;
mod tap;

pub use error::Error;
pub use namespace::{Connection, Link, Namespace};
