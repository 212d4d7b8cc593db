//! Sockets: TLS or plain HTTP/1.1, bounded in number and in time, drained at the end.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::Broker;

/// The certificate chain and key of a server, both in PEM.
pub struct Identity {
    /// The chain, leaf first.
    pub certificates: Vec<u8>,
    /// The leaf's private key.
    pub private_key: zeroize::Zeroizing<Vec<u8>>,
}

/// Serves a broker on sockets until `stop` is done; then lets requests in progress end, for at most ten seconds.
///
/// # Errors
/// [`Error::Tls`] for an identity that can't be used.
pub async fn serve(
    broker: Arc<Broker>,
    listeners: Vec<TcpListener>,
    identity: Option<Identity>,
    stop: impl Future<Output = ()>,
) -> Result<(), Error> {
    let tls = identity.map(acceptor).transpose()?;
    let (stopping, stopped) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let service = Service { broker: broker.clone(), tls: tls.clone(), stopped: stopped.clone() };
        accepting.spawn(accept(listener, service, places.clone()));
    }
    drop(stopped);
    stop.await;

    let _ = stopping.send(true);
    let drained = async { while accepting.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("closing connections that did not end in time");
    }
    Ok(())
}

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("TLS: {0}")]
    Tls(String),
}

#[derive(Clone)]
struct Service {
    broker: Arc<Broker>,
    tls: Option<TlsAcceptor>,
    stopped: watch::Receiver<bool>,
}

impl Service {
    async fn connection(mut self, stream: TcpStream, peer: SocketAddr, _place: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.tls.take() else { return self.http(stream, peer).await };
        match tokio::time::timeout(HEAD_TIME, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.http(stream, peer).await,
            Ok(Err(e)) => tracing::debug!(%peer, "TLS handshake failed: {e}"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn http(mut self, stream: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr) {
        let broker = self.broker.clone();
        let answer = service_fn(move |request| {
            let broker = broker.clone();
            async move { Ok::<_, std::convert::Infallible>(broker.answer(peer.ip(), request).await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_buf_size(MAX_HEAD);
        let connection = builder.serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = told(&mut self.stopped) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(e) = ended {
            tracing::debug!(%peer, "connection failed: {e}");
        }
    }
}

/// Accepts connections until told to stop, then waits for the ones that are open.
async fn accept(listener: TcpListener, service: Service, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    let mut stopped = service.stopped.clone();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            io::Result::Ok((stream, peer, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = told(&mut stopped) => break,
        };
        match accepted {
            Ok((stream, peer, place)) => _ = connections.spawn(service.clone().connection(stream, peer, place)),
            // Out of descriptors: the next attempt may find one, once a connection has ended.
            Err(e) if connections.is_empty() => tracing::warn!("can't accept: {e}"),
            Err(e) => {
                tracing::warn!("can't accept: {e}");
                connections.join_next().await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn acceptor(identity: Identity) -> Result<TlsAcceptor, Error> {
    let failed = |e: &dyn std::fmt::Display| Error::Tls(e.to_string());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.certificates)
        .collect::<Result<_, _>>()
        .map_err(|e| failed(&format!("certificate: {e}")))?;
    let key = PrivateKeyDer::from_pem_slice(&identity.private_key).map_err(|e| failed(&format!("private key: {e}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| failed(&e))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Binds a socket, with the address in the error.
///
/// # Errors
/// What the system says.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))
}

const MAX_CONNECTIONS: usize = 4096;
/// A token of 1 MiB would fit nowhere; 128 KiB hold the tokens of TEEs with event logs.
const MAX_HEAD: usize = 160 * 1024;
const HEAD_TIME: Duration = Duration::from_secs(10);
const DRAIN_TIME: Duration = Duration::from_secs(10);
