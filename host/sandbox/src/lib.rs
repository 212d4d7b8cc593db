//! One pod's virtual machine on an untrusted host: its folder, its initdata disk, its network, its agent.
//!
//! Nothing here is trusted by the guest. What the guest lets this crate do is up to the policy in its initdata.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod agent;
mod cgroup;
mod channel;
mod config;
mod container;
mod directory;
mod error;
mod footprint;
mod guest;
mod life;
mod machine;
mod port;
mod remote;
pub mod sizing;
mod timeline;
mod user;

pub use agent::Agent;
pub use channel::agent_url;
pub use config::{GuestFiles, InitDataDisk, Opened, PodNetwork, SandboxConfig};
pub use container::{Container, ContainerConfig, Execution, Stream, User};
pub use directory::{Directory, SandboxName};
pub use error::Error;
pub use footprint::{clean_up, is_elsewhere};
pub use hypervisor::remote::{Adaptor, RemoteVmConfig};
pub use hypervisor::{AttachedDisk, Console, DiskConfig, ExitReason, QuoteService, Tee};
pub use life::Sandbox;
pub use machine::End;
pub use port::connect_port;
pub use remote::RemoteMachine;
pub use timeline::{Event, Timeline};
