//! Blobs from the cache of the node that the guest runs on. It saves downloads and is trusted with nothing.
//!
//! The node is asked for blobs by digest (see [`wire::blob`]); what it sends is checked like a registry's answer, and what
//! it does not send is asked of the registry. A node that lies, breaks off or keeps the guest waiting is not asked again,
//! so that all it can cost is the patience for one blob.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::Builder;
use hyper::header::{CONTENT_LENGTH, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use oci_spec::image::Digest;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use wire::blob::{self, BlobDigest};

use crate::digest;
use crate::registry::error::causes;

/// Where a node's cache is.
#[derive(Clone, Debug)]
pub enum NodeAddress {
    /// At the guest's host, on its vsock port [`blob::PORT`].
    Host,
    /// Behind a unix socket.
    Unix(PathBuf),
}

/// The node's cache, as long as it behaves.
pub(crate) struct NodeCache {
    address: NodeAddress,
    /// How long the node may take to answer, and for each MiB that it sends.
    patience: Duration,
    given_up: AtomicBool,
}

/// A blob that the node has begun to send.
pub(crate) struct NodeBlob {
    body: Incoming,
    size: u64,
    patience: Duration,
    _connection: Connection,
}

impl NodeCache {
    pub(crate) fn new(address: NodeAddress, patience: Duration) -> Self {
        Self { address, patience, given_up: AtomicBool::new(false) }
    }

    /// A blob of this size, if the node has it.
    pub(crate) async fn blob(&self, digest: &Digest, size: u64) -> Option<NodeBlob> {
        let (blob, announced) = self.open(digest).await?;
        if announced != size {
            self.give_up(digest, &format!("it has {announced} bytes instead of {size}"));
            return None;
        }
        Some(blob)
    }

    /// A blob of at most `limit` bytes with the right digest, if the node has it.
    pub(crate) async fn document(&self, digest: &Digest, limit: u64) -> Option<Bytes> {
        let (blob, announced) = self.open(digest).await?;
        if announced > limit {
            return None;
        }
        let (sink, mut chunks) = mpsc::channel::<Bytes>(1);
        let collect = async {
            let mut document = BytesMut::new();
            while let Some(chunk) = chunks.recv().await {
                document.extend_from_slice(&chunk);
            }
            document.freeze()
        };
        let (sent, document) = tokio::join!(blob.send(sink), collect);
        match sent.and_then(|()| digest::verify(&document, digest)) {
            Ok(()) => Some(document),
            Err(cause) => {
                self.give_up(digest, &cause);
                None
            }
        }
    }

    /// The node has forfeited its chance.
    pub(crate) fn give_up(&self, digest: &Digest, cause: &dyn Display) {
        tracing::info!(blob = %digest, %cause, "the node's cache is not asked any more");
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Asks for a blob, and returns it with its announced size.
    async fn open(&self, digest: &Digest) -> Option<(NodeBlob, u64)> {
        if self.given_up.load(Ordering::Relaxed) || !digest::supported(digest) {
            return None;
        }
        let name: BlobDigest = digest.as_ref().parse().ok()?;
        let asked = match timeout(self.patience, self.ask(&name)).await {
            Ok(asked) => asked,
            Err(_) => Err(format!("it has not answered for {} seconds", self.patience.as_secs_f32())),
        };
        asked.unwrap_or_else(|cause| {
            self.give_up(digest, &cause);
            None
        })
    }

    async fn ask(&self, digest: &BlobDigest) -> Result<Option<(NodeBlob, u64)>, String> {
        let failed = |e: hyper::Error| causes(&e);
        let stream = self.connect().await.map_err(|e| format!("no connection: {e}"))?;
        let (mut sender, connection) =
            Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let connection = Connection(tokio::spawn(connection.map(drop)));
        let request = Request::get(digest.path()).header(HOST, "node").body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.map_err(|e| e.to_string())?).await.map_err(failed)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            status => return Err(format!("it answers {status}")),
        }
        let announced = answer.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let size = announced.ok_or("it does not say how long the blob is")?;
        let blob = NodeBlob { body: answer.into_body(), size, patience: self.patience, _connection: connection };
        Ok(Some((blob, size)))
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.address {
            NodeAddress::Host => Box::new(VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, blob::PORT)).await?),
            NodeAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

impl NodeBlob {
    /// Sends the blob into `sink`: no more than was announced. Ends early and without an error once nobody reads any more.
    ///
    /// # Errors
    /// Why not all of it came in time.
    pub(crate) async fn send(mut self, sink: mpsc::Sender<Bytes>) -> Result<(), String> {
        let (mut offset, mut arrived, mut waited) = (0, 0, Duration::ZERO);
        while offset < self.size {
            // Only time that is spent here counts: the reader may be slow itself.
            let begun = Instant::now();
            let frame = timeout(self.patience.saturating_sub(waited), self.body.frame())
                .await
                .map_err(|_| format!("{arrived} bytes came in {} seconds", self.patience.as_secs_f32()))?;
            waited += begun.elapsed();
            let Some(frame) = frame else {
                return Err(format!("it ended after {offset} of {} bytes", self.size));
            };
            let Ok(chunk) = frame.map_err(|e| causes(&e))?.into_data() else { continue };
            offset += chunk.len() as u64;
            arrived += chunk.len() as u64;
            if arrived >= PROGRESS {
                (arrived, waited) = (0, Duration::ZERO);
            }
            if sink.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Ends with the blob, however far that has come.
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What counts as getting on.
const PROGRESS: u64 = 1 << 20;
/// What of an answer is held here, whatever the node sends.
const BUFFER: usize = 128 << 10;
