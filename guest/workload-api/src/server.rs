//! The HTTP server, bounded so that one container can't take the guest's memory or starve the others for ever.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::api::Api;
use crate::peer::{Caller, Guard, Peer};

/// The bound server.
///
/// It keeps at most 128 connections, each with one request at a time, a head of at most 16 KiB that must come within
/// 10 seconds, and a body of at most 128 KiB; after 2 minutes a connection is closed.
pub struct WorkloadApi {
    listener: Listener,
    api: Api,
}

enum Listener {
    Network(TcpListener),
    Unix(UnixListener, Guard),
}

impl WorkloadApi {
    /// Binds to `address`, in a guest `127.0.0.1:8006`. Requests wait until [`WorkloadApi::serve`] runs.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind(address: SocketAddr, api: Api) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Bind { address, cause })?;
        Ok(Self { listener: Listener::Network(listener), api })
    }

    /// Binds to a unix socket at `path`, in place of what was there, which anyone who reaches it may connect to: `guard`
    /// decides what each process may ask for, and each request is logged with the process that sent it.
    ///
    /// # Errors
    /// [`Error::Socket`].
    pub fn bind_unix(path: &Path, guard: Guard, api: Api) -> Result<Self, Error> {
        let failed = |cause| Error::Socket { path: path.to_owned(), cause };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Containers run as users of their own.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
        Ok(Self { listener: Listener::Unix(listener, guard), api })
    }

    /// The address that it is bound to, none for a unix socket.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.listener {
            Listener::Network(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    /// Serves until it is dropped; connections that are open then end by themselves.
    ///
    /// # Errors
    /// [`Error::Accept`] if the listener breaks.
    pub async fn serve(self) -> Result<(), Error> {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return Ok(()) };
            let accepted = match &self.listener {
                Listener::Network(listener) => listener.accept().await.map(|(stream, peer)| {
                    // An answer is one small segment: waiting for more helps nobody.
                    let _ = stream.set_nodelay(true);
                    tokio::spawn(connection(stream, Peer::Network(peer), self.api.clone(), place));
                }),
                Listener::Unix(listener, guard) => listener.accept().await.and_then(|(stream, _)| {
                    let peer = Peer::Process(Caller::of(&stream)?, Arc::clone(guard));
                    tokio::spawn(connection(stream, peer, self.api.clone(), place));
                    Ok(())
                }),
            };
            match accepted {
                Err(error) if !is_of_the_peer(&error) => return Err(Error::Accept(error)),
                _ => {}
            }
        }
    }
}

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be had.
    #[error("workload API: {address}: {cause}; next: check that nothing else in the guest listens there")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        cause: io::Error,
    },
    /// The unix socket can't be made.
    #[error("workload API: {}: {cause}; next: check that its folder can be written", path.display())]
    Socket {
        /// The socket's file.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The listener broke.
    #[error("workload API: no more connections can be accepted: {0}")]
    Accept(io::Error),
}

/// Serves one connection; its place among all is free again when this ends.
async fn connection<S>(stream: S, peer: Peer, api: Api, _place: tokio::sync::OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service =
        service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(api.answer(&peer, request).await) });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    // A container that neither reads nor leaves must not keep its place.
    match tokio::time::timeout(MAX_LIFE, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a workload's connection ended early"),
        Err(_) => tracing::debug!("a workload's connection reached its greatest age"),
    }
}

fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NotConnected
    )
}

const MAX_CONNECTIONS: usize = 128;
const MAX_HEAD: usize = 16 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// More than twice what a resource takes at worst.
const MAX_LIFE: Duration = Duration::from_secs(120);
