//! What an operator does on a node and sees of it: install, upgrade, go back, uninstall, status, check, and its pods.
//!
//! ```text
//! /opt/cocoon/versions/<version>          version, SHA256SUMS
//! /opt/cocoon/versions/<version>/bin      cocoon, containerd-shim-cocoon-v2, cocoon-snapshotter
//! /opt/cocoon/versions/<version>/share    guest-image, firmware, classes/<class>/configuration.toml
//! /opt/cocoon/current                     link to the version that new pods get
//! /opt/cocoon/state.json                  the version before it, and what was changed in containerd's configuration
//! /etc/cocoon/<class>.d/*.toml            the operator's own settings, which stay
//! ```
//!
//! A version is copied aside and renamed when it is whole, and never changed. Everything else that an operation changes is a
//! small file or a link, and goes through the *journal*: after a crash the next operation takes back what was done. What is
//! to be written into containerd's configuration is first read by the node's own containerd, and compared with what it
//! reads now.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod class;
mod configuration;
mod containerd;
mod distribution;
mod error;
mod journal;
mod node;
mod pods;
mod processes;
mod release;
mod root;
mod state;
mod status;
mod systemd;
#[cfg(test)]
mod tests;
mod versions;

pub use check::{Finding, Verdict};
pub use class::{CLASSES, Class};
pub use error::Error;
pub use node::{LeftOut, Node, Outcome};
pub use pods::{Owner, Pod};
pub use release::Release;
pub use status::{Handlers, Status, VersionStatus};
