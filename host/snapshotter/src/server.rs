//! Gives guests blobs of the cache: HTTP/1.1 over vsock, through the host's kernel or through each sandbox's back end.
//!
//! Guests are not trusted. One may ask for blobs by digest and for nothing else, and holds at most [`PER_PEER`]
//! connections of some buffers each, whatever it does with them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::UnixListener;
use tokio_util::io::ReaderStream;
use tokio_vsock::VsockListener;
use wire::blob::BlobDigest;

use crate::cache::Cache;

/// Serves the cache to all guests.
#[derive(Clone)]
pub(crate) struct Server {
    cache: Arc<Cache>,
    peers: Arc<Mutex<HashMap<Peer, usize>>>,
}

/// Whose guest it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Peer {
    /// The process that runs a sandbox.
    Process(i32),
    /// A guest of the host's kernel.
    Guest(u32),
}

impl Server {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache, peers: Arc::default() }
    }

    /// Serves guests whose vsock is a process of the host's, which connects here for them.
    pub(crate) async fn serve_unix(self, listener: UnixListener) -> Infallible {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let process = stream.peer_cred().ok().and_then(|peer| peer.pid()).unwrap_or_default();
                    self.take(Peer::Process(process), stream);
                }
                Err(error) => pause(&error).await,
            }
        }
    }

    /// Serves guests of the host's kernel.
    pub(crate) async fn serve_vsock(self, listener: VsockListener) -> Infallible {
        loop {
            match listener.accept().await {
                Ok((stream, address)) if address.cid() >= FIRST_GUEST => {
                    self.take(Peer::Guest(address.cid()), stream);
                }
                // Somebody on this machine, who can read files.
                Ok(_) => {}
                Err(error) => pause(&error).await,
            }
        }
    }

    fn take(&self, peer: Peer, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let Some(place) = Place::take(&self.peers, peer) else {
            tracing::debug!(?peer, "a guest wants too many connections");
            return;
        };
        let cache = Arc::clone(&self.cache);
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(|request| answer(&cache, request));
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT).max_buf_size(BUFFER).max_headers(HEADERS);
            if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(?peer, %error, "a guest's connection ended");
            }
        });
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn answer(cache: &Cache, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let nothing = |status: StatusCode| {
        let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::GET {
        return Ok(nothing(StatusCode::METHOD_NOT_ALLOWED));
    }
    let Ok(digest) = BlobDigest::from_path(request.uri().path()) else {
        return Ok(nothing(StatusCode::BAD_REQUEST));
    };
    Ok(match cache.blob(&digest).await {
        Ok(Some((file, length))) => {
            let chunks = ReaderStream::with_capacity(file.take(length), CHUNK).map_ok(Frame::data);
            let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            response
        }
        Ok(None) => nothing(StatusCode::NOT_FOUND),
        Err(error) => {
            tracing::warn!(blob = %digest, %error, "a blob can't be read");
            nothing(StatusCode::NOT_FOUND)
        }
    })
}

/// One of a peer's connections.
struct Place {
    peers: Arc<Mutex<HashMap<Peer, usize>>>,
    peer: Peer,
}

impl Place {
    fn take(peers: &Arc<Mutex<HashMap<Peer, usize>>>, peer: Peer) -> Option<Self> {
        let mut taken = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (taken.values().sum::<usize>(), taken.get(&peer).copied().unwrap_or_default());
        if own >= PER_PEER || all >= FOR_ALL {
            return None;
        }
        taken.insert(peer, own + 1);
        Some(Self { peers: Arc::clone(peers), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// After a guest that gave up, or while there are no descriptors: guests have the registry meanwhile.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "a guest can't be served");
    tokio::time::sleep(PAUSE).await;
}

/// Connections of one guest; a guest takes the layers of its images side by side.
const PER_PEER: usize = 32;
/// Below the descriptors that a process may have.
const FOR_ALL: usize = 640;
/// Context ids below are the hypervisor's, this machine's and the host's.
const FIRST_GUEST: u32 = 3;
const HEADER_LIMIT: Duration = Duration::from_secs(10);
const BUFFER: usize = 16 << 10;
const HEADERS: usize = 16;
/// With the file's own buffer and the socket's, what a connection costs whose guest doesn't read.
const CHUNK: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_a_bounded_number_of_connections_and_others_have_theirs() {
        let peers = Arc::default();
        let mut places: Vec<_> = (0..PER_PEER).map(|_| Place::take(&peers, Peer::Guest(3)).unwrap()).collect();
        assert!(Place::take(&peers, Peer::Guest(3)).is_none());
        assert!(Place::take(&peers, Peer::Process(3)).is_some());
        places.pop();
        assert!(Place::take(&peers, Peer::Guest(3)).is_some());
        drop(places);
        assert!(peers.lock().unwrap().is_empty());
    }
}
