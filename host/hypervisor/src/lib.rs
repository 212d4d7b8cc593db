//! One pod VM in QEMU: its command line, its process, its console and its monitor.
//!
//! [`VmConfig`] says what the VM is made of and turns into a command line; [`Vm::launch`] starts it and owns it until
//! it is dropped; [`acceleration::probe`] finds out whether KVM really runs guests here. Nothing in this crate knows
//! what runs inside the guest. [`remote`] has a machine made elsewhere instead, by an adaptor.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod acceleration;
mod config;
mod confinement;
mod console;
mod error;
pub mod hotplug;
mod process;
mod qmp;
pub mod remote;
mod tee;
mod vm;

pub use acceleration::Acceleration;
pub use config::{Disk, Network, Tap, USER_MAC, VmConfig, Vsock, qboot};
pub use confinement::{Confinement, User};
pub use console::{Console, Line, WaitError};
pub use error::{Error, ExitReason};
pub use hotplug::{AttachedDisk, DiskConfig};
pub use process::QEMU;
pub use qmp::{Qmp, QmpError};
pub use tee::{QuoteService, Tee};
pub use vm::Vm;
