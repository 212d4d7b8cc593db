//! `delete`: what containerd calls where a server is gone or no longer answers.

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use nix::poll::{PollFd, PollFlags, poll};
use protobuf::MessageField;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox::SandboxName;

use crate::bootstrap::SOCKETS;
use crate::bundle::{self, Bundle};
use crate::start::SocketPath;
use crate::task::timestamp;
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
        sandbox::clean_up(&SandboxName::parse(&arguments.id)?)?;
    }

    let response = DeleteResponse {
        pid: server.unwrap_or_default(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    print(&response)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

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
