//! A process in a guest, a container's first or an exec: how far it is, and its streams.

use std::sync::{Mutex, MutexGuard, PoisonError};

use management::Output;
use tokio::sync::{self, watch};
use wire_ttrpc::oci;

use crate::Error;
use crate::guest::Guest;
use crate::io::{Copies, Keeper, ProcessId, Stdio, Streams};
use crate::phase::{Exit, Phase};

/// A process in a guest.
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    pub(crate) stdio: Stdio,
    /// What an exec is to run; the container's specification says it for a first process.
    pub(crate) command: Option<oci::Process>,
    /// Held from the request to start until the start is told: its end is told after.
    pub(crate) starting: sync::Mutex<()>,
    phase: watch::Sender<Phase>,
    keeper: Keeper,
    streams: Mutex<Option<Streams>>,
    copies: Mutex<Option<Copies>>,
}

impl Process {
    /// A process that is yet to start, with its streams open.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) async fn open(
        id: ProcessId,
        stdio: Stdio,
        command: Option<oci::Process>,
        namespace: &str,
    ) -> Result<Self, Error> {
        let (streams, keeper) = Streams::open(&stdio, &id.container, namespace).await?;
        Ok(Self {
            id,
            stdio,
            command,
            starting: sync::Mutex::default(),
            phase: watch::Sender::new(Phase::Created),
            keeper,
            streams: Mutex::new(Some(streams)),
            copies: Mutex::default(),
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a phase, unless it has ended.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let goes_on = now.exit().is_none();
            if goes_on {
                *now = phase;
            }
            goes_on
        });
    }

    /// Ends. Only the first end counts, for which the answer is true.
    pub(crate) fn end(&self, exit: Exit) -> bool {
        let first = self.phase.send_if_modified(|phase| {
            let first = phase.exit().is_none();
            if first {
                *phase = Phase::Ended(exit);
            }
            first
        });
        if first {
            // Streams of a process that never ran: whoever reads them waits for their end.
            lock(&self.streams).take();
        }
        first
    }

    /// How it ended, once it has.
    pub(crate) async fn ended(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        match phase.wait_for(|phase| phase.exit().is_some()).await.map(|phase| phase.exit()) {
            Ok(Some(exit)) => exit,
            // The sender is a part of self.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Starts to carry its streams, within the hearing of whoever keeps what it says.
    pub(crate) fn carry(&self, guest: &Guest, heard: Option<Output>) {
        if let Some(streams) = lock(&self.streams).take() {
            *lock(&self.copies) =
                Some(streams.carry(guest, &self.id, self.stdio.terminal, &self.phase.subscribe(), heard));
        }
    }

    /// Waits for what it said last, and closes its streams.
    pub(crate) async fn close(&self) {
        self.keeper.release();
        lock(&self.streams).take();
        let copies = lock(&self.copies).take();
        if let Some(copies) = copies {
            copies.end().await;
        }
    }

    /// Lets its standard input end with the last writer.
    pub(crate) fn close_input(&self) {
        self.keeper.release();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    #[tokio::test]
    async fn output_of_a_process_that_never_ran_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdout");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut reader = std::fs::File::options().read(true).custom_flags(nonblocking).open(&path).unwrap();
        let stdio = Stdio { stdout: path.display().to_string(), ..Stdio::default() };
        let id = ProcessId { container: "c".to_owned(), exec: String::new() };
        let process = Process::open(id, stdio, None, "k8s.io").await.unwrap();
        let mut byte = [0];
        assert_eq!(reader.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);

        process.end(Exit::now(137));

        assert_eq!(reader.read(&mut byte).unwrap(), 0);
    }
}
