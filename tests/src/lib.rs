//! The laboratory for end-to-end cases: it owns Trustees, registries and pods, and ends them when it is dropped.
//!
//! A failure here is a failure of the case, so helpers panic with what they know instead of returning errors.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

pub mod guest;
pub mod load;
pub mod node;

mod adaptor;
mod balancer;
mod bare;
mod image;
mod lab;
mod pod;
mod process;
mod registry;
mod services;
mod trustee;

pub use adaptor::Adaptor;
pub use balancer::Balancer;
pub use bare::BareMachine;
pub use image::{Encrypted, Image};
pub use lab::{Lab, over_http, set};
pub use newer_debian::NewerDebian;
pub use pod::{InitDataFiles, Pod, agent_policy, example_policy};
pub use process::{Daemon, Finished, run, try_run};
pub use registry::Registry;
pub use services::Services;
pub use trustee::{Client, Trustee};
