//! Makes containers and commands in processes of their own.
//!
//! Entering namespaces takes a process with one thread, and the guest's first process has several. So it runs its own
//! binary once more as a helper, which forks for each order as a sibling: what it forks is a child of the guest's first
//! process, which can wait for it. A container is made there by libcontainer; for a command, the process joins a
//! container and makes a sibling in there, which becomes the program; the pod's own process stays what it is, and does
//! nothing.

mod create;
mod enter;
mod fork;
mod pause;
mod server;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::cgroup::{self, Cgroup};
use crate::console::Console;
use crate::id::Id;
use crate::process::{Child, Streams};
use server::{MAX_DESCRIPTORS, Work};

pub use server::run_helper;

/// The first argument of a helper: where the binary sees it, it calls [`run_helper`] before anything else.
pub const HELPER_ARG: &str = "container-helper";

/// Gives orders to a helper, which it starts when there is none. Clones give them to the same one.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    program: PathBuf,
    state: PathBuf,
    running: Arc<Mutex<Option<Running>>>,
}

/// A container to run a command in.
pub(crate) struct Place<'a> {
    /// The descriptor of its first process.
    pub(crate) first: BorrowedFd<'a>,
    /// The folder of its control group.
    pub(crate) group: &'a Path,
}

impl Helper {
    /// A helper that is the program of that path, with `state` as the folder for libcontainer's files.
    pub(crate) fn new(program: PathBuf, state: PathBuf) -> Self {
        Self { program, state, running: Arc::default() }
    }

    /// Starts it ahead of the first order.
    pub(crate) async fn prepare(&self) {
        let mut running = self.running.lock().await;
        if running.is_none() {
            // Where it can't be started the first order says so.
            *running = Running::start(&self.program).ok();
        }
    }

    /// Makes the container of `<bundle>/config.json`; its first process waits for [`Self::start`], and will run as `uid`.
    pub(crate) async fn create(
        &self,
        id: &Id,
        bundle: &Path,
        terminal: bool,
        uid: u32,
    ) -> Result<(Child, Streams), Error> {
        std::fs::create_dir_all(&self.state).map_err(Error::Bundle)?;
        let mut order = create::Container {
            id: id.as_str().to_owned(),
            state: self.state.clone(),
            bundle: bundle.to_owned(),
            console: None,
        };
        let (mine, theirs) = if terminal {
            let console = Console::listen(bundle, "create").map_err(Error::Streams)?;
            order.console = console.path().map(Path::to_owned);
            (Ends::Terminal(console), Vec::new())
        } else {
            Ends::pipes().map_err(Error::Streams)?
        };
        let order = serde_json::to_vec(&order).map_err(|e| Error::Bundle(e.into()))?;
        let (builder, outcome, _) = self.carry_out(Work::Create, &[], theirs, &order).await?;
        // The container's process becomes this one's child when the one that made it has ended.
        let status = builder.ended().await.map_err(Error::Fork)?;
        let (pid, child) = made(outcome, status, Cgroup::of(id).path())?;
        own_streams(pid, uid);
        mine.streams_of(child).await
    }

    /// Runs the process that `process` describes, an OCI process in JSON, in a container that runs.
    pub(crate) async fn enter(
        &self,
        place: Place<'_>,
        process: &[u8],
        terminal: bool,
    ) -> Result<(Child, Streams), Error> {
        let group = std::fs::File::open(place.group).map_err(Error::Bundle)?;
        let ends = if terminal { Ends::terminal() } else { Ends::pipes() };
        let (mine, theirs) = ends.map_err(Error::Streams)?;
        let descriptors = [place.first, group.as_fd()];
        let (entrant, outcome, mut reports) = self.carry_out(Work::Enter, &descriptors, theirs, process).await?;
        // It ends once it has made the command's process.
        let status = entrant.ended().await.map_err(Error::Fork)?;
        let (_, child) = made(outcome, status, place.group)?;
        match next_report(&mut reports).await {
            Ok(None) => mine.streams_of(child).await,
            Ok(Some(Outcome::Error(cause))) => {
                // Nobody else waits for it.
                let _ = child.ended().await;
                Err(Error::Container(cause))
            }
            Ok(Some(Outcome::Pid(_))) => Err(give_up(&child, Silence::Noise).await),
            Err(silence) => Err(give_up(&child, silence).await),
        }
    }

    /// Makes the pod's own process, with an empty folder for its root.
    pub(crate) async fn pause(&self, root: &Path) -> Result<(Child, Streams), Error> {
        let root = root.as_os_str().as_encoded_bytes();
        let (mine, theirs) = Ends::pipes().map_err(Error::Streams)?;
        let (child, outcome, _) = self.carry_out(Work::Pause, &[], theirs, root).await?;
        if let Some(Outcome::Error(cause)) = outcome {
            let _ = child.ended().await;
            return Err(Error::Container(cause));
        }
        mine.streams_of(child).await
    }

    /// Lets the first process of a container that was made run its program.
    pub(crate) fn start(&self, id: &Id) -> Result<(), Error> {
        // A socket's path has at most 107 bytes, an id alone may have 128.
        let folder = std::fs::File::open(self.state.join(id)).map_err(Error::Bundle)?;
        let socket = format!("/proc/self/fd/{}/notify.sock", std::os::fd::AsRawFd::as_raw_fd(&folder));
        let mut socket = std::os::unix::net::UnixStream::connect(socket).map_err(Error::Start)?;
        io::Write::write_all(&mut socket, b"start").map_err(Error::Start)
    }

    /// Forgets a container.
    pub(crate) fn forget(&self, id: &Id) -> io::Result<()> {
        match std::fs::remove_dir_all(self.state.join(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Has something done. Returns the process that does it, what it says first, and where it says more; it says nothing
    /// where it is there to stay.
    async fn carry_out(
        &self,
        work: Work,
        place: &[BorrowedFd<'_>],
        streams: Vec<OwnedFd>,
        order: &[u8],
    ) -> Result<(Child, Option<Outcome>, Reports), Error> {
        let (mut channel, theirs) = socket_pair().map_err(Error::Streams)?;
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(theirs.as_fd())
            .chain(place.iter().copied())
            .chain(streams.iter().map(AsFd::as_fd))
            .collect();
        let forked = tokio::time::timeout(DEADLINE, self.fork(work, &descriptors));
        let child = forked.await.map_err(|_| Error::Deadline)??;
        // As long as they are here, their ends are never seen.
        drop(descriptors);
        drop((theirs, streams));
        let tell = async {
            channel.write_all(order).await?;
            channel.shutdown().await
        };
        if !matches!(tokio::time::timeout(DEADLINE, tell).await, Ok(Ok(()))) {
            return Err(give_up(&child, Silence::Noise).await);
        }
        let mut reports = BufReader::new(channel.take(MAX_REPORT));
        match next_report(&mut reports).await {
            Ok(outcome) => Ok((child, outcome, reports)),
            Err(silence) => Err(give_up(&child, silence).await),
        }
    }

    /// Has the helper fork. Where it doesn't answer, the next order is another one's.
    async fn fork(&self, work: Work, descriptors: &[BorrowedFd<'_>]) -> Result<Child, Error> {
        let mut running = self.running.lock().await;
        let mut helper = match running.take() {
            Some(helper) => helper,
            None => Running::start(&self.program).map_err(Error::Spawn)?,
        };
        let answer = helper.order(work, descriptors).await.map_err(Error::Spawn)?;
        *running = Some(helper);
        match Pid::from_raw(answer).filter(|_| answer > 0) {
            Some(pid) => Child::of(pid).map_err(Error::Fork),
            None => Err(Error::Fork(io::Error::from_raw_os_error(-answer))),
        }
    }
}

/// Why a container or a process in it can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container's files can't be written or read: {0}")]
    Bundle(#[source] io::Error),
    #[error("container's streams can't be made: {0}")]
    Streams(#[source] io::Error),
    #[error("container helper does not run: {0}; next: try again, and give the guest more memory")]
    Spawn(#[source] io::Error),
    #[error("process for the container can't be made: {0}; next: check that the container runs")]
    Fork(#[source] io::Error),
    #[error("container helper took longer than {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("container helper left no report, and ended with status {0}")]
    NoReport(i32),
    #[error("container helper named process {0}, which is not the container's; next: try again")]
    Stray(Pid),
    #[error("container runtime refused: {0}")]
    Container(String),
    #[error("container's first process does not listen: {0}")]
    Start(#[source] io::Error),
}

/// A helper that runs. It ends with this value.
#[derive(Debug)]
struct Running {
    control: UnixStream,
    _process: tokio::process::Child,
}

impl Running {
    fn start(program: &Path) -> io::Result<Self> {
        // What becomes an orphan here is this process' to wait for, whether or not it is the guest's first.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let (control, theirs) = socket_pair()?;
        let mut command = tokio::process::Command::new(program);
        command.arg(HELPER_ARG).env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        Ok(Self { control, _process: command.spawn()? })
    }

    /// Passes descriptors on, and returns the number of the process that was forked for them, or of an error, negated.
    async fn order(&mut self, work: Work, descriptors: &[BorrowedFd<'_>]) -> io::Result<i32> {
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            sendmsg(&self.control, &[IoSlice::new(&[work.letter()])], &mut ancillary, SendFlags::NOSIGNAL)?;
            Ok(())
        };
        self.control.async_io(Interest::WRITABLE, send).await?;
        let mut answer = [0; 4];
        self.control.read_exact(&mut answer).await?;
        Ok(i32::from_ne_bytes(answer))
    }
}

/// What the process that carries out an order says of it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Pid(i32),
    Error(String),
}

/// What is said about an order, in lines.
type Reports = BufReader<tokio::io::Take<UnixStream>>;

/// Why there is no report.
enum Silence {
    Overdue,
    /// Whatever there is, it is none.
    Noise,
}

/// The next line; none at the end. A container that waits to be started keeps the end from being seen.
async fn next_report(reports: &mut Reports) -> Result<Option<Outcome>, Silence> {
    let mut report = Vec::new();
    let read = tokio::time::timeout(DEADLINE, reports.read_until(b'\n', &mut report));
    read.await.map_err(|_| Silence::Overdue)?.map_err(|_| Silence::Noise)?;
    match report.is_empty() {
        true => Ok(None),
        false => serde_json::from_slice(&report).map(Some).map_err(|_| Silence::Noise),
    }
}

/// Ends a process that nothing is heard of.
async fn give_up(child: &Child, silence: Silence) -> Error {
    let _ = child.signal(Signal::KILL);
    match (child.ended().await, silence) {
        (Err(error), _) => Error::Fork(error),
        (Ok(_), Silence::Overdue) => Error::Deadline,
        (Ok(status), Silence::Noise) => Error::NoReport(status),
    }
}

/// The process in a container that was reported by another one, which ended with `status`. What is in the container by
/// now may have had a hand in the report.
fn made(outcome: Option<Outcome>, status: i32, group: &Path) -> Result<(Pid, Child), Error> {
    let pid = match outcome {
        Some(Outcome::Pid(pid)) if pid > 0 => Pid::from_raw(pid).ok_or(Error::NoReport(status))?,
        Some(Outcome::Error(cause)) => return Err(Error::Container(cause)),
        _ => return Err(Error::NoReport(status)),
    };
    if !is_child(pid) || !is_in(pid, group) {
        return Err(Error::Stray(pid));
    }
    Ok((pid, Child::of(pid).map_err(Error::Fork)?))
}

/// This side's ends of a process' standard streams.
enum Ends {
    Pipes([OwnedFd; 3]),
    Terminal(Console),
}

impl Ends {
    /// Three pipes: this side's ends and the process'.
    fn pipes() -> io::Result<(Self, Vec<OwnedFd>)> {
        let (stdin, stdin_end) = io::pipe()?;
        let (stdout_end, stdout) = io::pipe()?;
        let (stderr_end, stderr) = io::pipe()?;
        let mine = Self::Pipes([stdin_end.into(), stdout_end.into(), stderr_end.into()]);
        Ok((mine, vec![stdin.into(), stdout.into(), stderr.into()]))
    }

    /// A terminal that the process makes, and the socket on which it sends its master.
    fn terminal() -> io::Result<(Self, Vec<OwnedFd>)> {
        let (console, theirs) = Console::pair()?;
        Ok((Self::Terminal(console), vec![theirs]))
    }

    /// Must be called once the process has its streams. Without them it is of no use, and ends.
    async fn streams_of(self, child: Child) -> Result<(Child, Streams), Error> {
        match self.streams().await {
            Ok(streams) => Ok((child, streams)),
            Err(error) => {
                if child.signal(Signal::KILL).is_ok() {
                    // Nobody else waits for it.
                    let _ = child.ended().await;
                }
                Err(Error::Streams(error))
            }
        }
    }

    async fn streams(self) -> io::Result<Streams> {
        match self {
            Self::Pipes([stdin, stdout, stderr]) => Streams::pipes(stdin, stdout, stderr),
            Self::Terminal(console) => Streams::terminal(console.master().await?),
        }
    }
}

/// Two ends of a channel, the first one for this runtime.
pub(crate) fn socket_pair() -> io::Result<(UnixStream, std::os::unix::net::UnixStream)> {
    let (mine, theirs) = std::os::unix::net::UnixStream::pair()?;
    mine.set_nonblocking(true)?;
    Ok((UnixStream::from_std(mine)?, theirs))
}

/// Whether it is a child of this process, which it stays until somebody has waited for it.
fn is_child(pid: Pid) -> bool {
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok()
}

/// Whether it is in the control group of that folder, or was when it ended.
fn is_in(pid: Pid, group: &Path) -> bool {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let found = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    found.is_some_and(|found| Path::new(cgroup::MOUNT_POINT).join(found) == group)
}

/// Lets the user of a container open its streams once more, as `/dev/stdout` does: pipes and terminals are their maker's
/// alone. They are the process' by now, whether it or this one made them.
fn own_streams(pid: Pid, uid: u32) {
    for number in 0..3 {
        // Programs that don't open them run all the same.
        let _ = std::os::unix::fs::chown(format!("/proc/{pid}/fd/{number}"), Some(uid), None);
    }
}

const MAX_REPORT: u64 = 64 << 10;
/// Far more than a slow processor takes, and far less than callers wait.
const DEADLINE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_helper_that_does_not_serve_is_an_error_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let id = Id::parse("c1").unwrap();
        for program in ["/bin/false", "/no/such/binary"] {
            let helper = Helper::new(program.into(), folder.path().join("state"));
            helper.prepare().await;
            for _ in 0..2 {
                assert!(matches!(helper.create(&id, folder.path(), false, 0).await, Err(Error::Spawn(_))), "{program}");
            }
        }
    }
}
