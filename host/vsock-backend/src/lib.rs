//! The host's end of a pod VM's vsock, inside the process that runs the VM.
//!
//! QEMU's `vhost-user-vsock-pci` connects to [`BackendConfig::socket`]; the host sees *hybrid vsock* as Firecracker
//! and Cloud Hypervisor offer it:
//!
//! - host to guest: connect to the unix socket `<uds>`, write `CONNECT <port>\n`; the answer is `OK <host port>\n`
//!   once the guest has accepted, or the end of the stream;
//! - guest to host: a connection to CID 2, port P, arrives at the unix socket `<uds>_<P>`, or is reset if nobody
//!   listens there.
//!
//! From the outside in: [`Backend`] owns sockets and threads, `device` moves packets between virtqueues and the
//! `muxer`, which owns the connections; `connection` is the state machine and `credit` its flow control. The guest is
//! not trusted: whatever it sends costs it a connection at most, and what it can make the host hold is bounded
//! (1024 connections of 128 KiB).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backend;
mod connection;
mod credit;
mod device;
mod host_socket;
mod muxer;
mod packet;

pub use backend::{Backend, BackendConfig, Error};
