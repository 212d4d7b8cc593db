//! The HTTP server, bounded so that one container can't take the guest's memory or starve the others for ever.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use wire::rcar::Tee;

use crate::resources::Resources;
use crate::routes::{self, Peer};

/// The bound server.
///
/// It keeps at most 128 connections, each with one request at a time, a head of at most 16 KiB that must come within
/// 10 seconds, and a body that is never read; after 2 minutes a connection is closed.
pub struct WorkloadApi {
    listener: TcpListener,
    router: Router,
}

impl WorkloadApi {
    /// Binds to `address`, in a guest `127.0.0.1:8006`. Requests wait until [`WorkloadApi::serve`] runs.
    ///
    /// # Errors
    /// [`Error::Bind`].
    pub async fn bind(address: SocketAddr, tee: Tee, resources: Arc<dyn Resources>) -> Result<Self, Error> {
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Bind { address, cause })?;
        Ok(Self { listener, router: routes::router(tee, resources) })
    }

    /// The address that it is bound to.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped; connections that are open then end by themselves.
    ///
    /// # Errors
    /// [`Error::Accept`] if the listener breaks.
    pub async fn serve(self) -> Result<(), Error> {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&connections).acquire_owned().await else { return Ok(()) };
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let router = self.router.clone().layer(Extension(Peer(peer)));
                    tokio::spawn(async move {
                        connection(stream, router).await;
                        drop(place);
                    });
                }
                Err(error) if is_of_the_peer(&error) => {}
                Err(cause) => return Err(Error::Accept(cause)),
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
    /// The listener broke.
    #[error("workload API: no more connections can be accepted: {0}")]
    Accept(io::Error),
}

async fn connection(stream: TcpStream, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
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
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

const MAX_CONNECTIONS: usize = 128;
const MAX_HEAD: usize = 16 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// More than twice what a resource takes at worst.
const MAX_LIFE: Duration = Duration::from_secs(120);
