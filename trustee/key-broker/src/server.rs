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

/// A server's identity, ready to be shown to clients over TLS 1.2 and 1.3.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl Tls {
    /// Checks that chain and key belong together.
    ///
    /// # Errors
    /// [`Error::Tls`] for an identity that can't be used.
    pub fn new(identity: &Identity) -> Result<Self, Error> {
        let failed = |e: &dyn std::fmt::Display| Error::Tls(e.to_string());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&identity.certificates)
            .collect::<Result<_, _>>()
            .map_err(|e| failed(&format!("certificate: {e}")))?;
        if chain.is_empty() {
            return Err(failed(&"certificate: no certificate in it"));
        }
        let key =
            PrivateKeyDer::from_pem_slice(&identity.private_key).map_err(|e| failed(&format!("private key: {e}")))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| failed(&e))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// Serves a broker on sockets until `stop` is done; then lets requests in progress end, for at most ten seconds.
pub async fn serve(broker: Arc<Broker>, listeners: Vec<TcpListener>, tls: Option<Tls>, stop: impl Future<Output = ()>) {
    let (stopping, stopped) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let (broker, tls, stopped) = (broker.clone(), tls.clone(), stopped.clone());
        let service = Service { broker, tls, stopped, lifetime: CONNECTION_TIME };
        accepting.spawn(accept(listener, service, places.clone()));
    }
    drop(stopped);
    stop.await;

    let _ = stopping.send(true);
    let drained = async { while accepting.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("closing connections that did not end in time");
    }
}

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("TLS: {0}; next: give certificate and private_key in PEM, which belong together")]
    Tls(String),
}

#[derive(Clone)]
struct Service {
    broker: Arc<Broker>,
    tls: Option<Tls>,
    stopped: watch::Receiver<bool>,
    /// How long a connection may stay, busy or not.
    lifetime: Duration,
}

impl Service {
    async fn connection(mut self, stream: TcpStream, peer: SocketAddr, _place: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.tls.take() else { return self.http(stream, peer).await };
        match tokio::time::timeout(HEAD_TIME, tls.0.accept(stream)).await {
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
        // A client that sends requests and reads no answers would stay for ever.
        let ending = async {
            tokio::select! { () = told(&mut self.stopped) => {}, () = tokio::time::sleep(self.lifetime) => {} }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = ending => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(self.lifetime, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return tracing::debug!(%peer, "connection closed, since it would not end"),
                }
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
/// Longer than any request may take.
const CONNECTION_TIME: Duration = Duration::from_secs(60);
const HEAD_TIME: Duration = Duration::from_secs(10);
const DRAIN_TIME: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Admin;
    use store::Store;
    use store::clock::Clock;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_client_that_reads_no_answers_does_not_stay() {
        let directory = tempfile::tempdir().unwrap();
        let settings = crate::Settings {
            storage: directory.path().to_owned(),
            audit: directory.path().join("audit.jsonl"),
            admin: Admin::DenyAll,
            sample_verifier: false,
            token_lifetime: Duration::from_secs(300),
            tls: false,
        };
        let broker = Broker::assemble(Store::memory().await.unwrap(), settings, Clock::system()).await.unwrap();
        let (_stopping, stopped) = watch::channel(false);
        let lifetime = Duration::from_millis(50);
        let service = Service { broker: Arc::new(broker), tls: None, stopped, lifetime };
        let (mut client, server) = tokio::io::duplex(64);

        let serving = tokio::spawn(service.http(server, ([127, 0, 0, 1], 1).into()));
        let flood = async { while client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {} };

        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(flood, serving).1 }).await.unwrap().unwrap();
        drop(directory);
    }

    #[test]
    fn an_identity_that_can_t_be_used_is_refused_before_anything_is_served() {
        for (certificates, private_key) in [("", ""), ("garbage", "garbage")] {
            let identity = Identity {
                certificates: certificates.into(),
                private_key: zeroize::Zeroizing::new(private_key.into()),
            };
            assert!(Tls::new(&identity).err().unwrap().to_string().contains("next:"));
        }
    }
}
