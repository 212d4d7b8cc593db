//! The laboratory of the cases beside this file: a broker with an owner, and guests of the sample TEE, without a socket.

mod administration;
mod guests;
mod tenants;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use ::attestation::verifier::Enabled;
use ::attestation::{AttestationService, Settings as AttestationSettings};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reference_values::{ReferenceValues, Settings as ReferenceSettings};
use serde_json::{Value, json};
use token_verifier::{AdminTokens, Http, IdentityProvider, KeySource};
use wire::jwe::{Jwe, TeeKey};
use wire::rcar::{Attestation, ErrorInformation, HashAlgorithm, RuntimeData, TeeEvidence};

use super::*;
use crate::admin::{Authenticated, Rule};
use crate::attester::Service;

const START: u64 = 2_000_000_000;

/// A broker with an owner, on a store that other brokers can share.
struct Bench {
    broker: Arc<Broker>,
    store: Store,
    seconds: Arc<AtomicU64>,
    owner: Arc<Owner>,
    directory: tempfile::TempDir,
}

/// Whose tokens administrators have.
struct Owner {
    signing: EncodingKey,
    public: String,
}

impl Bench {
    async fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = STANDARD.encode(pair.public_key().as_der().unwrap().as_ref());
        let public = format!("-----BEGIN PUBLIC KEY-----\n{public}\n-----END PUBLIC KEY-----\n");
        let signing = EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref());
        let owner = Arc::new(Owner { signing, public });
        Self::on(Store::memory().await.unwrap(), Arc::new(AtomicU64::new(START)), owner, true).await
    }

    async fn replica(&self, sample_verifier: bool) -> Self {
        Self::on(self.store.clone(), self.seconds.clone(), self.owner.clone(), sample_verifier).await
    }

    async fn on(store: Store, seconds: Arc<AtomicU64>, owner: Arc<Owner>, sample: bool) -> Self {
        Self::with(store, seconds, owner, sample, None).await
    }

    /// A broker that has evidence verified by another service than its own.
    async fn by(service: Service) -> Self {
        let Self { store, seconds, owner, .. } = Self::new().await;
        Self::with(store, seconds, owner, true, Some(service)).await
    }

    async fn with(
        store: Store,
        seconds: Arc<AtomicU64>,
        owner: Arc<Owner>,
        sample: bool,
        other: Option<Service>,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = Clock::set_by(seconds.clone());
        let unsigned = ReferenceSettings { allow_unsigned: true, ..ReferenceSettings::default() };
        let reference_values = ReferenceValues::load(store.clone(), clock.clone(), unsigned).await.unwrap();
        let settings = AttestationSettings { enabled: Enabled { sample }, ..AttestationSettings::default() };
        let source = Arc::new(reference_values.clone());
        let service = AttestationService::load(store.clone(), source, settings, clock.clone()).await.unwrap();
        let parts = Parts {
            store: store.clone(),
            clock: clock.clone(),
            attester: Attester::new(other.unwrap_or(Service::BuiltIn(service)), None),
            reference_values: Provider::BuiltIn(reference_values),
            backend: resource_backends::open(Default::default(), store.clone(), clock.clone()).await.unwrap(),
            plugins: Vec::new(),
            admin: admin(directory.path(), &owner.public, clock).await,
            tenants: Tenants::new(["blue", "red"]).unwrap(),
            registry: Arc::default(),
            settings: Settings {
                audit: directory.path().join("audit.jsonl"),
                session_lifetime: Duration::from_secs(300),
                tls: true,
                max_body: 2 << 20,
                tee_key_paths: Vec::new(),
                rsa1_5: false,
                metrics_for_administrators: false,
                policy_ids: BTreeMap::from([("strict".to_owned(), "tight".to_owned())]),
            },
        };
        let broker = Arc::new(Broker::assemble(parts).await.unwrap());
        Self { broker, store, seconds, owner, directory }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        Answer::read(self.broker.answer(Ipv4Addr::LOCALHOST.into(), request).await).await
    }

    fn token(&self, claims: &Value) -> String {
        format!("Bearer {}", encode(&Header::new(Algorithm::EdDSA), claims, &self.owner.signing).unwrap())
    }

    async fn administer(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        self.administer_as("admin", method, path, &[], body).await
    }

    async fn administer_as(
        &self,
        role: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let token = self.token(&json!({ "exp": START + 1_000_000, "role": role, "sub": "kim" }));
        let headers = [headers, &[("authorization", token.as_str())]].concat();
        self.send(method, &format!("/kbs/v0/{path}"), &headers, body).await
    }

    async fn set_resource_policy(&self, rules: &str) {
        let set = self.administer("POST", "resource-policy", policy(rules)).await;
        assert_eq!(set.status, StatusCode::OK);
    }

    fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.path().join("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn pass(&self, seconds: u64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }
}

async fn admin(directory: &std::path::Path, public: &str, clock: Clock) -> Admin {
    let key = directory.join("admin.pub");
    std::fs::write(&key, public).unwrap();
    let provider = IdentityProvider { issuer: None, audience: None, source: KeySource::Pem(key) };
    let tokens = AdminTokens::new(vec![provider], Http::new(None).unwrap(), clock).await.unwrap();
    let tenant = |name| Some(crate::tenants::Tenant::parse(name).unwrap());
    let rule =
        |role: &str, methods: &[String], tenant| Rule::new(role.to_owned(), "^/kbs/v0/.*$", methods, tenant).unwrap();
    let rules = vec![
        rule("admin", &[], None),
        rule("reader", &["GET".to_owned()], None),
        rule("blue", &[], tenant("blue")),
        rule("red", &[], tenant("red")),
    ];
    Admin::Authenticated(Box::new(Authenticated::new(tokens, rules).unwrap()))
}

fn policy(rules: &str) -> String {
    json!({ "policy": URL_SAFE_NO_PAD.encode(format!("package policy\n{rules}")) }).to_string()
}

struct Answer {
    status: StatusCode,
    cookie: Option<String>,
    etag: Option<String>,
    body: Bytes,
}

impl Answer {
    async fn read(response: Response<Full<Bytes>>) -> Self {
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (cookie, etag) = (header("set-cookie"), header("etag"));
        let status = response.status();
        Self { status, cookie, etag, body: response.into_body().collect().await.unwrap().to_bytes() }
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn refusal(&self) -> (u16, String, String) {
        let information: ErrorInformation = serde_json::from_slice(&self.body).unwrap();
        (self.status.as_u16(), information.variant().to_owned(), information.detail)
    }
}

/// A guest of the sample TEE in the middle of its handshake.
struct Guest {
    key: TeeKey,
    nonce: String,
    cookie: String,
}

impl Guest {
    async fn challenged(bench: &Bench) -> Self {
        Self::challenged_with(bench, json!("")).await
    }

    async fn challenged_with(bench: &Bench, extra_params: Value) -> Self {
        let request = json!({ "version": "0.4.0", "tee": "sample", "extra-params": extra_params });
        let answer = bench.send("POST", "/kbs/v0/auth", &[], request.to_string()).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json()["extra-params"], "");
        let nonce = answer.json()["nonce"].as_str().unwrap().to_owned();
        assert_eq!(STANDARD.decode(&nonce).unwrap().len(), 32);
        Self { key: TeeKey::generate().unwrap(), nonce, cookie: pair(&answer) }
    }

    fn attestation(&self) -> Attestation {
        let runtime_data = RuntimeData { nonce: self.nonce.clone(), tee_pubkey: self.key.public_jwk().unwrap() };
        let report_data = STANDARD.encode(runtime_data.report_data("", HashAlgorithm::Sha384).unwrap());
        let primary_evidence = json!({ "svn": "1", "report_data": report_data });
        let tee_evidence = TeeEvidence { primary_evidence, additional_evidence: String::new() };
        Attestation { init_data: None, runtime_data, tee_evidence }
    }

    async fn attest(&self, bench: &Bench, attestation: &Attestation) -> Answer {
        let body = serde_json::to_vec(attestation).unwrap();
        bench.send("POST", "/kbs/v0/attest", &[("cookie", &self.cookie)], body).await
    }

    /// A guest with a token, and its session.
    async fn attested(bench: &Bench) -> (Self, String) {
        let guest = Self::challenged(bench).await;
        let answer = guest.attest(bench, &guest.attestation()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.body));
        let token = answer.json()["token"].as_str().unwrap().to_owned();
        (Self { cookie: pair(&answer), ..guest }, token)
    }

    async fn get(&self, bench: &Bench, path: &str) -> Answer {
        bench.send("GET", &format!("/kbs/v0/resource/{path}"), &[("cookie", &self.cookie)], Bytes::new()).await
    }

    fn open(&self, answer: &Answer) -> Vec<u8> {
        let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
        self.key.open(&jwe).unwrap().to_vec()
    }
}

fn pair(answer: &Answer) -> String {
    answer.cookie.as_ref().unwrap().split(';').next().unwrap().to_owned()
}

fn reference(detail: &str) -> String {
    let (_, rest) = detail.split_once("reference ").unwrap();
    rest.chars().take_while(char::is_ascii_alphanumeric).collect()
}
