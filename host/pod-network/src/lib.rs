//! A pod's network on the node, handed to the pod's machine: each interface of the namespace becomes one of the guest.
//!
//! What arrives at an interface of the namespace is redirected to a tap device and the reverse, before the node's own
//! network stack sees it; or a macvtap link takes it. The guest has the interface's address, so the rest of the cluster
//! sees no difference. Taps end with whoever holds them. What stays is a queueing discipline, or the macvtap link, and
//! [`Namespace::disconnect`] takes that away.
//!
//! Programs of the node that connect to the pod's 127.0.0.1, as containerd does to forward a port, stay in the namespace:
//! [`Namespace::loopback`] takes what they say.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bpf;
mod error;
mod loopback;
mod macvtap;
mod namespace;
mod netlink;
mod survey;
mod tap;

pub use error::Error;
pub use loopback::{Caller, Loopback};
pub use namespace::{Connection, Link, Model, Namespace};
