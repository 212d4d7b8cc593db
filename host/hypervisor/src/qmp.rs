//! QEMU's monitor: state, orderly ends, and events.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use futures::StreamExt;
use qapi::futures::{QapiService, QmpStreamTokio};
use qapi::{ExecuteError, qmp};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::WriteHalf;
use tokio::net::UnixStream;
use tokio::sync::broadcast;

/// The monitor of a running QEMU. Clones share the connection.
#[derive(Clone)]
pub struct Qmp {
    service: Arc<Service>,
    events: broadcast::Sender<qmp::Event>,
    /// The connection once more, for what its library can't send.
    socket: Arc<OwnedFd>,
}

impl Qmp {
    /// Takes QEMU's greeting and starts to listen.
    pub(crate) async fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let socket = stream.as_fd().try_clone_to_owned().map_err(QmpError::Connection)?;
        let greeted = QmpStreamTokio::open(stream).await.map_err(QmpError::Connection)?;
        let (service, mut incoming) = greeted.negotiate().await.map_err(QmpError::Connection)?.into_parts();
        let (events, _) = broadcast::channel(EVENTS);
        tokio::spawn({
            let events = events.clone();
            async move {
                while let Some(Ok(event)) = incoming.next().await {
                    tracing::debug!(?event, "QEMU event");
                    // Fails if nobody listens, which is fine.
                    let _ = events.send(event);
                }
            }
        });
        Ok(Self { service: Arc::new(service), events, socket: Arc::new(socket) })
    }

    /// The VM's state, such as `running`.
    ///
    /// # Errors
    /// [`QmpError`] if QEMU has gone or refuses.
    pub async fn status(&self) -> Result<qmp::RunState, QmpError> {
        Ok(self.service.execute(qmp::query_status {}).await?.status)
    }

    /// Ends QEMU at once.
    ///
    /// # Errors
    /// [`QmpError`] if QEMU has gone or refuses.
    pub async fn quit(&self) -> Result<(), QmpError> {
        self.service.execute(qmp::quit {}).await?;
        Ok(())
    }

    /// Presses the guest's power button.
    ///
    /// # Errors
    /// [`QmpError`] if QEMU has gone or refuses.
    pub async fn system_powerdown(&self) -> Result<(), QmpError> {
        self.service.execute(qmp::system_powerdown {}).await?;
        Ok(())
    }

    /// Runs a command whose answer says nothing.
    pub(crate) async fn execute<C: qmp::QmpCommand>(&self, command: C) -> Result<(), QmpError> {
        self.service.execute(command).await?;
        Ok(())
    }

    /// Hands an open file to QEMU, which then knows it as `/dev/fdset/<set>`.
    ///
    /// One file at a time: QEMU gives the last descriptor that came to the next command that takes one.
    pub(crate) async fn pass(&self, file: &File, set: i64) -> Result<(), QmpError> {
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&files));
        // A descriptor needs a byte to travel with, and a space between two commands means nothing.
        sendmsg(&self.socket, &[IoSlice::new(b" ")], &mut rights, SendFlags::empty())
            .map_err(|errno| QmpError::Connection(io::Error::from(errno)))?;
        self.execute(qmp::add_fd { fdset_id: Some(set), opaque: None }).await
    }

    /// Events from now on. A receiver that falls behind misses some.
    pub fn events(&self) -> broadcast::Receiver<qmp::Event> {
        self.events.subscribe()
    }
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Qmp")
    }
}

/// Why the monitor did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU has gone, or speaks something else.
    #[error("QEMU's monitor can't be reached: {0}")]
    Connection(#[source] io::Error),
    /// QEMU understood and refused.
    #[error("QEMU's monitor refused: {0}")]
    Refused(#[source] qapi::Error),
}

impl From<ExecuteError> for QmpError {
    fn from(error: ExecuteError) -> Self {
        match error {
            ExecuteError::Io(e) => Self::Connection(e),
            ExecuteError::Qapi(e) => Self::Refused(e),
        }
    }
}

type Service = QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>;

/// Events that a slow receiver may leave unread.
const EVENTS: usize = 64;
