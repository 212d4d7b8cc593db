//! Registers descriptors with the runtime. Exists for the one unsafe call that this takes.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor whose readiness can be awaited. Must be called inside the runtime.
pub(crate) fn watched(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, which the `AsyncFd` that takes it over
    // does only after it has deregistered the descriptor.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(Into::into)
}
