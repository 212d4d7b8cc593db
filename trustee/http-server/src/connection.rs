//! One connection: handshake, HTTP/1.1 or HTTP/2, bounded in head, streams and time.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::listening::told;
use crate::{Handler, Metrics, Peer, Tls, traces};

/// What connections of a listener share.
pub(crate) struct Service<H> {
    pub handler: Arc<H>,
    pub tls: Option<Tls>,
    pub metrics: Metrics,
    pub stopped: watch::Receiver<bool>,
    pub limits: Limits,
}

/// How long what may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// A TLS handshake, the head of a request, and the wait for the first one.
    pub head: Duration,
    /// A connection, busy or not; a request that has begun may take as long again.
    pub lifetime: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: Duration::from_secs(10), lifetime: Duration::from_secs(60) }
    }
}

impl<H> Clone for Service<H> {
    fn clone(&self) -> Self {
        Self {
            handler: self.handler.clone(),
            tls: self.tls.clone(),
            metrics: self.metrics.clone(),
            stopped: self.stopped.clone(),
            limits: self.limits,
        }
    }
}

impl<H: Handler> Service<H> {
    pub async fn connection(mut self, stream: TcpStream, address: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let Some(tls) = self.tls.take() else {
            return self.http(stream, Peer { address, certificate: None }).await;
        };
        match tokio::time::timeout(self.limits.head, tls.accept(stream)).await {
            Ok(Ok((stream, certificate))) => self.http(stream, Peer { address, certificate }).await,
            Ok(Err(e)) => tracing::debug!(peer = %address, "TLS handshake failed: {e}"),
            Err(_) => tracing::debug!(peer = %address, "TLS handshake took too long"),
        }
    }

    pub async fn http(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let address = peer.address;
        let _open = self.metrics.open_connection();
        let begun = Arc::new(AtomicBool::new(false));
        let (handler, metrics, first) = (self.handler.clone(), self.metrics.clone(), begun.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            first.store(true, Ordering::Relaxed);
            let (handler, metrics, peer) = (handler.clone(), metrics.clone(), peer.clone());
            let span = traces::span(&peer, &request);
            async move {
                let measuring = metrics.request(&request);
                let response = handler.answer(peer, request).await;
                tracing::Span::current().record("status", response.status().as_u16());
                Ok::<_, Infallible>(measuring.response(response))
            }
            .instrument(span)
        });
        let builder = builder(self.limits.head);
        let connection = builder.serve_connection(TokioIo::new(stream), answer);
        tokio::pin!(connection);
        // A client that sends requests and reads no answers would stay for ever, and so would one that says nothing.
        let Limits { head, lifetime } = self.limits;
        let ending = async {
            let silent = async {
                tokio::time::sleep(head).await;
                if begun.load(Ordering::Relaxed) {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = told(&mut self.stopped) => {}
                () = tokio::time::sleep(lifetime) => {}
                () = silent => {}
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = ending => {
                connection.as_mut().graceful_shutdown();
                match tokio::time::timeout(lifetime, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return tracing::debug!(peer = %address, "connection closed, since it would not end"),
                }
            }
        };
        if let Err(e) = ended {
            tracing::debug!(peer = %address, "connection failed: {e}");
        }
    }
}

fn builder(head: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head).max_buf_size(MAX_HEAD as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD)
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    builder
}

/// A token of 1 MiB would fit nowhere; 128 KiB hold the tokens of TEEs with event logs.
const MAX_HEAD: u32 = 160 * 1024;
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 128;
/// After how long a silent HTTP/2 client is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Body, full};
    use hyper::Response;
    use prometheus_client::registry::Registry;
    use tokio::io::AsyncWriteExt as _;

    struct Nothing;

    impl Handler for Nothing {
        async fn answer(&self, _: Peer, _: Request<Incoming>) -> Response<Body> {
            Response::new(full(vec![b' '; 1000]))
        }
    }

    fn service(limits: Limits) -> (Service<Nothing>, watch::Sender<bool>) {
        let (stopping, stopped) = watch::channel(false);
        let metrics = Metrics::new("test", &mut Registry::default());
        (Service { handler: Arc::new(Nothing), tls: None, metrics, stopped, limits }, stopping)
    }

    fn peer() -> Peer {
        Peer { address: ([127, 0, 0, 1], 1).into(), certificate: None }
    }

    #[tokio::test]
    async fn a_client_that_reads_no_answers_does_not_stay() {
        let limits = Limits { head: Duration::from_secs(60), lifetime: Duration::from_millis(50) };
        let (service, _stopping) = service(limits);
        let (mut client, server) = tokio::io::duplex(64);

        let serving = tokio::spawn(service.http(server, peer()));
        let flood = async { while client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.is_ok() {} };

        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(flood, serving).1 }).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_or_half_a_preface_does_not_stay() {
        for said in ["", "PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HT"] {
            let limits = Limits { head: Duration::from_millis(50), lifetime: Duration::from_secs(1) };
            let (service, _stopping) = service(limits);
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(said.as_bytes()).await.unwrap();
            let serving = service.http(server, peer());
            tokio::time::timeout(Duration::from_secs(60), serving).await.expect("it stayed");
        }
    }
}
