//! The helper itself: a process with one thread that forks for each order.
//!
//! It holds nothing but the socket that orders come by, and never sees what is in them: that is read by the process
//! that it forks. So what one container is given is in no other's process.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use zeroize::Zeroizing;

use super::fork::{Alone, Forked};
use super::{Outcome, create, enter, pause};

/// Serves the orders of this process' parent until that ends, and returns the exit code. Standard input is the socket
/// that they come by.
///
/// In each process that carries out an order it returns as well, where that process does not become another program.
/// Must be called while the process has one thread.
pub fn run_helper() -> u8 {
    match Server::take_over().and_then(Server::serve) {
        Ok(code) => code,
        Err(_) => FAILED,
    }
}

/// What an order is for. Its letter comes with its descriptors: the channel for its text and its outcome, those that
/// the work takes, and the process' standard streams, of which a terminal has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Work {
    /// A container, of what is in its bundle.
    Create,
    /// A process in a container that runs, whose first process and control group are given. With a terminal comes the
    /// socket that its master is sent by.
    Enter,
    /// The pod's own process.
    Pause,
}

impl Work {
    pub(super) fn letter(self) -> u8 {
        match self {
            Self::Create => b'c',
            Self::Enter => b'e',
            Self::Pause => b'p',
        }
    }

    fn of(letter: u8) -> Option<Self> {
        [Self::Create, Self::Enter, Self::Pause].into_iter().find(|work| work.letter() == letter)
    }
}

struct Server {
    alone: Alone,
    control: UnixStream,
}

impl Server {
    fn take_over() -> io::Result<Self> {
        // As everywhere on the way into a container: what is in there has no business in this process.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        dup2_stdin(std::fs::File::open("/dev/null")?)?;
        Ok(Self { alone: Alone::check()?, control })
    }

    fn serve(mut self) -> io::Result<u8> {
        while let Some(order) = self.receive()? {
            let answer = match self.fork(&order) {
                Ok(Forked::Child) => {
                    let Self { alone, control } = self;
                    drop(control);
                    return Ok(order.carry_out(&alone));
                }
                Ok(Forked::Parent(pid)) => pid.as_raw_nonzero().get(),
                // The caller can tell: the numbers of processes are positive.
                Err(error) => -error.raw_os_error().unwrap_or(1),
            };
            self.control.write_all(&answer.to_ne_bytes())?;
        }
        Ok(0)
    }

    /// The next order; none where there will be none any more.
    fn receive(&self) -> io::Result<Option<Order>> {
        let mut letter = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&self.control, &mut [IoSliceMut::new(&mut letter)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        let order = Work::of(letter[0]).and_then(|work| Order::new(work, descriptors));
        order.map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn fork(&self, order: &Order) -> io::Result<Forked> {
        self.alone.fork(order.group.as_ref().map(AsFd::as_fd), order.work == Work::Pause)
    }
}

struct Order {
    work: Work,
    channel: UnixStream,
    /// The first process of the container to enter.
    first: Option<OwnedFd>,
    /// The control group that the process is born in.
    group: Option<OwnedFd>,
    streams: Vec<OwnedFd>,
}

impl Order {
    fn new(work: Work, descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let channel = descriptors.next()?.into();
        let (first, group) = match work {
            Work::Create | Work::Pause => (None, None),
            Work::Enter => (Some(descriptors.next()?), Some(descriptors.next()?)),
        };
        Some(Self { work, channel, first, group, streams: descriptors.collect() })
    }

    /// Carries it out in the process that was forked for it. Returns where that doesn't become another program.
    fn carry_out(self, alone: &Alone) -> u8 {
        let Self { work, mut channel, first, group, streams } = self;
        drop(group);
        let outcome = match carry_out(alone, work, &mut channel, first, streams) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => {
                // That it has nothing to say says that it is there.
                drop(channel);
                return pause::pause();
            }
            Err(cause) => Outcome::Error(cause),
        };
        let mut report = serde_json::to_vec(&outcome).unwrap_or_default();
        report.push(b'\n');
        match channel.write_all(&report) {
            Ok(()) => 0,
            Err(_) => FAILED,
        }
    }
}

/// Returns what is to be told, or nothing where this process is the pod's own from now on.
fn carry_out(
    alone: &Alone,
    work: Work,
    channel: &mut UnixStream,
    first: Option<OwnedFd>,
    mut streams: Vec<OwnedFd>,
) -> Result<Option<Outcome>, String> {
    let failed = |e: io::Error| format!("its streams can't be taken over: {e}");
    let console = match streams.as_slice() {
        [stdin, stdout, stderr] => {
            stream(stdin, stdout, stderr.as_fd()).map_err(failed)?;
            None
        }
        _ => {
            stream(io::stdin(), io::stdin(), io::stdin().as_fd()).map_err(failed)?;
            streams.pop()
        }
    };
    drop(streams);
    // Bounded by whoever sends it. It may have secrets in it.
    let mut text = Zeroizing::new(Vec::new());
    channel.read_to_end(&mut text).map_err(|e| format!("its order can't be read: {e}"))?;
    match first {
        Some(first) => Ok(Some(Outcome::Pid(enter::enter(alone, first, console, &text)?))),
        None if work == Work::Pause => pause::retire(Path::new(OsStr::from_bytes(&text))).map(|()| None),
        None => Ok(Some(Outcome::Pid(create::Container::read(&text)?.create()?))),
    }
}

fn stream(stdin: impl AsFd, stdout: impl AsFd, stderr: BorrowedFd<'_>) -> io::Result<()> {
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    Ok(dup2_stderr(stderr)?)
}

const FAILED: u8 = 1;
/// Channel, first process, control group, and three streams.
pub(super) const MAX_DESCRIPTORS: usize = 6;
