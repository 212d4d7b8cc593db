//! A running VM: launched, watched, and ended.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout};

use crate::config::VmConfig;
use crate::console::{Console, WaitError};
use crate::error::{Error, ExitReason};
use crate::hotplug::{self, AttachedDisk, DiskConfig, Slots};
use crate::process::{Process, Started};
use crate::qmp::Qmp;

/// A VM in a QEMU process of its own. Dropping it kills and reaps QEMU.
#[derive(Debug)]
pub struct Vm {
    process: Process,
    console: Console,
    qmp: Qmp,
    exit: watch::Receiver<Option<ExitReason>>,
    slots: Slots,
}

impl Vm {
    /// Starts QEMU. Returns when the machine is built and its CPUs run.
    ///
    /// Dropping the future ends QEMU.
    ///
    /// # Errors
    /// Every variant of [`Error`] whose message starts with `launch`.
    pub async fn launch(config: VmConfig) -> Result<Self, Error> {
        config.validate()?;
        let monitor = Monitor::listen(&config.qmp_socket)?;
        config.give_sockets()?;

        let mut command = Command::new(config.tee.qemu());
        command.args(config.argv());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Process::start(command, config.confinement.clone(), config.inherited());
        let Started { process, stdout, stderr, exit } = started.map_err(Error::starting)?;

        let console = config.console.clone();
        let messages = Console::new();
        let captures = (
            capture(&console, stdout.map(OwnedFd::from)).map_err(Error::Start)?,
            capture(&messages, stderr.map(OwnedFd::from)).map_err(Error::Start)?,
        );
        let mut exit = watch_exit(exit, captures, console.clone(), messages);

        let qmp = tokio::select! {
            // QEMU that has ended has also closed its monitor, and the exit says more.
            biased;
            reason = exited(&mut exit) => return Err(Error::Refused(Box::new(reason))),
            qmp = timeout(LAUNCH_TIME, monitor.accept()) => qmp.map_err(|_| Error::Slow(LAUNCH_TIME))?,
        };
        let qmp = match qmp {
            Ok(qmp) => qmp,
            // The end of a refusing QEMU may be seen on its monitor first.
            Err(e) => {
                return Err(match timeout(EXIT_TIME, exited(&mut exit)).await {
                    Ok(reason) => Error::Refused(Box::new(reason)),
                    Err(_) => e,
                });
            }
        };
        tracing::info!(vm = %config.name, pid = process.id(), acceleration = ?config.acceleration, "QEMU runs");
        Ok(Self { process, console, qmp, exit, slots: Slots::default() })
    }

    /// Waits until the guest is `ready`, as whoever knows the guest sees it.
    ///
    /// # Errors
    /// [`Error::GuestEnded`], [`Error::GuestPanicked`] or [`Error::GuestSilent`], whichever comes first.
    pub async fn boot<T>(&self, ready: impl Future<Output = T>, within: Duration) -> Result<T, Error> {
        let deadline = Instant::now() + within;
        let silent = || {
            let lines = self.console.tail(TAIL);
            let last_line = Console::telling(lines.iter().map(|line| &*line.text)).unwrap_or_default().to_owned();
            Error::GuestSilent { after: within, last_line }
        };
        tokio::select! {
            biased;
            ready = ready => Ok(ready),
            reason = self.exited() => Err(Error::GuestEnded(Box::new(reason))),
            line = self.console.wait_for(|line| Console::panic_in(line).is_some(), deadline) => match line {
                // A guest that panics usually ends the VM as well, but `panic=0` leaves it there.
                Ok(line) => Err(Error::GuestPanicked(Console::panic_in(&line.text).unwrap_or_default().to_owned())),
                Err(WaitError::Deadline) => Err(silent()),
                Err(WaitError::Ended) => match timeout(EXIT_TIME, self.exited()).await {
                    Ok(reason) => Err(Error::GuestEnded(Box::new(reason))),
                    Err(_) => Err(silent()),
                },
            },
        }
    }

    /// How the VM ended, once it has. May be asked any number of times, and the future may be dropped.
    pub async fn exited(&self) -> ExitReason {
        exited(&mut self.exit.clone()).await
    }

    /// Ends the VM: QEMU is asked to quit, and killed if it has not after `grace`.
    ///
    /// The guest is not asked: whoever knows it does that before.
    pub async fn stop(&self, grace: Duration) -> ExitReason {
        let orderly = async {
            // A monitor that does not answer is as good as one that refuses.
            let _ = self.qmp.quit().await;
            self.exited().await
        };
        match timeout(grace, orderly).await {
            Ok(reason) => reason,
            Err(_) => {
                tracing::warn!(pid = self.pid(), "QEMU did not quit in time and is killed");
                self.process.kill();
                self.exited().await
            }
        }
    }

    /// Gives the guest a further disk. It has it when this returns, but needs a moment to see it.
    ///
    /// # Errors
    /// [`hotplug::Error`]; nothing of the disk is left behind then.
    pub async fn attach_disk(&self, disk: DiskConfig) -> Result<AttachedDisk, hotplug::Error> {
        self.slots.attach(&self.qmp, disk).await
    }

    /// Takes a disk away from the guest, which has to let go of it.
    ///
    /// # Errors
    /// [`hotplug::Error`]; the disk is then still the guest's.
    pub async fn detach_disk(&self, disk: AttachedDisk) -> Result<(), hotplug::Error> {
        self.slots.detach(&self.qmp, disk).await
    }

    /// The guest's console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// QEMU's monitor.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// QEMU's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// The socket that QEMU's monitor connects to; its file is removed as soon as nobody needs it.
struct Monitor<'a> {
    listener: UnixListener,
    path: &'a Path,
}

impl<'a> Monitor<'a> {
    fn listen(path: &'a Path) -> Result<Self, Error> {
        let listener = UnixListener::bind(path).map_err(|source| Error::Listen { path: path.to_owned(), source })?;
        Ok(Self { listener, path })
    }

    async fn accept(self) -> Result<Qmp, Error> {
        let (stream, _) = self.listener.accept().await.map_err(Error::Start)?;
        Qmp::negotiate(stream).await.map_err(Error::Monitor)
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.path);
    }
}

type Capture = tokio::task::JoinHandle<()>;

fn capture(console: &Console, output: Option<OwnedFd>) -> io::Result<Capture> {
    let output = output.ok_or_else(|| io::Error::other("its output is not piped"))?;
    let output = pipe::Receiver::from_owned_fd(output)?;
    let console = console.clone();
    Ok(tokio::spawn(async move { console.capture(output).await }))
}

/// Publishes the reason when QEMU has been reaped and all of its output has been read.
fn watch_exit(
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
    captures: (Capture, Capture),
    console: Console,
    messages: Console,
) -> watch::Receiver<Option<ExitReason>> {
    let (publish, published) = watch::channel(None);
    tokio::spawn(async move {
        let status = match exit.await {
            Ok(Ok(status)) => status,
            // Can't happen while we are the parent; the VM is gone all the same.
            Ok(Err(_)) | Err(_) => ExitStatus::default(),
        };
        let _ = tokio::join!(captures.0, captures.1);
        let texts = |console: &Console| console.tail(TAIL).into_iter().map(|line| line.text.to_string()).collect();
        let reason = ExitReason {
            status,
            kernel_panic: console.kernel_panic(),
            stderr: texts(&messages),
            console: texts(&console),
        };
        let _ = publish.send(Some(reason));
    });
    published
}

async fn exited(exit: &mut watch::Receiver<Option<ExitReason>>) -> ExitReason {
    let reason = exit.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
    match reason {
        Some(reason) => reason,
        // The runtime is shutting down: there is nobody left to tell.
        None => std::future::pending().await,
    }
}

/// For QEMU to build the machine; takes 0.1 s on an idle host.
const LAUNCH_TIME: Duration = Duration::from_secs(60);
/// Between the end of QEMU's output and its end.
const EXIT_TIME: Duration = Duration::from_secs(5);
/// Lines of output in an [`ExitReason`].
const TAIL: usize = 100;
