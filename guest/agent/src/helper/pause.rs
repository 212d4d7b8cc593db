//! The pod's own process: it holds the pod together and does nothing.
//!
//! Nothing of the host's asking is in it: not an image, a program, an environment, a user or a mount. It is a fork of the
//! helper and never becomes a program, so it needs no file.

use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{Gid, Uid, WaitOptions, chdir, pivot_root, setsid, wait};
use rustix::thread::{set_name, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Gives up whatever this process can reach and may do: of all files it sees `root`, an empty folder.
///
/// # Errors
/// Which step failed, and why.
pub(super) fn retire(root: &Path) -> Result<(), String> {
    let blocked = awaited().thread_block().map_err(io::Error::from);
    blocked.map_err(|e| format!("its signals can't be awaited: {e}"))?;
    see_only(root).map_err(|e| format!("its root can't be changed: {e}"))?;
    become_nobody().map_err(|e| format!("its user can't be changed: {e}"))
}

/// Waits for SIGTERM or SIGINT, and collects the processes that a shared process namespace leaves to its first one.
/// Returns the exit code.
pub(super) fn pause() -> u8 {
    loop {
        match awaited().wait() {
            Ok(Signal::SIGCHLD) => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            Ok(_) => return 0,
            Err(_) => return FAILED,
        }
    }
}

fn awaited() -> SigSet {
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        awaited.add(signal);
    }
    awaited
}

/// Containers that share processes could look through this one's eyes.
fn see_only(root: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    mount_bind(root, root)?;
    let nothing_runs = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_remount(root, MountFlags::BIND | MountFlags::RDONLY | nothing_runs, "")?;
    chdir(root)?;
    pivot_root(".", ".")?;
    // The old root lies over the new one.
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn become_nobody() -> io::Result<()> {
    setsid()?;
    set_name(c"pause")?;
    set_no_new_privs(true)?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    // With root its capabilities go.
    Ok(set_thread_res_uid(uid, uid, uid)?)
}

/// As the image of Kubernetes' own pause container has it.
const NOBODY: u32 = 65535;
const FAILED: u8 = 1;
