//! The plugin `external` against backends over gRPC, in plain text, TLS and mutual TLS.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use plugins::{Access, Error, Kind, Output, Plugin, Request};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use store::Store;
use store::clock::Clock;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Response, Status};
use wire_grpc::plugin::kbs_plugin_server::{KbsPlugin, KbsPluginServer};
use wire_grpc::plugin::{NeedsEncryptionResponse, PluginRequest, PluginResponse, ValidateAuthResponse};

#[tokio::test]
async fn a_backend_sees_the_request_and_says_who_may_send_it() {
    let served = Served::start(None, ANY).await;
    let plugin = open(&format!("name = 'echo', endpoint = 'http://{}'", served.address)).await.unwrap();
    assert_eq!(plugin.name(), "external");

    let query = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    let body = Bytes::from_static(b"\xff body");
    let request = |method, path| Request { method, path, query: &query, body: &body };

    assert_eq!(plugin.access(&request("GET", &["echo", "x"])).await.unwrap(), Access::Guest);
    assert_eq!(plugin.access(&request("POST", &["echo", "x"])).await.unwrap(), Access::Administrator);

    let output = plugin.handle(&request("GET", &["echo", "x", "y"]), None).await.unwrap();
    assert_eq!(output.body.as_slice(), b"GET [\"x\", \"y\"] a=1 \xff body");
    assert!(output.encrypted);
    let output = plugin.handle(&request("POST", &["echo"]), None).await.unwrap();
    assert_eq!(output.body.as_slice(), b"POST [] a=1 \xff body");
    assert!(!output.encrypted);
}

#[tokio::test]
async fn a_backends_status_becomes_that_of_the_answer() {
    let served = Served::start(None, ANY).await;
    let plugin = open(&format!("name = 'echo', endpoint = 'http://{}'", served.address)).await.unwrap();
    for (answered, expected) in [("0", 200), ("200", 200), ("204", 204), ("299", 299)] {
        assert_eq!(get(&*plugin, &["echo", "status", answered]).await.unwrap().status, expected);
    }
    for (answered, status, kind) in [
        ("404", 404, Kind::NotFound),
        ("400", 400, Kind::BadRequest),
        ("401", 403, Kind::Forbidden),
        ("409", 409, Kind::Conflict),
        ("503", 503, Kind::Unavailable),
        ("500", 500, Kind::Internal),
        ("302", 500, Kind::Internal),
        ("100", 500, Kind::Internal),
        ("-1", 500, Kind::Internal),
        ("70000", 500, Kind::Internal),
    ] {
        let error = get(&*plugin, &["echo", "status", answered]).await.unwrap_err();
        assert_eq!((error.status(), error.kind()), (status, kind), "{answered}: {error}");
    }
    let error = get(&*plugin, &["echo", "status", "404"]).await.unwrap_err();
    assert!(error.to_string().contains("answered 404: because\\nof it"), "{error}");
    for (code, status) in [("not-found", 404), ("invalid-argument", 400), ("unavailable", 503), ("internal", 500)] {
        let error = get(&*plugin, &["echo", "code", code]).await.unwrap_err();
        assert_eq!(error.status(), status, "{code}: {error}");
    }
}

#[tokio::test]
async fn what_is_too_large_or_has_no_backend_is_refused() {
    let served = Served::start(None, ANY).await;
    let plugin = open(&format!("name = 'echo', endpoint = 'http://{}'", served.address)).await.unwrap();
    for path in [&[][..], &["other"], &["..", "echo"]] {
        let error = get(&*plugin, path).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{path:?}: {error}");
    }
    let (query, body) = (BTreeMap::new(), Bytes::from(vec![0; 8 << 20]));
    let request = Request { method: "POST", path: &["echo"], query: &query, body: &body };
    assert_eq!(plugin.access(&request).await.unwrap_err().status(), 413);
    assert_eq!(plugin.handle(&request, None).await.unwrap_err().status(), 413);

    let body = body.slice(..7 << 20);
    let request = Request { body: &body, ..request };
    assert!(plugin.handle(&request, None).await.unwrap().body.len() > 7 << 20);
    let error = get(&*plugin, &["echo", "large"]).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_told_within_its_time() {
    let served = Served::start(None, ANY).await;
    let backend = format!("name = 'echo', endpoint = 'http://{}', timeout_ms = 300", served.address);
    let plugin = open(&backend).await.unwrap();
    let error = get(&*plugin, &["echo", "never"]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("300 ms"), "{error}");
}

#[tokio::test]
async fn a_backend_may_start_late_and_come_back() {
    // An address of this process alone, so that nobody takes the port meanwhile.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let own = SocketAddr::from(([127, 77, high, low], 0));
    let address = Served::start(None, own).await.stop().await;
    let plugin = open(&format!("name = 'echo', endpoint = 'http://{address}'")).await.unwrap();
    let error = get(&*plugin, &["echo"]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");

    for _ in 0..2 {
        let served = Served::start(None, address).await;
        assert!(get(&*plugin, &["echo"]).await.is_ok());
        served.stop().await;
        assert_eq!(get(&*plugin, &["echo"]).await.unwrap_err().kind(), Kind::Unavailable);
    }
}

#[tokio::test]
async fn a_backend_is_known_by_its_authority() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let served = Served::start(Some(right.tls()), ANY).await;
    let endpoint = format!("name = 'echo', endpoint = 'https://localhost:{}'", served.address.port());

    let plugin = open(&format!("{endpoint}, ca_cert_path = '{}'", right.file("ca.pem").display())).await.unwrap();
    assert!(get(&*plugin, &["echo"]).await.is_ok());

    let plugin = open(&format!("{endpoint}, ca_cert_path = '{}'", wrong.file("ca.pem").display())).await.unwrap();
    let error = get(&*plugin, &["echo"]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn a_backend_may_demand_a_certificate_of_the_broker() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let demanding = right.tls().client_ca_root(Certificate::from_pem(right.issuer.pem()));
    let served = Served::start(Some(demanding), ANY).await;
    let endpoint = format!(
        "name = 'echo', endpoint = 'https://localhost:{}', ca_cert_path = '{}'",
        served.address.port(),
        right.file("ca.pem").display()
    );
    let with = |authority: &Authority| {
        let (certificate, key) = (authority.file("client.pem"), authority.file("client.key"));
        format!("{endpoint}, client_cert_path = '{}', client_key_path = '{}'", certificate.display(), key.display())
    };

    assert!(get(&*open(&with(&right)).await.unwrap(), &["echo"]).await.is_ok());
    for refused in [endpoint.clone(), with(&wrong)] {
        let error = get(&*open(&refused).await.unwrap(), &["echo"]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    }
}

#[tokio::test]
async fn a_replaced_authority_is_read_again() {
    let (right, wrong) = (Authority::new(), Authority::new());
    let served = Served::start(Some(right.tls()), ANY).await;
    let file = wrong.file("ca.pem");
    let endpoint = format!("name = 'echo', endpoint = 'https://localhost:{}'", served.address.port());
    let plugin = open(&format!("{endpoint}, ca_cert_path = '{}'", file.display())).await.unwrap();
    assert!(get(&*plugin, &["echo"]).await.is_err());

    std::fs::write(&file, right.issuer.pem()).unwrap();
    let answered = async { while get(&*plugin, &["echo"]).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), answered).await.expect("the new authority is taken");
}

/// A backend that answers what it was asked.
struct Echo;

#[tonic::async_trait]
impl KbsPlugin for Echo {
    async fn handle(&self, request: tonic::Request<PluginRequest>) -> Result<Response<PluginResponse>, Status> {
        let PluginRequest { body, query, path, method } = request.into_inner();
        let answer = |status_code, body: Vec<u8>| {
            Ok(Response::new(PluginResponse { body: body.into(), status_code, content_type: String::new() }))
        };
        match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["status", status] => answer(status.parse().unwrap(), b"because\nof it".to_vec()),
            ["code", "not-found"] => Err(Status::not_found("it is not there")),
            ["code", "invalid-argument"] => Err(Status::invalid_argument("it is wrong")),
            ["code", "unavailable"] => Err(Status::unavailable("it is closed")),
            ["code", "internal"] => Err(Status::internal("it is broken")),
            ["large"] => answer(200, vec![0; 9 << 20]),
            ["never"] => std::future::pending().await,
            _ => {
                let query: Vec<String> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let text = format!("{method} {path:?} {} ", query.join("&"));
                answer(200, [text.as_bytes(), &body].concat())
            }
        }
    }

    async fn validate_auth(
        &self,
        request: tonic::Request<PluginRequest>,
    ) -> Result<Response<ValidateAuthResponse>, Status> {
        Ok(Response::new(ValidateAuthResponse { requires_admin_auth: request.into_inner().method == "POST" }))
    }

    async fn needs_encryption(
        &self,
        request: tonic::Request<PluginRequest>,
    ) -> Result<Response<NeedsEncryptionResponse>, Status> {
        let requires_payload_encryption = request.into_inner().method == "GET";
        Ok(Response::new(NeedsEncryptionResponse { requires_payload_encryption }))
    }
}

/// A running backend.
struct Served {
    address: SocketAddr,
    end: oneshot::Sender<()>,
    serving: JoinSet<()>,
}

impl Served {
    async fn start(tls: Option<ServerTlsConfig>, address: SocketAddr) -> Self {
        let incoming = TcpIncoming::bind(address).unwrap();
        let address = incoming.local_addr().unwrap();
        let service =
            KbsPluginServer::new(Echo).max_decoding_message_size(16 << 20).max_encoding_message_size(16 << 20);
        let mut server = Server::builder();
        if let Some(tls) = tls {
            server = server.tls_config(tls).unwrap();
        }
        let router = server.add_service(service);
        let (end, ended) = oneshot::channel();
        let ended = async { ended.await.unwrap_or_default() };
        let mut serving = JoinSet::new();
        serving.spawn(async { router.serve_with_incoming_shutdown(incoming, ended).await.unwrap() });
        Self { address, end, serving }
    }

    /// Ends it with its connections.
    async fn stop(self) -> SocketAddr {
        self.end.send(()).unwrap();
        self.serving.join_all().await;
        self.address
    }
}

/// An authority with certificates for a server and a client.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        let (certificate, key) = Self::issue(&issuer, "broker");
        for (name, text) in [("ca.pem", issuer.pem()), ("client.pem", certificate), ("client.key", key)] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self { issuer, folder }
    }

    fn issue(issuer: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    }

    fn tls(&self) -> ServerTlsConfig {
        let (certificate, key) = Self::issue(&self.issuer, "localhost");
        ServerTlsConfig::new().identity(Identity::from_pem(certificate, key))
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::new(self.folder.path()).join(name)
    }
}

async fn open(backend: &str) -> Result<Arc<dyn Plugin>, Error> {
    let config = toml::from_str(&format!("name = 'external'\nbackends = [{{ {backend} }}]")).unwrap();
    plugins::open(config, Store::memory().await.unwrap(), Clock::system()).await
}

async fn get(plugin: &dyn Plugin, path: &[&str]) -> Result<Output, Error> {
    let (query, body) = (BTreeMap::new(), Bytes::new());
    plugin.handle(&Request { method: "GET", path, query: &query, body: &body }, None).await
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
