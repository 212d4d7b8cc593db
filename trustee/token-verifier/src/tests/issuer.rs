//! An issuer's HTTPS server, whose answers can be changed while it runs.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::Hands;
use crate::http::Http;
use crate::live::Keeping;

/// A server on 127.0.0.1 that ends with this.
pub(super) struct Issuer {
    pub url: String,
    /// The certificate of its CA in PEM.
    pub ca: String,
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    requests: AtomicUsize,
}

#[derive(Clone)]
struct Answer {
    status: u16,
    header: Option<(&'static str, String)>,
    body: Bytes,
}

impl Issuer {
    pub async fn start() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&pair).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared { answers: Mutex::default(), requests: AtomicUsize::new(0) });
        let served = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, served) = (acceptor.clone(), served.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request| answer(served.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { url, ca: certificate.pem(), shared, task: task.abort_handle() }
    }

    /// Answers a path with a document from now on.
    pub fn serve(&self, path: &str, body: impl Into<Bytes>) {
        self.answer(path, Answer { status: 200, header: None, body: body.into() });
    }

    /// Answers a path with a document that may be kept so long.
    pub fn serve_for(&self, path: &str, body: impl Into<Bytes>, cache_control: &str) {
        let header = Some(("cache-control", cache_control.to_owned()));
        self.answer(path, Answer { status: 200, header, body: body.into() });
    }

    /// Answers a path with a failure.
    pub fn fail(&self, path: &str) {
        self.answer(path, Answer { status: 503, header: None, body: Bytes::new() });
    }

    /// Sends whoever asks for a path elsewhere.
    pub fn redirect(&self, path: &str, to: &str) {
        self.answer(path, Answer { status: 302, header: Some(("location", to.to_owned())), body: Bytes::new() });
    }

    /// How often anything was asked for.
    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// What keeping keys takes, with trust in this server.
    pub fn keeping(&self, hands: &Hands) -> Keeping {
        Keeping::new(Http::new(Some(self.ca.as_bytes())).unwrap(), hands.clock())
    }

    fn answer(&self, path: &str, answer: Answer) {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), answer);
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let known = shared.answers.lock().unwrap().get(request.uri().path()).cloned();
    let answer = known.unwrap_or(Answer { status: 404, header: None, body: Bytes::new() });
    let mut response = Response::builder().status(answer.status);
    if let Some((name, value)) = answer.header {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(answer.body)).unwrap())
}
