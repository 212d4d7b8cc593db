//! A process's streams: containerd's fifos, files and loggers on one side, the guest's agent on the other.
//!
//! Nothing is read from the guest before what came earlier is taken, so that a slow reader slows the process down and costs
//! no memory. Fifos are held open in both directions: containerd may restart without the process noticing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use management::Output as Heard;
use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wire_ttrpc::agent::{CloseStdinRequest, ReadStreamRequest, ReadStreamResponse, WriteStreamRequest};

use crate::Error;
use crate::guest::Guest;
use crate::logger;
use crate::phase::Phase;

/// Where a process's streams go, as containerd names it; empty for nowhere.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Stdio {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Names a process to the guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ProcessId {
    pub(crate) container: String,
    /// Empty for the container's first process.
    pub(crate) exec: String,
}

pub(crate) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// The host's ends of a process's streams, open before the process is.
pub(crate) struct Streams {
    stdin: Option<pipe::Receiver>,
    stdout: Option<Output>,
    stderr: Option<Output>,
}

/// Keeps a process's standard input from ending although nobody writes to it now.
#[derive(Default)]
pub(crate) struct Keeper(Mutex<Option<File>>);

impl Keeper {
    /// Lets standard input end with its last writer.
    pub(crate) fn release(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Streams {
    /// Opens what `stdio` names.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) async fn open(stdio: &Stdio, container: &str, namespace: &str) -> Result<(Self, Keeper), Error> {
        let mut streams = Self { stdin: None, stdout: None, stderr: None };
        let mut keeper = Keeper::default();
        if !stdio.stdin.is_empty() {
            let (receiver, file) = input(&stdio.stdin).map_err(failed(&stdio.stdin))?;
            streams.stdin = Some(receiver);
            keeper = Keeper(Mutex::new(Some(file)));
        }
        if let Some(binary) = stdio.stdout.strip_prefix("binary://") {
            let [stdout, stderr] = logger::start(binary, container, namespace).await.map_err(failed(&stdio.stdout))?;
            (streams.stdout, streams.stderr) = (Some(stdout), (!stdio.terminal).then_some(stderr));
            return Ok((streams, keeper));
        }
        streams.stdout = output(&stdio.stdout).map_err(failed(&stdio.stdout))?;
        // A terminal has one stream.
        let stderr = if stdio.terminal { "" } else { &stdio.stderr };
        streams.stderr = output(stderr).map_err(failed(stderr))?;
        Ok((streams, keeper))
    }

    /// Carries the streams until they end, or a while after the process has. What comes out is heard besides.
    pub(crate) fn carry(
        self,
        guest: &Guest,
        id: &ProcessId,
        terminal: bool,
        ended: &watch::Receiver<Phase>,
        heard: Option<Heard>,
    ) -> Copies {
        let hear = |output| Ear { output: or_nowhere(output), heard: heard.clone().map(Hearing::begin) };
        let mut copies = Vec::new();
        // Somebody has to take what nobody wants, or the process would wait for ever.
        copies.push(tokio::spawn(Carrier::new(guest, id).take(Stream::Stdout, hear(self.stdout), ended.clone())));
        if !terminal {
            let stderr = hear(self.stderr);
            copies.push(tokio::spawn(Carrier::new(guest, id).take(Stream::Stderr, stderr, ended.clone())));
        }
        let input = match self.stdin {
            Some(stdin) => Some(tokio::spawn(Carrier::new(guest, id).feed(stdin))),
            // A terminal that nobody types at is no end of input.
            None if terminal => None,
            None => Some(tokio::spawn(Carrier::new(guest, id).feed(tokio::io::empty()))),
        };
        Copies { outputs: copies, input }
    }
}

/// The running copies of a process. Dropping them lets outputs end by themselves.
pub(crate) struct Copies {
    outputs: Vec<JoinHandle<()>>,
    input: Option<JoinHandle<()>>,
}

impl Copies {
    /// Waits for the last output of a process that has ended, but not for ever for whoever takes it.
    pub(crate) async fn end(self) {
        if let Some(input) = self.input {
            input.abort();
        }
        for mut output in self.outputs {
            if timeout(PATIENCE, &mut output).await.is_err() {
                output.abort();
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// Where output goes.
struct Ear {
    output: Output,
    heard: Option<Hearing>,
}

/// A stream of what is heard, which ends with this value.
struct Hearing(Heard);

impl Hearing {
    fn begin(heard: Heard) -> Self {
        heard.begin();
        Self(heard)
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.end();
    }
}

struct Carrier {
    guest: Guest,
    id: ProcessId,
}

impl Carrier {
    fn new(guest: &Guest, id: &ProcessId) -> Self {
        Self { guest: guest.clone(), id: id.clone() }
    }

    /// From the guest to the host.
    async fn take(self, stream: Stream, mut to: Ear, mut ended: watch::Receiver<Phase>) {
        let mut left = LEFT;
        loop {
            // A process may leave others behind that hold its streams: they are listened to for a while and for so much only.
            // The host's readers may take their time.
            let over = async {
                let _ = ended.wait_for(|phase| phase.exit().is_some()).await;
                tokio::time::sleep(DRAIN).await;
            };
            let answer = tokio::select! {
                answer = self.read(stream) => answer,
                () = over => return,
            };
            match answer {
                Ok(answer) if answer.data.is_empty() => return,
                Ok(answer) => {
                    if ended.borrow().exit().is_some() {
                        let Some(rest) = left.checked_sub(answer.data.len()) else {
                            return tracing::warn!(container = %self.id.container, "output goes on after the end, and is cut");
                        };
                        left = rest;
                    }
                    if let Some(Hearing(heard)) = &to.heard {
                        heard.push(&answer.data);
                    }
                    if let Err(error) = to.output.write_all(&answer.data).await {
                        // The process must not wait for a reader that is gone.
                        tracing::warn!(container = %self.id.container, %error, "output is lost from here on");
                        to.output = Box::new(tokio::io::sink());
                    }
                    // What is read from a file or a logger must not wait for more.
                    let _ = to.output.flush().await;
                }
                Err(error) => {
                    tracing::debug!(container = %self.id.container, %error, "output ends");
                    return;
                }
            }
        }
    }

    /// The next output.
    async fn read(&self, stream: Stream) -> Result<ReadStreamResponse, Error> {
        let request = ReadStreamRequest {
            container_id: self.id.container.clone(),
            exec_id: self.id.exec.clone(),
            len: CHUNK as u32,
            ..ReadStreamRequest::default()
        };
        loop {
            let answer = match stream {
                Stream::Stdout => self.guest.read_stdout(request.clone()).await,
                Stream::Stderr => self.guest.read_stderr(request.clone()).await,
            };
            match answer {
                Err(error) if self.guest.outlives(&error).await => {}
                answer => return answer,
            }
        }
    }

    /// From the host to the guest.
    async fn feed(self, mut input: impl AsyncRead + Unpin) {
        let (container_id, exec_id) = (self.id.container.clone(), self.id.exec.clone());
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = match input.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => length,
            };
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let request = WriteStreamRequest {
                    container_id: container_id.clone(),
                    exec_id: exec_id.clone(),
                    data: rest.to_vec(),
                    ..WriteStreamRequest::default()
                };
                match self.guest.write_stdin(request).await {
                    Ok(answer) if answer.len > 0 => rest = &rest[rest.len().min(answer.len as usize)..],
                    Ok(_) => return,
                    Err(error) => {
                        tracing::debug!(container = %container_id, %error, "input ends");
                        return;
                    }
                }
            }
        }
        let request = CloseStdinRequest { container_id, exec_id, ..CloseStdinRequest::default() };
        if let Err(error) = self.guest.close_stdin(request).await {
            tracing::debug!(container = %self.id.container, %error, "input stays open");
        }
    }
}

/// Opens a fifo for reading, and once more so that it doesn't end.
fn input(path: &str) -> io::Result<(pipe::Receiver, File)> {
    let keeper = OpenOptions::new().read(true).write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    Ok((pipe::OpenOptions::new().open_receiver(path)?, keeper))
}

fn output(path: &str) -> io::Result<Option<Output>> {
    if path.is_empty() {
        return Ok(None);
    }
    if let Some(file) = path.strip_prefix("file://") {
        let file = OpenOptions::new().append(true).create(true).open(file)?;
        return Ok(Some(Box::new(tokio::fs::File::from_std(file))));
    }
    Ok(Some(Box::new(pipe::OpenOptions::new().read_write(true).open_sender(path)?)))
}

fn or_nowhere(output: Option<Output>) -> Output {
    output.unwrap_or_else(|| Box::new(tokio::io::sink()))
}

fn failed(path: &str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), source }
}

/// Below the limit of a ttrpc frame by far.
const CHUNK: usize = 32 << 10;
/// How long the guest may take for each piece of what a process said that has ended.
pub(crate) const DRAIN: Duration = Duration::from_secs(2);
/// How much of that there may be: as much as a pipe holds at most.
pub(crate) const LEFT: usize = 1 << 20;
/// How long the last output may wait to be taken.
const PATIENCE: Duration = Duration::from_secs(10);
