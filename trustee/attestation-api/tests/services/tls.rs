//! The clients over TLS: whom they trust, what they present, and certificates that are replaced while they run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation_api::{AttestationClient, ClientSettings, Error, grpc_attestation_service};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use wire::rcar::Tee;

use crate::served::*;

/// An authority and the files of its certificates.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Certificate and key in PEM.
    fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// A service that demands a client certificate of an authority.
struct Guarded {
    authority: Authority,
    address: String,
    folder: TempDir,
    _serving: JoinSet<()>,
}

impl Guarded {
    async fn new() -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(certificate, key))
            .client_ca_root(Certificate::from_pem(authority.pem()));
        let bench = Bench::new().await;
        let router = grpc_attestation_service(bench.service.clone(), None, bench.serving());
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = format!("https://localhost:{}", incoming.local_addr().unwrap().port());
        let mut serving = JoinSet::new();
        let server = Server::builder().tls_config(tls).unwrap().add_routes(router.into());
        serving.spawn(async { server.serve_with_incoming(incoming).await.unwrap() });
        Self { authority, address, folder: TempDir::new().unwrap(), _serving: serving }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn identity_of(&self, authority: &Authority) -> (PathBuf, PathBuf) {
        let (certificate, key) = authority.issue("client", ExtendedKeyUsagePurpose::ClientAuth);
        (self.file("client.pem", &certificate), self.file("client.key", &key))
    }

    fn client(&self, ca: &Path, identity: Option<(PathBuf, PathBuf)>) -> AttestationClient {
        let timeout = Duration::from_secs(10);
        let ca = Some(ca.to_owned());
        AttestationClient::connect(ClientSettings {
            address: self.address.clone(),
            pool_size: 1,
            ca,
            identity,
            timeout,
        })
        .unwrap()
    }
}

#[tokio::test]
async fn both_sides_show_a_certificate_of_their_authority() {
    let guarded = Guarded::new().await;
    let ca = guarded.file("ca.pem", &guarded.authority.pem());
    let client = guarded.client(&ca, Some(guarded.identity_of(&guarded.authority)));
    client.challenge(Tee::Snp, "").await.unwrap();
}

#[tokio::test]
async fn strangers_are_not_talked_to() {
    let guarded = Guarded::new().await;
    let (ca, other) = (guarded.file("ca.pem", &guarded.authority.pem()), Authority::new());
    let other_ca = guarded.file("other.pem", &other.pem());
    for client in [
        guarded.client(&ca, None),
        guarded.client(&ca, Some(guarded.identity_of(&other))),
        guarded.client(&other_ca, Some(guarded.identity_of(&guarded.authority))),
    ] {
        let error = client.challenge(Tee::Snp, "").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
}

#[tokio::test]
async fn replaced_certificates_are_used() {
    let guarded = Guarded::new().await;
    let ca = guarded.file("ca.pem", &Authority::new().pem());
    let client = guarded.client(&ca, Some(guarded.identity_of(&guarded.authority)));
    assert!(client.challenge(Tee::Snp, "").await.is_err());

    guarded.file("ca.pem", "neither old nor new");
    guarded.file("ca.pem", &guarded.authority.pem());
    let found = async { while client.challenge(Tee::Snp, "").await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), found).await.unwrap();
}

#[tokio::test]
async fn a_key_that_is_none_is_refused_at_once() {
    let guarded = Guarded::new().await;
    let ca = guarded.file("ca.pem", &guarded.authority.pem());
    let (certificate, key) = guarded.identity_of(&guarded.authority);
    std::fs::write(&key, "no key").unwrap();
    let settings = ClientSettings {
        address: guarded.address.clone(),
        pool_size: 1,
        ca: Some(ca),
        identity: Some((certificate, key)),
        timeout: Duration::from_secs(1),
    };
    assert!(matches!(AttestationClient::connect(settings), Err(Error::Tls { .. })));
}
