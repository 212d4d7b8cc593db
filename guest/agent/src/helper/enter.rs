//! Becomes a process of a container that runs: what libcontainer does for one, in few steps and without files.
//!
//! The process was born in the container's control group. Here it joins the namespaces and gives up whatever the container
//! does not have. Only then it makes another one, which is born in the container's namespace of processes and becomes the
//! program: programs of the container that may trace others find nothing there that they don't have. Root file system,
//! masked and read-only paths are the mount namespace's.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{Process, User};
use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::execve;
use rustix::fs::{FileType, fchown, fstat, makedev};
use rustix::io::Errno as Cause;
use rustix::process::{Gid, Uid, chdir, getcwd, ioctl_tiocsctty, setsid};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::thread::{
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::fork::{self, Alone, Forked};
use crate::spec;

/// Makes the process that `text` describes, an OCI process in JSON, in the container of the process `first`. Returns its
/// number, and in that process only where it does not become its program.
///
/// Standard streams are those that it has, or a terminal of the container's whose master is sent to `console`.
///
/// # Errors
/// Which step failed, and why. The process is fit for nothing any more then.
pub(super) fn enter(alone: &Alone, first: OwnedFd, console: Option<OwnedFd>, text: &[u8]) -> Result<i32, String> {
    let process: Process = step("its order", serde_json::from_slice(text))?;
    let kernel = create_syscall();
    // While the guest's own /proc is in sight.
    if let Some(score) = process.oom_score_adj() {
        step("its rank when memory ends", std::fs::write("/proc/self/oom_score_adj", score.to_string()))?;
    }
    for limit in process.rlimits().iter().flatten() {
        step("a resource limit", kernel.set_rlimit(limit))?;
    }
    let shared = CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWPID;
    let namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP | shared;
    step("the container's namespaces", setns(&first, namespaces))?;
    drop(first);
    let has_terminal = console.is_some();
    if let Some(console) = console {
        step("its terminal", libcontainer::tty::setup_console(&*kernel, console.into_raw_fd(), false))?;
    }
    if process.no_new_privileges() == Some(true) {
        step("its lack of new privileges", set_no_new_privs(true))?;
    }

    // As root first, who may enter any folder, and else as the user, who may enter some that root may not.
    let entered = chdir(process.cwd());
    if !matches!(entered, Err(Cause::PERM)) {
        step("its working directory", entered)?;
    }
    step("its streams", own_streams(process.user().uid()))?;
    step("its user", become_user(process.user()))?;
    step("what else is open", kernel.close_range(0))?;
    step("its capabilities", reset_effective(&*kernel))?;
    if let Some(capabilities) = process.capabilities() {
        step("its capabilities", drop_privileges(capabilities, &*kernel))?;
    }
    if entered.is_err() {
        step("its working directory", chdir(process.cwd()))?;
    }
    let place = step("its working directory", getcwd(Vec::new()))?;
    if place.as_bytes().first() != Some(&b'/') {
        return Err("its working directory is not in the container".to_owned());
    }

    if let Forked::Parent(pid) = step("its process", alone.fork(None, false))? {
        return Ok(pid.as_raw_nonzero().get());
    }
    step("its session", setsid())?;
    if has_terminal {
        step("its terminal", ioctl_tiocsctty(stdin()))?;
    }
    fork::end_on_broken_pipes();
    let environment = environment(&process);
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or_default().to_owned();
    match become_program(process.args().as_deref().unwrap_or_default(), &path, environment)? {}
}

/// Lets the user open the standard streams once more, as `/dev/stdout` does: pipes and terminals are their maker's alone.
fn own_streams(uid: u32) -> io::Result<()> {
    for stream in [stdin(), stdout(), stderr()] {
        let found = fstat(stream)?;
        let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
        // Everybody may open /dev/null, and it is everybody's.
        if (is_device && found.st_rdev == makedev(1, 3)) || found.st_uid == uid {
            continue;
        }
        match fchown(stream, Some(Uid::from_raw(uid)), None) {
            Err(Cause::PERM | Cause::ROFS | Cause::INVAL) => {}
            result => result?,
        }
    }
    Ok(())
}

fn become_user(user: &User) -> io::Result<()> {
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    // The sets are cut to what the container has at the end, as one step that takes capabilities itself.
    set_keep_capabilities(true)?;
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)?;
    reset_effective(&*create_syscall()).map_err(io::Error::other)?;
    Ok(set_keep_capabilities(false)?)
}

/// The process' variables, the last of each name, with a home folder in any case, as the container's first process has it.
fn environment(process: &Process) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut variables: Vec<String> = Vec::new();
    for entry in process.env().iter().flatten() {
        variables.retain(|other| name(other) != name(entry));
        variables.push(entry.clone());
    }
    spec::with_home(variables, Path::new("/"), process.user().uid())
}

/// Becomes the program of that name: at its path, or the first one of the search path that runs.
fn become_program(args: &[String], path: &str, environment: Vec<String>) -> Result<Infallible, String> {
    let name = args.first().ok_or_else(|| "there is no program to run".to_owned())?;
    let failed = |cause: Errno| format!("program {name:?} can't be run: {}", io::Error::from(cause));
    let text = |text: String| CString::new(text).map_err(|_| failed(Errno::EINVAL));
    let candidates: Vec<String> = match name.contains('/') {
        true => vec![name.clone()],
        false => {
            path.split(':').map(|folder| format!("{}/{name}", if folder.is_empty() { "." } else { folder })).collect()
        }
    };
    let args = args.iter().cloned().map(text).collect::<Result<Vec<_>, _>>()?;
    let environment = environment.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let mut cause = Errno::ENOENT;
    for candidate in candidates {
        let Err(error) = execve(&text(candidate)?, &args, &environment);
        match error {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another one of that name may be for all to run.
            Errno::EACCES => cause = error,
            _ => return Err(failed(error)),
        }
    }
    Err(failed(cause))
}

/// Names the step that failed.
fn step<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|e| format!("{what} can't be had: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(env: &[&str]) -> Process {
        let process = serde_json::json!({"user": {"uid": 4_000_000, "gid": 0}, "args": ["x"], "env": env, "cwd": "/"});
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn the_last_variable_of_a_name_counts_and_there_is_a_home() {
        assert_eq!(environment(&process(&["A=1", "B=2", "A=3", "HOME=/h"])), ["B=2", "A=3", "HOME=/h"]);
        assert_eq!(environment(&process(&["A=1"])), ["A=1", "HOME=/"], "such a user is in no /etc/passwd");
        let mut root = process(&["HOME="]);
        root.set_user(serde_json::from_str(r#"{"uid": 0, "gid": 0}"#).unwrap());
        assert_eq!(environment(&root), ["HOME=/root"]);
    }

    #[test]
    fn what_is_no_program_is_named() {
        let run = |args: &[&str], path: &str| {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            become_program(&args, path, Vec::new()).unwrap_err()
        };
        assert!(run(&["/no/such"], "/bin").contains("\"/no/such\" can't be run: No such file"));
        assert!(run(&["no-such"], "/bin:/etc/passwd:").contains("No such file"));
        assert!(run(&["passwd"], "/etc:/none").contains("Permission denied"));
        assert!(run(&[], "").contains("no program"));
        assert!(run(&["a\0b"], "/bin").contains("Invalid argument"));
    }
}
