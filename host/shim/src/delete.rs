//! `delete`: what containerd calls where a server is gone or no longer answers.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use nix::poll::{PollFd, PollFlags, poll};
use protobuf::MessageField;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox::{Directory, SandboxName};

use crate::bootstrap::SOCKETS;
use crate::bundle::{self, Bundle};
use crate::start::SocketPath;
use crate::task::timestamp;
use crate::volumes::disks;
use crate::{Arguments, Error};

/// Ends what is left of a pod, or of nothing, and prints how it ended. May be called any number of times.
///
/// # Errors
/// [`Error::Arguments`], [`Error::File`], [`Error::Sandbox`] where the pod's machine can't be ended.
pub fn delete(arguments: &Arguments) -> Result<(), Error> {
    if arguments.id.is_empty() {
        return Err(Error::Arguments("delete needs -id".to_owned()));
    }
    let bundle = Bundle::of(&arguments.bundle)?;
    // A container of a pod has neither server nor machine of its own: its pod goes on.
    let server = bundle.read(bundle::PID).and_then(|pid| pid.trim().parse().ok());
    if let Some(pid) = server {
        end_server(pid, &arguments.id);
        SocketPath::new(SOCKETS, &arguments.address, &arguments.namespace, &arguments.id).remove();
        if let Some(path) = bundle.read(bundle::ADDRESS) {
            SocketPath::at(path.trim()).remove();
        }
        let name = SandboxName::parse(&arguments.id)?;
        disks::remove_left(&Directory::path_of(&name));
        match sandbox::is_elsewhere(&name) {
            true => clean_up_aside(arguments)?,
            false => sandbox::clean_up(&name)?,
        }
    }

    let response = DeleteResponse {
        pid: server.unwrap_or_default(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    print(&response)
}

/// Ends what is left of a pod. Waits for the adaptor of a machine elsewhere, which goes on costing until then.
///
/// # Errors
/// [`Error::Sandbox`] for what did not go away.
pub fn clean_up(arguments: &Arguments) -> Result<(), Error> {
    let name = SandboxName::parse(&arguments.id)?;
    // Away from whoever is killed for taking too long.
    let _ = rustix::process::setsid();
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sandbox::clean_up(&name) {
            // There is no event that would tell of its return.
            Err(sandbox::Error::Remote(_)) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            outcome => return Ok(outcome?),
        }
    }
}

/// Has a process of its own do it: containerd kills this one after a few seconds, and an adaptor takes a request back whose
/// sender is gone.
fn clean_up_aside(arguments: &Arguments) -> Result<(), Error> {
    let mut command = Command::new(std::env::current_exe().map_err(Error::Spawn)?);
    command.args(["-namespace", &arguments.namespace, "-id", &arguments.id, "clean-up"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(Error::Spawn)?;
    if let Some(handle) = Pid::from_raw(child.id() as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
        let _ = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], ASIDE);
    }
    match child.try_wait() {
        Ok(Some(status)) if !status.success() => Err(Error::State(format!(
            "delete: the pod's machine elsewhere can't be ended; next: run \"{} -id {} clean-up\"",
            crate::PROGRAM,
            arguments.id
        ))),
        // It ends in its own time.
        _ => Ok(()),
    }
}

/// Prints what this runtime can, as containerd 2.x asks.
///
/// # Errors
/// [`Error::File`] where standard output is closed.
pub fn info() -> Result<(), Error> {
    let version = containerd_shim_protos::types::introspection::RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    print(&RuntimeInfo { name: RUNTIME.to_owned(), version: MessageField::some(version), ..RuntimeInfo::default() })
}

fn print(message: &impl protobuf::Message) -> Result<(), Error> {
    let failed = || Error::file("answer", "standard output");
    let bytes = message.write_to_bytes().map_err(io::Error::other).map_err(failed())?;
    io::stdout().write_all(&bytes).map_err(failed())
}

/// Kills the pod's server if it is still there, and waits until it is gone.
fn end_server(pid: u32, id: &str) {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(handle) = pidfd_open(process, PidfdFlags::empty()) else { return };
    // The number may be somebody else's by now; the handle is of whoever has it from here on.
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    if !words.windows(2).any(|pair| pair == [b"-id", id.as_bytes()]) {
        return;
    }
    if pidfd_send_signal(&handle, Signal::KILL).is_ok() {
        let _ = poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], END);
    }
}

const RUNTIME: &str = "io.containerd.cocoon.v2";
/// 128 and SIGKILL.
const KILLED: u32 = 137;
/// Milliseconds in which a killed server is gone.
const END: u16 = 5000;
/// Milliseconds for an adaptor that is quick. containerd waits 5 s.
const ASIDE: u16 = 2000;
/// For an adaptor that is away to return.
const PATIENCE: Duration = Duration::from_secs(3600);
const PAUSE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_killed_and_another_s_process_is_not() {
        let mut sleeper =
            Command::new("sh").args(["-c", "read line", "-id", "pod-7"]).stdin(Stdio::piped()).spawn().unwrap();
        end_server(sleeper.id(), "pod-8");
        assert!(sleeper.try_wait().unwrap().is_none());
        end_server(sleeper.id(), "pod-7");
        assert!(!sleeper.wait().unwrap().success());
    }
}
