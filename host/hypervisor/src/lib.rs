//! One pod VM in QEMU: its command line, its process, its console and its monitor.
//!
//! [`VmConfig`] says what the VM is made of and turns into a command line; [`Vm::launch`] starts it and owns it until
//! it is dropped; [`acceleration::probe`] finds out whether KVM really runs guests here. Nothing in this crate knows
//! what runs inside the guest.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod acceleration;
mod config;
mod console;
mod error;
mod process;
mod qmp;
mod vm;

pub use acceleration::Acceleration;
pub use config::{Disk, Network, USER_MAC, VmConfig, Vsock, qboot};
pub use console::{Console, Line, WaitError};
pub use error::{Error, ExitReason};
pub use process::QEMU;
pub use qmp::{Qmp, QmpError};
pub use vm::Vm;
