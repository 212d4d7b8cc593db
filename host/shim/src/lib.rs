//! containerd's shim for pods in confidential virtual machines.
//!
//! containerd starts `containerd-shim-cocoon-v2 start` for each pod. That starts a server in a process of its own, which
//! boots the pod's machine with the `sandbox` crate and turns containerd's task API into requests to the guest's agent. One
//! process serves all containers of a pod.
//!
//! From the outside in: `args`, `bootstrap`, `start`, `delete` and `serve` are the program; `task`, `sandbox_api` and
//! `management` are what it serves; `shim` is the process' one pod, `pod` what happens to it; `create` makes a container out
//! of `spec`, `volumes`, `copy` and `image`; `process` and `io` run it; `guest` and `machine` are the pod's other side.
//!
//! Nothing here is trusted by the guest: what the host may do there is up to the policy in the pod's initdata.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod annotations;
mod args;
mod bootstrap;
mod bundle;
mod config;
mod container;
mod copy;
mod create;
mod delete;
mod direct_volumes;
mod error;
mod events;
mod forward;
mod guest;
mod health;
mod image;
mod io;
mod journal;
mod kind;
mod log;
mod logger;
mod machine;
mod management;
mod metrics;
mod phase;
mod pod;
mod pod_config;
mod process;
mod remote;
mod request;
mod sandbox_api;
mod serve;
mod shim;
mod spec;
mod start;
mod stats;
mod task;
#[cfg(test)]
mod tests;
mod users;
mod volumes;

pub use args::{Action, Arguments, USAGE};
pub use config::Config;
pub use delete::{clean_up, delete, info};
pub use error::Error;
pub use kind::Kind;
pub use remote::Remote;
pub use serve::serve;
pub use spec::Spec;
pub use start::start;

/// The name of the program.
pub const PROGRAM: &str = "containerd-shim-cocoon-v2";
