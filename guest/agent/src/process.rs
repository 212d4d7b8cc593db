//! A running process of a container: its streams, its signals, and how it ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::stream::Stream;
use crate::watched::watched;

/// A child of this process, which somebody has to wait for.
pub(crate) struct Child {
    pid: Pid,
    handle: Arc<AsyncFd<OwnedFd>>,
}

impl Child {
    /// The child of that number. Must be called inside the runtime.
    pub(crate) fn of(pid: Pid) -> io::Result<Self> {
        let handle = Arc::new(watched(pidfd_open(pid, PidfdFlags::NONBLOCK)?, Interest::READABLE)?);
        Ok(Self { pid, handle })
    }

    /// Waits for its end: its exit code, or 128 plus the signal that killed it. To be asked once.
    pub(crate) async fn ended(&self) -> io::Result<i32> {
        wait(&self.handle).await
    }

    /// Sends a signal. A process that has ended takes no harm.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.handle.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A process of a container, which is waited for from the moment this value is made.
pub(crate) struct Process {
    child: Child,
    ended: watch::Receiver<Option<End>>,
    streams: Streams,
    heard: Heard,
}

#[derive(Clone, Copy)]
struct End {
    status: i32,
    at: Instant,
}

/// What has been asked for to its end.
#[derive(Default)]
struct Heard {
    status: AtomicBool,
    stdout: AtomicBool,
    stderr: AtomicBool,
}

/// The agent's ends of a process' standard streams.
pub(crate) struct Streams {
    stdin: Mutex<Option<Stream>>,
    stdout: Stream,
    /// A terminal has one stream for all.
    stderr: Option<Stream>,
    terminal: bool,
}

impl Process {
    /// Watches over the child. Must be called inside the runtime.
    pub(crate) fn watch(child: Child, streams: Streams) -> Self {
        let (sender, ended) = watch::channel(None);
        let waiting = Arc::clone(&child.handle);
        tokio::spawn(async move {
            let status = wait(&waiting).await.unwrap_or(LOST);
            sender.send_replace(Some(End { status, at: Instant::now() }));
        });
        let heard = Heard { stderr: AtomicBool::new(streams.stderr.is_none()), ..Heard::default() };
        Self { child, ended, streams, heard }
    }

    /// The status of the process once it has ended: its exit code, or 128 plus the signal that killed it.
    pub(crate) async fn ended(&self) -> i32 {
        let status = self.until_ended().await;
        self.heard.status.store(true, Ordering::Relaxed);
        status
    }

    /// As [`Self::ended`], by nobody who would tell of it.
    pub(crate) async fn until_ended(&self) -> i32 {
        match self.ended.clone().wait_for(Option::is_some).await {
            Ok(end) => end.map_or(LOST, |end| end.status),
            Err(_) => LOST,
        }
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Whether the process has ended and nobody will ask for it any more: status and output have been had, or nobody came
    /// for a while.
    pub(crate) fn is_done_with(&self) -> bool {
        let Heard { status, stdout, stderr } = &self.heard;
        let is_heard = || [status, stdout, stderr].iter().all(|heard| heard.load(Ordering::Relaxed));
        self.ended.borrow().is_some_and(|end| is_heard() || end.at.elapsed() >= PATIENCE)
    }

    /// Sends a signal. A process that has ended takes no harm.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Whether the kernel would keep the signal from the process: it does so with the first process of a namespace,
    /// unless that has a handler, or blocks the signal to wait for it as small init programs do.
    pub(crate) fn ignores(&self, signal: Signal) -> bool {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).unwrap_or_default();
        let status = read("status");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        let in_mask = |name: &str| {
            let mask = u64::from_str_radix(field(name).trim(), 16).unwrap_or(0);
            mask >> (signal.as_raw() - 1) & 1 == 1
        };
        let is_first = field("NSpid:").split_whitespace().next_back() == Some("1");
        // While it waits, its mask doesn't show what it waits for.
        let waits = || read("syscall").split_whitespace().next() == Some(SIGNAL_WAIT);
        is_first && !in_mask("SigCgt:") && !in_mask("SigBlk:") && !waits()
    }

    /// The number of the process, as the guest's first process sees it.
    pub(crate) fn pid(&self) -> Pid {
        self.child.pid
    }

    /// The descriptor of the process.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.child.handle.get_ref().as_fd()
    }

    /// Reads from standard output, waiting for data; nothing at the end, or once the process has ended and all is read.
    pub(crate) async fn read_stdout(&self, limit: usize) -> io::Result<Vec<u8>> {
        self.read(&self.streams.stdout, limit, &self.heard.stdout).await
    }

    /// As [`Self::read_stdout`], from standard error. A terminal has none.
    pub(crate) async fn read_stderr(&self, limit: usize) -> io::Result<Vec<u8>> {
        match &self.streams.stderr {
            Some(stream) => self.read(stream, limit, &self.heard.stderr).await,
            None => Ok(Vec::new()),
        }
    }

    async fn read(&self, stream: &Stream, limit: usize, heard: &AtomicBool) -> io::Result<Vec<u8>> {
        let limit = limit.clamp(1, MAX_READ);
        let data = tokio::select! {
            data = stream.read(limit) => data?,
            // Its children may hold the stream open for ever; what it wrote itself is there by now.
            _ = self.until_ended() => stream.read_ready(limit)?,
        };
        if data.is_empty() {
            heard.store(true, Ordering::Relaxed);
        }
        Ok(data)
    }

    /// Writes all of `data` to standard input.
    pub(crate) async fn write_stdin(&self, data: &[u8]) -> io::Result<()> {
        let stdin = self.stdin().clone().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        tokio::select! {
            written = stdin.write(data) => written,
            _ = self.until_ended() => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Ends standard input: a pipe is closed, a terminal gets its end-of-file character.
    pub(crate) async fn close_stdin(&self) -> io::Result<()> {
        let stdin = self.stdin().take();
        match stdin {
            Some(terminal) if self.streams.terminal && !self.has_ended() => {
                terminal.write(&[END_OF_TRANSMISSION]).await
            }
            _ => Ok(()),
        }
    }

    /// Tells the process' terminal its size; false where it has no terminal.
    pub(crate) fn resize(&self, rows: u16, columns: u16) -> io::Result<bool> {
        if self.streams.terminal {
            self.streams.stdout.resize(rows, columns)?;
        }
        Ok(self.streams.terminal)
    }

    fn stdin(&self) -> std::sync::MutexGuard<'_, Option<Stream>> {
        self.streams.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    /// Three pipes' ends.
    pub(crate) fn pipes(stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            stdin: Mutex::new(Some(Stream::new(stdin)?)),
            stdout: Stream::new(stdout)?,
            stderr: Some(Stream::new(stderr)?),
            terminal: false,
        })
    }

    /// A terminal's master.
    pub(crate) fn terminal(master: OwnedFd) -> io::Result<Self> {
        let stream = Stream::new(master)?;
        Ok(Self { stdin: Mutex::new(Some(stream.clone())), stdout: stream, stderr: None, terminal: true })
    }
}

async fn wait(handle: &AsyncFd<OwnedFd>) -> io::Result<i32> {
    loop {
        let mut ready = handle.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(handle.as_fd()), options) {
            Ok(Some(status)) => {
                let code = status.exit_status().or(status.terminating_signal().map(|signal| SIGNALLED + signal));
                return Ok(code.unwrap_or(LOST));
            }
            Ok(None) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The number of `rt_sigtimedwait`.
const SIGNAL_WAIT: &str = if cfg!(target_arch = "x86_64") { "128" } else { "137" };
const SIGNALLED: i32 = 128;
/// The status of a process that somebody else waited for.
const LOST: i32 = 255;
const END_OF_TRANSMISSION: u8 = 4;
/// Far longer than a caller takes to ask for a process that has ended.
const PATIENCE: Duration = Duration::from_secs(60);
/// Well below the 4 MiB that a message may have.
const MAX_READ: usize = 256 << 10;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    pub(crate) fn start(script: &str) -> Process {
        let (stdin, stdin_end) = io::pipe().unwrap();
        let (stdout_end, stdout) = io::pipe().unwrap();
        let (stderr_end, stderr) = io::pipe().unwrap();
        #[expect(clippy::zombie_processes, reason = "the process under test is waited for through its descriptor")]
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn()
            .unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        let streams = Streams::pipes(stdin_end.into(), stdout_end.into(), stderr_end.into()).unwrap();
        Process::watch(Child::of(pid).unwrap(), streams)
    }

    #[tokio::test]
    async fn every_waiter_learns_the_status() {
        let process = start("exit 7");
        assert_eq!(tokio::join!(process.ended(), process.ended()), (7, 7));
        assert_eq!(process.ended().await, 7);
        process.signal(Signal::TERM).unwrap();
    }

    #[tokio::test]
    async fn a_signal_counts_from_128() {
        let process = start("cat");
        assert!(!process.has_ended());
        process.signal(Signal::KILL).unwrap();
        assert_eq!(process.ended().await, 137);
    }

    #[tokio::test]
    async fn streams_carry_data_and_end() {
        let process = start("cat; echo err >&2");
        process.write_stdin(b"hello").await.unwrap();
        assert_eq!(process.read_stdout(3).await.unwrap(), b"hel");
        process.close_stdin().await.unwrap();
        assert!(process.write_stdin(b"more").await.is_err());
        assert_eq!(process.read_stdout(99).await.unwrap(), b"lo");
        assert_eq!(process.read_stdout(99).await.unwrap(), b"");
        assert_eq!(process.read_stderr(99).await.unwrap(), b"err\n");
        assert_eq!(process.ended().await, 0);
        assert!(!process.is_done_with(), "who reads standard error does not know of its end yet");
        assert_eq!(process.read_stderr(99).await.unwrap(), b"");
        assert!(process.is_done_with());
    }

    #[tokio::test]
    async fn a_child_that_keeps_the_stream_open_does_not_hold_up_its_end() {
        let process = start("sleep 600 & echo $!");
        let pid = String::from_utf8(process.read_stdout(99).await.unwrap()).unwrap();
        assert_eq!(process.ended().await, 0);
        assert_eq!(process.read_stdout(99).await.unwrap(), b"");
        let orphan = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(orphan, Signal::KILL).unwrap();
    }

    #[tokio::test]
    async fn only_the_first_process_of_a_namespace_ignores_signals() {
        let process = start("echo ready; read line");
        assert_eq!(process.read_stdout(99).await.unwrap(), b"ready\n");
        assert!(!process.ignores(Signal::TERM));
        process.signal(Signal::TERM).unwrap();
        assert_eq!(process.ended().await, 143);
    }
}
