//! Makes processes that are children of this process' parent. Exists for the unsafe calls that this takes.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use rustix::process::Pid;

/// That this process had one thread when it was looked at. A copy of a process with more could find locks that nobody
/// will ever release.
pub(super) struct Alone(());

/// Which of the two processes this is that [`Alone::fork`] returns in.
pub(super) enum Forked {
    /// The one that called it. The new one has this number.
    Parent(Pid),
    /// The new one.
    Child,
}

impl Alone {
    /// Looks. Whoever has the value must not start a thread.
    pub(super) fn check() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            _ => Err(io::Error::other("the process that forks has threads")),
        }
    }

    /// Makes a copy of this process as a child of its parent: in the control group of that folder, or in this one's; on
    /// demand as the first process of a namespace.
    pub(super) fn fork(&self, group: Option<BorrowedFd<'_>>, is_first: bool) -> io::Result<Forked> {
        let into = if group.is_some() { CLONE_INTO_CGROUP } else { 0 };
        let apart = if is_first { libc::CLONE_NEWPID as u64 } else { 0 };
        let arguments = Arguments {
            // The signal at its end is the one that this process' parent gets of this process itself.
            flags: libc::CLONE_PARENT as u64 | into | apart,
            group: group.map_or(0, |group| group.as_raw_fd() as u64),
            ..Arguments::default()
        };
        // SAFETY: the kernel reads as many bytes from the pointer as it is told, and keeps none of it. Without CLONE_VM
        // the new process has memory of its own, in which this one thread goes on as after fork.
        match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) } {
            0 => Ok(Forked::Child),
            number => {
                let pid = i32::try_from(number).ok().filter(|number| *number > 0).and_then(Pid::from_raw);
                pid.map(Forked::Parent).ok_or_else(io::Error::last_os_error)
            }
        }
    }
}

/// Lets this process end when it writes to a pipe that nobody reads, as programs expect it: Rust's own do not.
pub(super) fn end_on_broken_pipes() {
    // SAFETY: the default action is no handler, so nothing runs that could be unsafe in one.
    let _ = unsafe { nix::sys::signal::signal(nix::sys::signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) };
}

/// `struct clone_args` of the kernel, as of version 2 of it (Linux 5.7).
#[derive(Default)]
#[repr(C)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    group: u64,
}

/// Not in every libc.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
