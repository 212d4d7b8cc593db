//! Sockets and HTTP of every role of a Trustee: TLS that renews itself, bounds, metrics, traces, and a drained end.
//!
//! [`serve`] puts a [`Handler`] behind listeners. HTTP/1.1 and HTTP/2 are told apart by what the client says first, so
//! that gRPC works on the same socket, with TLS and without.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod metrics;
pub mod profile;
pub mod tls;
pub mod traces;

mod connection;
mod listening;
mod measured;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};

pub use listening::{bind, serve};
pub use metrics::Metrics;
pub use tls::{Tls, TlsFiles};

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request of a client. It is dropped if the client goes away.
    fn answer(&self, peer: Peer, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// Who a request comes from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The other end of the connection.
    pub address: SocketAddr,
    /// The certificate that the client has shown, verified against the server's `client_ca`.
    pub certificate: Option<Arc<ClientCertificate>>,
}

/// Who a client's certificate names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ClientCertificate {
    /// The subject's common name.
    pub subject: Option<String>,
    /// DNS names, addresses, URIs and mail addresses of the subject.
    pub alternative_names: Vec<String>,
}

/// The body of an answer; it may have trailers.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Why a body broke off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is known as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}
