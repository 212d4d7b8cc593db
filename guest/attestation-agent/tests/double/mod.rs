//! A key broker for tests: speaks RCAR, checks what evidence is bound to, and seals resources to the attested key.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use wire::evidence::SampleEvidence;
use wire::jwe::TeePublicKey;
use wire::rcar::{Attestation, Challenge, ErrorInformation, HashAlgorithm, Request, Tee, VERSION};

/// Ends with the test: its connections are tasks of the test's runtime.
pub struct KbsDouble {
    pub address: SocketAddr,
    /// PEM of the CA, if it speaks TLS.
    pub ca: Option<String>,
    broker: Arc<Broker>,
}

impl KbsDouble {
    pub async fn start() -> Self {
        Self::listen(Faults::default(), None).await
    }

    pub async fn with_faults(faults: Faults) -> Self {
        Self::listen(faults, None).await
    }

    /// Speaks TLS for `127.0.0.1` with a certificate of a CA of its own.
    pub async fn with_tls() -> Self {
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "CA of the double");
        let pem = ca.self_signed(&ca_key).unwrap().pem();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();

        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .unwrap();
        Self::listen(Faults::default(), Some((pem, TlsAcceptor::from(Arc::new(config))))).await
    }

    pub fn url(&self) -> String {
        format!("{}://{}", if self.ca.is_some() { "https" } else { "http" }, self.address)
    }

    pub fn put(&self, path: &str, resource: &[u8]) {
        self.broker.resources.lock().unwrap().insert(path.to_owned(), resource.to_vec());
    }

    /// Policy denies `path` from now on, with upstream's or the right status.
    pub fn deny(&self, path: &str, status: u16) {
        self.broker.denied.lock().unwrap().insert(path.to_owned(), status);
    }

    /// Forgets every token that it has issued.
    pub fn revoke_tokens(&self) {
        self.broker.tokens.lock().unwrap().clear();
    }

    /// Handshakes that led to a token.
    pub fn handshakes(&self) -> usize {
        self.broker.handshakes.load(Ordering::SeqCst)
    }

    /// Challenges given.
    pub fn challenges(&self) -> usize {
        self.broker.challenges.load(Ordering::SeqCst)
    }

    /// What was sent to `/auth` and `/attest`, as it came.
    pub fn transcript(&self) -> Vec<(&'static str, Value)> {
        self.broker.transcript.lock().unwrap().clone()
    }

    pub fn last_attestation(&self) -> Attestation {
        self.broker.last_attestation.lock().unwrap().clone().unwrap()
    }

    /// What the attestation service was asked last.
    pub fn last_verification(&self) -> Value {
        self.broker.last_verification.lock().unwrap().clone()
    }

    pub fn user_agent(&self) -> String {
        self.broker.user_agent.lock().unwrap().clone()
    }

    async fn listen(faults: Faults, tls: Option<(String, TlsAcceptor)>) -> Self {
        let (drop_first, broker) = (faults.drop_connections, Arc::new(Broker { faults, ..Broker::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ca, acceptor) = tls.unzip();
        let router = router(Arc::clone(&broker));
        tokio::spawn(async move {
            for _ in 0..drop_first {
                drop(listener.accept().await.unwrap());
            }
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(router.clone());
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = match acceptor {
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                        Some(acceptor) => match acceptor.accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => Ok(()),
                        },
                    };
                });
            }
        });
        Self { address, ca, broker }
    }
}

/// What goes wrong.
#[derive(Default)]
pub struct Faults {
    /// Connections that are closed before a word.
    pub drop_connections: usize,
    /// What `/attest` refuses with.
    pub refuse_attest: Option<String>,
    /// `/auth` answers this instead of a challenge.
    pub auth_answers: Option<(u16, &'static str)>,
    /// No token is ever accepted.
    pub forget_tokens: bool,
    /// Resources come in clear.
    pub forget_to_seal: bool,
}

#[derive(Default)]
struct Broker {
    faults: Faults,
    handshakes: AtomicUsize,
    challenges: AtomicUsize,
    nonces: Mutex<HashMap<String, String>>,
    tokens: Mutex<HashMap<String, Value>>,
    resources: Mutex<HashMap<String, Vec<u8>>>,
    denied: Mutex<HashMap<String, u16>>,
    transcript: Mutex<Vec<(&'static str, Value)>>,
    last_attestation: Mutex<Option<Attestation>>,
    last_verification: Mutex<Value>,
    user_agent: Mutex<String>,
}

impl Broker {
    fn note(&self, call: &'static str, body: &[u8]) {
        self.transcript.lock().unwrap().push((call, serde_json::from_slice(body).unwrap()));
    }
}

fn router(broker: Arc<Broker>) -> Router {
    Router::new()
        .route("/kbs/v0/auth", post(auth))
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/{*path}", get(resource))
        .route("/attestation", post(attestation_service))
        .with_state(broker)
}

async fn auth(State(broker): State<Arc<Broker>>, headers: HeaderMap, body: Bytes) -> Response {
    broker.note("auth", &body);
    let request: Request = serde_json::from_slice(&body).unwrap();
    assert_eq!((request.version.as_str(), request.tee), (VERSION, Tee::Sample));
    *broker.user_agent.lock().unwrap() = headers["user-agent"].to_str().unwrap().to_owned();
    let session = broker.challenges.fetch_add(1, Ordering::SeqCst);
    if let Some((status, body)) = broker.faults.auth_answers {
        return (StatusCode::from_u16(status).unwrap(), body).into_response();
    }
    let nonce = STANDARD.encode(format!("{session:032}"));
    broker.nonces.lock().unwrap().insert(format!("s{session}"), nonce.clone());
    let challenge = Challenge { nonce, extra_params: json!("") };
    let cookies = [("set-cookie", format!("kbs-session-id=s{session}; HttpOnly; Path=/"))];
    (cookies, serde_json::to_string(&challenge).unwrap()).into_response()
}

async fn attest(State(broker): State<Arc<Broker>>, headers: HeaderMap, body: Bytes) -> Response {
    let cookie = headers["cookie"].to_str().unwrap();
    let session = cookie.strip_prefix("kbs-session-id=").unwrap();
    let nonce = broker.nonces.lock().unwrap().remove(session).unwrap();
    broker.note("attest", &body);
    let attestation: Attestation = serde_json::from_slice(&body).unwrap();
    if let Some(detail) = &broker.faults.refuse_attest {
        return refusal(401, "RcarAttestFailed", detail);
    }

    let evidence: SampleEvidence = serde_json::from_value(attestation.tee_evidence.primary_evidence.clone()).unwrap();
    let expected = attestation
        .runtime_data
        .report_data(&attestation.tee_evidence.additional_evidence, HashAlgorithm::Sha384)
        .unwrap();
    if attestation.runtime_data.nonce != nonce || STANDARD.decode(evidence.report_data).unwrap() != expected {
        return refusal(401, "RcarAttestFailed", "the evidence is not bound to nonce and key");
    }

    // The sample's device, if the guest has it.
    if !attestation.tee_evidence.additional_evidence.is_empty() {
        let devices: HashMap<String, SampleEvidence> =
            serde_json::from_str(&attestation.tee_evidence.additional_evidence).unwrap();
        let expected = attestation.runtime_data.device_report_data(HashAlgorithm::Sha384).unwrap();
        if devices.values().any(|device| STANDARD.decode(&device.report_data).unwrap() != expected) {
            return refusal(401, "RcarAttestFailed", "a device's evidence is not bound to nonce and key");
        }
    }

    let number = broker.handshakes.fetch_add(1, Ordering::SeqCst);
    let claims = json!({ "iat": 1000, "exp": 1300, "jti": number.to_string() });
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
    if !broker.faults.forget_tokens {
        broker.tokens.lock().unwrap().insert(token.clone(), attestation.runtime_data.tee_pubkey.clone());
    }
    *broker.last_attestation.lock().unwrap() = Some(attestation);
    json!({ "token": token }).to_string().into_response()
}

async fn resource(State(broker): State<Arc<Broker>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    let token = headers["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let Some(key) = broker.tokens.lock().unwrap().get(token).cloned() else {
        return refusal(401, "TokenVerifierError", "unknown token");
    };
    if let Some(status) = broker.denied.lock().unwrap().get(&path) {
        return refusal(*status, "PolicyDeny", "the resource policy says no");
    }
    let Some(resource) = broker.resources.lock().unwrap().get(&path).cloned() else {
        return refusal(404, "ResourceNotFound", "no such resource");
    };
    if broker.faults.forget_to_seal {
        return resource.into_response();
    }
    let sealed = TeePublicKey::from_jwk(&key).unwrap().seal(&resource).unwrap();
    serde_json::to_string(&sealed).unwrap().into_response()
}

async fn attestation_service(State(broker): State<Arc<Broker>>, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap();
    *broker.last_verification.lock().unwrap() = request.clone();
    let verification = &request["verification_requests"][0];
    let evidence = URL_SAFE_NO_PAD.decode(verification["evidence"].as_str().unwrap()).unwrap();
    format!("{}:{}", verification["tee"].as_str().unwrap(), String::from_utf8(evidence).unwrap()).into_response()
}

fn refusal(status: u16, variant: &str, detail: &str) -> Response {
    let body = serde_json::to_string(&ErrorInformation::new(variant, detail)).unwrap();
    (StatusCode::from_u16(status).unwrap(), body).into_response()
}
