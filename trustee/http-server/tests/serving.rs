//! A server on real sockets: TLS that renews itself, client certificates, HTTP/2, and a drained end.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use http_server::profile::TlsProfile;
use http_server::{Body, Handler, Metrics, Peer, Tls, TlsFiles, bind, full, serve};
use hyper::body::{Frame, Incoming};
use hyper::{HeaderMap, Request, Response};
use prometheus_client::registry::Registry;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use reqwest::{Certificate, Client, Identity};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;

/// Answers with the client's name, or waits until told to go on.
#[derive(Default)]
struct Echo {
    entered: Notify,
    go_on: Notify,
}

impl Handler for Echo {
    async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/slow" => {
                self.entered.notify_one();
                self.go_on.notified().await;
                Response::new(full("slow"))
            }
            "/grpc" => {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let trailers = std::future::ready(Some(Ok::<_, http_server::BoxError>(trailers)));
                Response::new(full(body).with_trailers(trailers).boxed_unsync())
            }
            _ => {
                let name = peer.certificate.map_or("nobody".to_owned(), |certificate| {
                    format!(
                        "{} {}",
                        certificate.subject.as_deref().unwrap_or("?"),
                        certificate.alternative_names.join(",")
                    )
                });
                Response::new(full(name))
            }
        }
    }
}

struct Server {
    address: String,
    handler: Arc<Echo>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(tls: Option<Tls>) -> Self {
        let listener = bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let metrics = Metrics::new("test", &mut Registry::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let handler = Arc::new(Echo::default());
        let stopped = async { _ = stopped.await };
        let serving = tokio::spawn(serve(handler.clone(), vec![listener], tls, metrics, stopped));
        Self { address, handler, stop: Some(stop), serving }
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        soon(self.serving).await.unwrap();
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key.
    fn issue(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    /// Puts a server's identity into a folder.
    fn identity(&self, folder: &Path, name: &str) -> TlsFiles {
        let (certificate, key) = self.issue(name);
        std::fs::write(folder.join("tls.crt"), certificate).unwrap();
        std::fs::write(folder.join("tls.key"), key).unwrap();
        TlsFiles {
            certificate: folder.join("tls.crt"),
            private_key: folder.join("tls.key"),
            client_ca: None,
            require_client_certificate: true,
        }
    }

    fn client(&self, identity: Option<(String, String)>) -> Client {
        let authority = Certificate::from_pem(self.0.pem().as_bytes()).unwrap();
        let mut builder = Client::builder().tls_certs_only([authority]).pool_max_idle_per_host(0);
        if let Some((certificate, key)) = identity {
            builder = builder.identity(Identity::from_pem(format!("{certificate}{key}").as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it took too long")
}

fn provider() {
    // Another test of this process may have installed it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_and_no_request_fails_meanwhile() {
    provider();
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let tls = Tls::new(old.identity(folder.path(), "server"), TlsProfile::default()).unwrap();
    let server = Server::start(Some(tls)).await;
    let url = format!("https://{}/", server.address);
    let both = Client::builder()
        .tls_certs_only([old.0.pem(), new.0.pem()].map(|pem| Certificate::from_pem(pem.as_bytes()).unwrap()))
        .pool_max_idle_per_host(0)
        .build()
        .unwrap();
    // Kept open over the change.
    let open = old.client(None);

    // Certificate and key are written one after the other: what lies there between doesn't fit.
    new.identity(folder.path(), "server");
    let renewed = new.client(None);
    soon(async {
        loop {
            assert_eq!(both.get(&url).send().await.unwrap().text().await.unwrap(), "nobody");
            if renewed.get(&url).send().await.is_ok() {
                break;
            }
        }
    })
    .await;
    assert!(open.get(&url).send().await.is_err(), "the old certificate is still shown");

    // Garbage changes nothing.
    std::fs::write(folder.path().join("tls.crt"), "garbage").unwrap();
    for _ in 0..50 {
        assert!(renewed.get(&url).send().await.is_ok());
    }
    server.stop().await;
}

#[tokio::test]
async fn clients_are_known_by_their_certificates_and_strangers_are_refused() {
    provider();
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    std::fs::write(folder.path().join("ca.pem"), ours.0.pem()).unwrap();
    for required in [true, false] {
        let files = TlsFiles {
            client_ca: Some(folder.path().join("ca.pem")),
            require_client_certificate: required,
            ..ours.identity(folder.path(), "server")
        };
        let server = Server::start(Some(Tls::new(files, TlsProfile::default()).unwrap())).await;
        let url = format!("https://{}/", server.address);

        let known = ours.client(Some(ours.issue("kim"))).get(&url).send().await.unwrap().text().await.unwrap();
        assert_eq!(known, "kim localhost,127.0.0.1");
        let stranger = ours.client(Some(theirs.issue("kim"))).get(&url).send().await;
        assert!(stranger.is_err());
        let anonymous = ours.client(None).get(&url).send().await;
        assert_eq!(anonymous.is_err(), required);
        server.stop().await;
    }
}

#[tokio::test]
async fn http_2_is_spoken_without_tls_and_with_trailers() {
    let server = Server::start(None).await;
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let request = hyper::Request::post(format!("http://{}/grpc", server.address));
    let request = request.body(http_body_util::Full::new(bytes::Bytes::from_static(b"ping"))).unwrap();
    let stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let mut body = soon(sender.send_request(request)).await.unwrap().into_body();
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        frames.push(frame.unwrap());
    }
    assert_eq!(frames[0].data_ref().unwrap().as_ref(), b"ping");
    assert_eq!(frames.last().and_then(Frame::trailers_ref).unwrap()["grpc-status"], "0");

    let plain = client.get(format!("http://{}/", server.address)).send().await.unwrap();
    assert_eq!(plain.version(), reqwest::Version::HTTP_2);
    let old = Client::builder().http1_only().build().unwrap();
    let old = old.get(format!("http://{}/", server.address)).send().await.unwrap();
    assert_eq!(old.version(), reqwest::Version::HTTP_11);
    drop(sender);
    let _ = soon(connection).await;
    server.stop().await;
}

#[tokio::test]
async fn http_2_is_agreed_on_over_tls() {
    provider();
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let tls = Tls::new(authority.identity(folder.path(), "server"), TlsProfile::default()).unwrap();
    let server = Server::start(Some(tls)).await;
    let response = authority.client(None).get(format!("https://{}/", server.address)).send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    drop(response);
    server.stop().await;
}

#[tokio::test]
async fn a_request_in_progress_ends_before_the_server_does_and_no_new_one_begins() {
    let server = Server::start(None).await;
    let url = format!("http://{}/slow", server.address);
    let slow = tokio::spawn(async move { Client::new().get(url).send().await.unwrap().text().await.unwrap() });
    soon(server.handler.entered.notified()).await;

    let (address, handler) = (server.address.clone(), server.handler.clone());
    let stopping = tokio::spawn(server.stop());
    // The listener is closed at once.
    soon(async {
        while tokio::net::TcpStream::connect(&address).await.is_ok() {
            tokio::task::yield_now().await
        }
    })
    .await;
    assert!(!slow.is_finished());
    handler.go_on.notify_one();
    assert_eq!(soon(slow).await.unwrap(), "slow");
    soon(stopping).await.unwrap();
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_and_large_tokens_are_not() {
    let server = Server::start(None).await;
    for (length, expected) in [(120 << 10, "HTTP/1.1 200"), (200 << 10, "HTTP/1.1 431")] {
        let mut stream = tokio::net::TcpStream::connect(&server.address).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nauthorization: {}\r\n\r\n", "t".repeat(length));
        // The server may close before it has read everything.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut status = [0; 12];
        soon(stream.read_exact(&mut status)).await.unwrap();
        assert_eq!(std::str::from_utf8(&status).unwrap(), expected);
    }
    server.stop().await;
}

#[tokio::test]
async fn an_identity_that_can_t_be_used_is_refused_before_anything_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let files = authority.identity(folder.path(), "server");
    let refused = |files: &TlsFiles| Tls::new(files.clone(), TlsProfile::default()).err().unwrap().to_string();

    std::fs::write(&files.private_key, authority.issue("other").1).unwrap();
    assert!(refused(&files).contains("belong together"));
    std::fs::write(&files.private_key, "garbage").unwrap();
    assert!(refused(&files).contains("tls.key"));
    std::fs::remove_file(&files.certificate).unwrap();
    assert!(refused(&files).contains("tls.crt"));
}
