//! A child process that can't outlive us, is always reaped, and is never mistaken for another one.
//!
//! The kernel sends the parent-death signal when the *thread* that started the child ends, and threads of an async
//! runtime come and go. So every child has a thread of its own, which starts it, waits for it and reaps it.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Pid, Uid, getpid, getppid, setgroups, setresgid, setresuid, write};
use tokio::sync::oneshot;

use crate::confinement::Confinement;

/// The QEMU binary, searched in `PATH`.
pub const QEMU: &str = "qemu-system-x86_64";

/// A running child, or what is left of it. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    state: Arc<State>,
}

/// A child that has just been started.
pub(crate) struct Started {
    pub(crate) process: Process,
    pub(crate) stdout: Option<ChildStdout>,
    pub(crate) stderr: Option<ChildStderr>,
    /// The exit status, once the child has been reaped.
    pub(crate) exit: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that Ctrl-C in a terminal leaves it to us. It inherits
    /// `inherited` under the numbers that they have here.
    pub(crate) fn start(
        mut command: Command,
        confinement: Confinement,
        inherited: Vec<Arc<OwnedFd>>,
    ) -> io::Result<Started> {
        let parent = getpid();
        let network_namespace = confinement.network_namespace.clone();
        let groups: Option<(Uid, Gid, Vec<Gid>)> = confinement.user.as_ref().map(|user| {
            (Uid::from_raw(user.id), Gid::from_raw(user.id), user.groups.iter().copied().map(Gid::from_raw).collect())
        });
        // SAFETY: between fork and exec the closure only makes system calls; what they need was allocated before.
        unsafe {
            command.pre_exec(move || {
                for cgroup in &confinement.cgroups {
                    // 0 is whoever writes it.
                    write(cgroup, b"0")?;
                }
                for file in &inherited {
                    fcntl(file.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
                }
                if let Some((user, group, groups)) = &groups {
                    setgroups(groups)?;
                    setresgid(*group, *group, *group)?;
                    setresuid(*user, *user, *user)?;
                }
                // Last, since a change of user takes it back.
                set_pdeathsig(Signal::SIGKILL)?;
                // We may have died before the signal was set.
                if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
            });
        }
        command.process_group(0);

        let (started, starting) = mpsc::sync_channel(1);
        let (exited, exit) = oneshot::channel();
        let state = Arc::new(State::default());
        thread::Builder::new().name("child".to_owned()).spawn({
            let state = state.clone();
            // The thread goes where the child is to be: a new process is in its parent's namespaces.
            move || match enter(network_namespace).and_then(|()| command.spawn()) {
                Err(e) => _ = started.send(Err(e)),
                Ok(mut child) => {
                    // What the child inherits is not ours any more: a tap, for one, ends with its last holder.
                    drop(command);
                    let _ = started.send(Ok((child.id(), child.stdout.take(), child.stderr.take())));
                    let _ = exited.send(state.wait_and_reap(child));
                }
            }
        })?;
        let (pid, stdout, stderr) = starting.recv().map_err(io::Error::other)??;
        Ok(Started { process: Self { pid: Pid::from_raw(pid as i32), state }, stdout, stderr, exit })
    }

    pub(crate) fn id(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Kills the child if it has not been reaped.
    pub(crate) fn kill(&self) {
        let reaped = self.state.reaped();
        if !*reaped {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let wait = self.state.changed.wait_timeout_while(self.state.reaped(), REAP_TIME, |reaped| !*reaped);
        if wait.is_ok_and(|(reaped, _)| !*reaped) {
            tracing::warn!(pid = self.id(), "a killed child is stuck in the kernel");
        }
    }
}

#[derive(Debug, Default)]
struct State {
    reaped: Mutex<bool>,
    changed: Condvar,
}

impl State {
    /// Waits without reaping first, so that the pid can't be given away while somebody is about to kill it.
    fn wait_and_reap(&self, mut child: Child) -> io::Result<ExitStatus> {
        let pid = Pid::from_raw(child.id() as i32);
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let mut reaped = self.reaped();
        let status = child.wait();
        *reaped = true;
        self.changed.notify_all();
        status
    }

    fn reaped(&self) -> MutexGuard<'_, bool> {
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn enter(network_namespace: Option<Arc<OwnedFd>>) -> io::Result<()> {
    network_namespace.map_or(Ok(()), |namespace| Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?))
}

/// How long dropping waits for a killed child.
const REAP_TIME: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_exit_status_is_reported() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let started = Process::start(command, Confinement::default(), Vec::new()).unwrap();
        assert_eq!(started.exit.await.unwrap().unwrap().code(), Some(7));
        started.process.kill();
    }

    #[test]
    fn dropping_kills_and_reaps() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let Started { process, .. } = Process::start(command, Confinement::default(), Vec::new()).unwrap();
        let pid = process.pid;
        drop(process);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }

    #[test]
    fn the_child_survives_the_thread_that_asked_for_it() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let started =
            thread::spawn(|| Process::start(command, Confinement::default(), Vec::new()).unwrap()).join().unwrap();
        assert_eq!(kill(started.process.pid, None), Ok(()));
        // Running, sleeping, or waiting for its program to be read: anything but a zombie, which also has a pid.
        let status = std::fs::read_to_string(format!("/proc/{}/status", started.process.id())).unwrap();
        assert!(!status.contains("State:\tZ") && !status.contains("State:\tX"), "{status}");
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = Process::start(Command::new("/no/such/program"), Confinement::default(), Vec::new()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
