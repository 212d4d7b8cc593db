//! The guest's pod and container manager, behind the agent API of Kata Containers.
//!
//! The host asks, the policy of the guest's owner decides, and [`Agent`] carries out: sandbox, network, images
//! pulled inside the guest by the digest that was decided on, containers and their processes. Whatever the host
//! sends is bounded and parsed before it is used.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod beneath;
mod cgroup;
mod console;
mod container;
mod containers;
mod copy;
mod creation;
mod devices;
mod disks;
mod fault;
mod forward;
mod guest;
mod helper;
mod id;
mod images;
mod metrics;
mod namespaces;
mod network;
mod oom;
mod orphans;
mod pause;
pub mod policy;
mod process;
mod request;
mod sandbox;
mod secrets;
mod service;
mod spec;
mod stats;
mod stream;
mod uevents;
mod user;
mod volumes;
mod watched;

pub use agent::{Agent, AgentConfig, AgentEvent, Drivers, Error};
pub use disks::{DiskError, Disks, EncryptedDisk};
pub use helper::{HELPER_ARG, run_helper};
pub use images::{ImageError, ImageProcess, Images, PulledImage, ResolvedImage};
pub use network::{Error as NetworkError, bring_up_loopback};
pub use orphans::reap_orphans;
pub use policy::Policy;
pub use secrets::{SecretError, Secrets};
