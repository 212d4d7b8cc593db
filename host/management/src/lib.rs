//! What a pod's owner, a shim or `cocoon run`, tells of it on the node: while it runs by a socket in its folder, and after it
//! has failed by a record.
//!
//! ```text
//! /run/cocoon/<pod>/pod.json             whose pod it is
//! /run/cocoon/<pod>/shim-monitor.sock    HTTP/1.1, for root alone: /state, /console, /output, /metrics, /agent-url
//! /run/cocoon/.failures/                 the last 32 failures on this node
//! ```
//!
//! Nothing of it is secret from the node: a guest's console and what its policy lets out are the node's already.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod costs;
mod failures;
mod identity;
mod output;
mod server;
mod state;

pub use costs::{of_guest, process};
pub use failures::{Failure, Failures};
pub use identity::Identity;
pub use output::Output;
pub use server::{Answer, Owner, Request, SOCKET, serve};
pub use state::{ContainerState, Moment, State, Trouble, now};
