//! The whole API as guests and administrators meet it, without a socket.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, StatusCode};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use wire::jwe::{Jwe, TeeKey};
use wire::rcar::{Attestation, ErrorInformation, HashAlgorithm, RuntimeData, TeeEvidence};

use super::*;
use crate::admin::Authenticated;

const START: u64 = 2_000_000_000;

/// A broker with an owner, on a store that other brokers can share.
struct Bench {
    broker: Broker,
    store: Store,
    seconds: Arc<AtomicU64>,
    signing: Arc<EncodingKey>,
    public: String,
    directory: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let public = STANDARD.encode(pair.public_key().as_der().unwrap().as_ref());
        let public = format!("-----BEGIN PUBLIC KEY-----\n{public}\n-----END PUBLIC KEY-----\n");
        let signing = Arc::new(EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref()));
        let store = Store::memory().await.unwrap();
        Self::on(store, Arc::new(AtomicU64::new(START)), signing, public, true).await
    }

    async fn replica(&self, sample_verifier: bool) -> Self {
        let (store, seconds) = (self.store.clone(), self.seconds.clone());
        Self::on(store, seconds, self.signing.clone(), self.public.clone(), sample_verifier).await
    }

    async fn on(
        store: Store,
        seconds: Arc<AtomicU64>,
        signing: Arc<EncodingKey>,
        public: String,
        sample_verifier: bool,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings {
            storage: directory.path().to_owned(),
            audit: directory.path().join("audit.jsonl"),
            admin: Admin::Authenticated(Box::new(
                Authenticated::new(public.as_bytes(), vec!["admin".to_owned()]).unwrap(),
            )),
            sample_verifier,
            token_lifetime: Duration::from_secs(300),
            tls: true,
        };
        let broker = Broker::assemble(store.clone(), settings, Clock::set_by(seconds.clone())).await.unwrap();
        Self { broker, store, seconds, signing, public, directory }
    }

    async fn send(&self, method: &str, path: &str, header: Option<(&str, &str)>, body: impl Into<Bytes>) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        Answer::read(self.broker.answer(Ipv4Addr::LOCALHOST.into(), request).await).await
    }

    async fn administer(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        let claims = json!({ "exp": u64::MAX, "role": "admin", "sub": "kim" });
        let token = encode(&Header::new(Algorithm::EdDSA), &claims, &self.signing).unwrap();
        self.send(method, &format!("/kbs/v0/{path}"), Some(("authorization", &format!("Bearer {token}"))), body).await
    }

    async fn set_resource_policy(&self, rules: &str) {
        let policy = URL_SAFE_NO_PAD.encode(format!("package policy\n{rules}"));
        let set = self.administer("POST", "resource-policy", json!({ "policy": policy }).to_string()).await;
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

struct Answer {
    status: StatusCode,
    cookie: Option<String>,
    body: Bytes,
}

impl Answer {
    async fn read(response: Response<Full<Bytes>>) -> Self {
        let cookie = response.headers().get("set-cookie").map(|value| value.to_str().unwrap().to_owned());
        let status = response.status();
        Self { status, cookie, body: response.into_body().collect().await.unwrap().to_bytes() }
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
        let request = json!({ "version": "0.4.0", "tee": "sample", "extra-params": "" });
        let answer = bench.send("POST", "/kbs/v0/auth", None, request.to_string()).await;
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
        bench.send("POST", "/kbs/v0/attest", Some(("cookie", &self.cookie)), body).await
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
        bench.send("GET", &format!("/kbs/v0/resource/{path}"), Some(("cookie", &self.cookie)), Bytes::new()).await
    }

    fn open(&self, answer: &Answer) -> Vec<u8> {
        let jwe: Jwe = serde_json::from_slice(&answer.body).unwrap();
        self.key.open(&jwe).unwrap().to_vec()
    }
}

fn pair(answer: &Answer) -> String {
    answer.cookie.as_ref().unwrap().split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn an_attested_guest_gets_its_secret_by_cookie_and_by_token() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow if data[\"resource-path\"] == [\"a\", \"b\", \"c\"]").await;
    assert_eq!(bench.administer("POST", "resource/a/b/c", "a secret").await.status, StatusCode::OK);
    let (guest, token) = Guest::attested(&bench).await;

    let answer = guest.get(&bench, "a/b/c").await;
    assert_eq!(guest.open(&answer), b"a secret");
    let bearer = format!("Bearer {token}");
    let answer = bench.send("GET", "//kbs/v0//resource/a/b/c", Some(("authorization", &bearer)), "").await;
    assert_eq!(guest.open(&answer), b"a secret");
    let again = guest.attest(&bench, &guest.attestation()).await;
    assert_eq!(again.json()["token"], token.as_str());

    let events: Vec<_> = bench.audit().iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["administration", "administration", "attestation", "release", "release"]);
    assert_eq!(bench.audit()[2]["token"], bench.audit()[3]["token"]);
    assert!(!std::fs::read_to_string(bench.directory.path().join("audit.jsonl")).unwrap().contains("a secret"));
}

#[tokio::test]
async fn any_replica_serves_any_step() {
    let (first, sealed) = (Bench::new().await, b"a secret");
    first.set_resource_policy("allow := true").await;
    first.administer("POST", "resource/a/b/c", sealed.as_slice()).await;
    let second = first.replica(true).await;

    let guest = Guest::challenged(&first).await;
    let attested = guest.attest(&second, &guest.attestation()).await;
    let guest = Guest { cookie: pair(&attested), ..guest };
    assert_eq!(guest.open(&guest.get(&first, "a/b/c").await), sealed);
}

#[tokio::test]
async fn a_handshake_that_does_not_fit_is_refused() {
    let bench = Bench::new().await;
    let auth = async |body: Value| bench.send("POST", "/kbs/v0/auth", None, body.to_string()).await.refusal();
    for (request, status, variant) in [
        (json!({ "version": "0.4.1", "tee": "sample" }), 400, "RcarAuthFailed"),
        (json!({ "version": "0.1.0", "tee": "sample" }), 400, "RcarAuthFailed"),
        (json!({ "version": "0.4.0", "tee": "abacus" }), 400, "SerdeError"),
        (json!({ "version": "0.4.0", "tee": "se" }), 403, "RcarAuthFailed"),
        (json!({}), 400, "SerdeError"),
        (json!([[[]]]), 400, "SerdeError"),
    ] {
        let (actual, kind, detail) = auth(request.clone()).await;
        assert_eq!((actual, kind.as_str()), (status, variant), "{request}: {detail}");
    }

    let guest = Guest::challenged(&bench).await;
    let good = guest.attestation();
    let mut other_nonce = good.clone();
    other_nonce.runtime_data.nonce = STANDARD.encode([0; 32]);
    assert_eq!(guest.attest(&bench, &other_nonce).await.refusal().0, 401);
    for bad_key in [json!({ "kty": "EC" }), json!(null), json!({ "kty": "oct", "k": "AAAA" })] {
        let mut attestation = good.clone();
        attestation.runtime_data.tee_pubkey = bad_key;
        assert_eq!(guest.attest(&bench, &attestation).await.refusal().0, 400);
    }
    let without = bench.send("POST", "/kbs/v0/attest", None, serde_json::to_vec(&good).unwrap()).await;
    assert_eq!(without.refusal().0, 401);
    let deep = format!("{{\"runtime-data\":{}", "[".repeat(100_000));
    assert_eq!(bench.send("POST", "/kbs/v0/attest", Some(("cookie", &guest.cookie)), deep).await.refusal().0, 400);

    bench.pass(300);
    let (status, _, detail) = guest.attest(&bench, &good).await.refusal();
    assert_eq!(status, 401);
    assert!(detail.contains("expired"), "{detail}");
}

#[tokio::test]
async fn wrong_evidence_is_explained_to_the_owner_only() {
    let bench = Bench::new().await;
    let guest = Guest::challenged(&bench).await;
    let mut attestation = guest.attestation();
    let expected = attestation.tee_evidence.primary_evidence["report_data"].clone();
    attestation.tee_evidence.primary_evidence["report_data"] = json!(STANDARD.encode([1; 48]));

    let (status, variant, detail) = guest.attest(&bench, &attestation).await.refusal();
    assert_eq!((status, variant.as_str()), (403, "RcarAttestFailed"));
    assert!(!detail.contains(expected.as_str().unwrap()), "{detail}");
    let explained = bench.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!(explained["stage"], "attestation");
    assert_eq!(explained["claims"][0]["claim"], "report_data");
    assert_eq!(explained["claims"][0]["expected"], expected);

    let off = bench.replica(false).await;
    let auth = json!({ "version": "0.4.0", "tee": "sample" }).to_string();
    let (status, _, detail) = off.send("POST", "/kbs/v0/auth", None, auth).await.refusal();
    assert_eq!(status, 403);
    assert!(detail.contains("sample_verifier = true"), "{detail}");
    let guest = Guest::challenged(&bench).await;
    assert_eq!(guest.attest(&off, &guest.attestation()).await.refusal().0, 403);
}

#[tokio::test]
async fn a_refusal_by_policy_names_the_claims_that_differ() {
    let bench = Bench::new().await;
    bench.administer("POST", "resource/a/b/c", "a secret").await;
    let (guest, _) = Guest::attested(&bench).await;

    let (status, variant, detail) = guest.get(&bench, "a/b/c").await.refusal();
    assert_eq!((status, variant.as_str()), (403, "PolicyDeny"));
    let explained = bench.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!((&explained["stage"], &explained["resource"]), (&json!("resource policy"), &json!("a/b/c")));
    let claims = explained["claims"].as_array().unwrap();
    assert!(claims.iter().any(|claim| claim["reference_value"] == "launch_digest" && claim["actual"] == "abcde"));

    bench
        .set_resource_policy(
            "allow := false\nexpected := [{\"claim\": \"/submods/cpu0/ear.status\", \"values\": [\"affirming\"]}]",
        )
        .await;
    let (_, _, detail) = guest.get(&bench, "a/b/c").await.refusal();
    assert!(!detail.contains("affirming"), "{detail}");
    let explained = bench.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!(
        explained["claims"],
        json!([{ "claim": "/submods/cpu0/ear.status", "actual": "contraindicated", "expected": ["affirming"] }])
    );

    bench
        .set_resource_policy(
            "allow if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a + b == 0 }",
        )
        .await;
    assert_eq!(guest.get(&bench, "a/b/c").await.refusal().0, 403);
    assert!(!bench.audit().iter().any(|line| line["event"] == "release"));
    assert_eq!(bench.administer("GET", "explain/0000", "").await.refusal().0, 404);
}

#[tokio::test]
async fn resources_need_a_fresh_token_and_a_plain_name() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    let (guest, token) = Guest::attested(&bench).await;

    for (path, status) in
        [("a/b/c", 404), ("a/b", 400), ("a/b/c/d", 400), ("a/b/..", 400), ("../b/c", 400), ("a/b/%2e", 400)]
    {
        assert_eq!(guest.get(&bench, path).await.refusal().0, status, "{path}");
    }
    let challenged = Guest::challenged(&bench).await;
    assert_eq!(challenged.get(&bench, "a/b/c").await.refusal().0, 401);
    assert_eq!(bench.send("GET", "/kbs/v0/resource/a/b/c", None, "").await.refusal().0, 401);
    let [header, payload, _]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let none = URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}");
    for forged in [format!("{none}.{payload}."), format!("{header}.{payload}.AAAA"), "x".to_owned()] {
        let bearer = format!("Bearer {forged}");
        let answer = bench.send("GET", "/kbs/v0/resource/a/b/c", Some(("authorization", &bearer)), "").await;
        assert_eq!(answer.refusal().0, 401);
    }

    bench.administer("POST", "resource/a/b/c", "a secret").await;
    assert_eq!(guest.get(&bench, "a/b/c").await.status, StatusCode::OK);
    bench.pass(300);
    assert_eq!(guest.get(&bench, "a/b/c").await.refusal().0, 401);
}

#[tokio::test]
async fn administration_needs_a_token_and_is_put_on_record() {
    let bench = Bench::new().await;
    let post = async |header: Option<(&str, &str)>| {
        bench.send("POST", "/kbs/v0/resource/a/b/c", header, "x").await.refusal().0
    };
    assert_eq!(post(None).await, 401);
    let claims = json!({ "exp": u64::MAX, "role": "guest" });
    let guest_role = encode(&Header::new(Algorithm::EdDSA), &claims, &bench.signing).unwrap();
    assert_eq!(post(Some(("authorization", &format!("Bearer {guest_role}")))).await, 403);
    assert_eq!(bench.audit().len(), 1);
    assert_eq!(bench.audit()[0]["event"], "administration-refused");

    let values = STANDARD.encode("{\"svn\": [\"1\"]}");
    let message = json!({ "version": "0.1.0", "type": "sample", "payload": values }).to_string();
    let attestation_policy =
        json!({ "type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode("package policy") });
    for (method, path, body, status) in [
        ("POST", "reference-value", message, 200),
        ("GET", "reference-value/svn", String::new(), 200),
        ("GET", "reference-value/other", String::new(), 404),
        ("GET", "reference-value", String::new(), 200),
        ("DELETE", "reference-value/svn", String::new(), 200),
        ("DELETE", "reference-value/svn", String::new(), 404),
        ("POST", "attestation-policy", attestation_policy.to_string(), 200),
        ("POST", "attestation-policy", json!({ "policy": "cA" }).to_string(), 400),
        ("POST", "resource-policy", json!({ "policy": URL_SAFE_NO_PAD.encode("package x") }).to_string(), 400),
        ("POST", "resource-policy", json!({ "policy": "*" }).to_string(), 400),
        ("GET", "resource-policy", String::new(), 200),
        ("POST", "resource/a/b/c", "x".to_owned(), 200),
        ("DELETE", "resource/a/b/c", String::new(), 200),
        ("DELETE", "resource/a/b/c", String::new(), 404),
        ("POST", "resource/a/b", "x".to_owned(), 400),
        ("PUT", "resource/a/b/c", "x".to_owned(), 405),
    ] {
        let answer = bench.administer(method, path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
    }
    let acts: Vec<_> =
        bench.audit().iter().skip(1).map(|line| (line["act"].clone(), line["subject"].clone())).collect();
    assert_eq!(acts.len(), 5);
    assert!(acts.iter().all(|(_, subject)| subject == "kim"));
}

#[tokio::test]
async fn what_is_not_there_or_too_large_is_refused_by_its_status() {
    let bench = Bench::new().await;
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/kbs/v0", 404),
        ("GET", "/kbs/v1/auth", 404),
        ("GET", "/kbs/v0/auth", 405),
        ("GET", "/kbs/v0/nebula-ca/credential", 404),
        ("POST", "/healthz", 404),
    ] {
        assert_eq!(bench.send(method, path, None, "").await.refusal().0, status, "{method} {path}");
    }
    let large = vec![b' '; (2 << 20) + 1];
    assert_eq!(bench.send("POST", "/kbs/v0/auth", None, large).await.refusal().0, 413);
    let announced = bench.send("POST", "/kbs/v0/auth", Some(("content-length", "99999999")), "").await;
    assert_eq!(announced.refusal().0, 413);
}

#[tokio::test]
async fn without_its_store_a_broker_says_so() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    let (guest, _) = Guest::attested(&bench).await;
    assert_eq!(bench.send("GET", "/healthz", None, "").await.status, StatusCode::OK);
    bench.store.close().await;
    assert_eq!(bench.send("GET", "/healthz", None, "").await.refusal().0, 503);
    assert_eq!(guest.get(&bench, "a/b/c").await.refusal().0, 503);
    assert_eq!(bench.administer("POST", "resource/a/b/c", "x").await.refusal().0, 503);
}

fn reference(detail: &str) -> String {
    let (_, rest) = detail.split_once("reference ").unwrap();
    rest.chars().take_while(char::is_ascii_alphanumeric).collect()
}
