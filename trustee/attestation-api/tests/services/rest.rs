//! The attestation service over REST, with requests as upstream's clients send them.

use attestation_api::{MAX_REQUEST, rest_attestation_service};
use axum::http::HeaderValue;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};

use crate::served::*;

/// The service, asked by a client of HTTP/1.1.
struct Rest {
    bench: Bench,
    served: Served,
    client: Client,
}

impl Rest {
    async fn new(origin: Option<&'static str>) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let bench = Bench::new().await;
        let origin = origin.map(HeaderValue::from_static);
        let router = rest_attestation_service(bench.service.clone(), origin, bench.serving());
        Self { bench, served: Served::new(router).await, client: Client::new() }
    }

    async fn ask(&self, method: Method, path: &str) -> (StatusCode, String) {
        let answer = self.client.request(method, self.served.url(path)).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, String) {
        let request = self.client.post(self.served.url(path)).header("content-type", "application/json");
        let answer = request.body(body).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }
}

fn sample_request() -> Value {
    let evidence = sample_part(wire::rcar::Tee::Sample).evidence;
    json!({
        "verification_requests": [{
            "tee": "sample",
            "evidence": URL_SAFE_NO_PAD.encode(evidence.to_string()),
            "runtime_data": { "structured": { "tee-pubkey": { "kty": "EC" }, "nonce": "bm9uY2U=" } },
            "runtime_data_hash_algorithm": "sha384",
        }],
        "policy_ids": ["default"],
    })
}

#[tokio::test]
async fn evidence_becomes_a_token() {
    let rest = Rest::new(None).await;
    rest.bench.values.register(&good_values()).await.unwrap();

    let (status, token) = rest.post("/attestation", sample_request().to_string()).await;
    assert_eq!(status, StatusCode::OK, "{token}");
    assert_eq!(claims(&token)["submods"]["cpu0"]["ear.status"], "affirming");
    assert!(rest.bench.service.verify(&token).is_ok());

    let (status, keys) = rest.ask(Method::GET, "/.well-known/jwks.json").await;
    assert_eq!((status, serde_json::from_str(&keys).unwrap()), (StatusCode::OK, rest.bench.service.jwks()));
    let (_, discovery) = rest.ask(Method::GET, "/.well-known/openid-configuration").await;
    let discovery: Value = serde_json::from_str(&discovery).unwrap();
    assert_eq!(discovery["jwks_uri"], rest.served.url("/.well-known/jwks.json"));
}

#[tokio::test]
async fn policies_are_set_listed_read_and_deleted() {
    let rest = Rest::new(None).await;
    let text = "package policy\ntrust_claims := {\"hardware\": 2}";
    let body = json!({ "policy_id": "own_cpu", "policy": URL_SAFE_NO_PAD.encode(text) });
    assert_eq!(rest.post("/policy", body.to_string()).await, (StatusCode::OK, String::new()));

    let (_, list) = rest.ask(Method::GET, "/policy").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    for id in ["default_cpu", "own_cpu"] {
        assert!(list.as_array().unwrap().contains(&json!({ "policy-id": id })), "{list}");
    }
    assert_eq!(rest.ask(Method::GET, "/policy/own_cpu").await, (StatusCode::OK, text.to_owned()));
    assert_eq!(rest.ask(Method::DELETE, "/policy/own_cpu").await, (StatusCode::OK, String::new()));
    for method in [Method::GET, Method::DELETE] {
        assert_eq!(rest.ask(method, "/policy/own_cpu").await.0, StatusCode::NOT_FOUND);
    }
    assert_eq!(rest.ask(Method::GET, "/policy/%FF").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_challenge_is_text() {
    let rest = Rest::new(None).await;
    let (status, challenge) = rest.post("/challenge", r#"{"tee":"snp","tee_params":""}"#).await;
    assert_eq!((status, challenge.len()), (StatusCode::OK, 44));
    assert_eq!(rest.post("/challenge", r#"{"tee":"no tee"}"#).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let rest = Rest::new(None).await;
    let with = |member: &str, value: Value| {
        let mut request = sample_request();
        request["verification_requests"][0][member] = value;
        request.to_string().into_bytes()
    };
    let unbound = URL_SAFE_NO_PAD.encode(json!({ "svn": "1", "report_data": "AAAA" }).to_string());
    let deep =
        sample_request().to_string().replace(r#""structured":{"#, &format!(r#""structured":{}"#, "[".repeat(100_000)));
    let none = json!({ "verification_requests": [], "policy_ids": [] });
    for (body, status, told) in [
        (b"{".to_vec(), 400, "JSON"),
        (b"{}".to_vec(), 400, "verification_requests"),
        (vec![b'"', 0xff, b'"'], 400, "JSON"),
        (deep.into_bytes(), 400, "recursion limit"),
        (none.to_string().into_bytes(), 400, "no evidence"),
        (with("tee", json!("unknown")), 400, "\"unknown\" is not the name of a TEE"),
        (with("evidence", json!("e30=")), 400, "evidence is not base64url"),
        (with("runtime_data", json!({ "raw": "*" })), 400, "raw runtime data is not base64url"),
        (with("runtime_data", json!({ "cooked": "" })), 400, "cooked"),
        (with("init_data", json!({ "init_data_digest": "*" })), 400, "initdata digest is not base64url"),
        (with("runtime_data_hash_algorithm", json!("md5")), 400, "md5"),
        (with("evidence", json!("e30")), 400, "sample evidence"),
        (with("evidence", json!(unbound)), 403, "report_data"),
    ] {
        let (found, text) = rest.post("/attestation", body).await;
        assert_eq!(found.as_u16(), status, "{text}");
        assert!(text.contains(told), "{text} tells nothing of {told}");
    }
    let body = json!({ "policy_id": "own_cpu", "policy": "cGFja2FnZQ==" });
    assert_eq!(rest.post("/policy", body.to_string()).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_long_body_is_not_read() {
    let rest = Rest::new(None).await;
    let body = vec![b' '; MAX_REQUEST + 1];
    assert_eq!(rest.post("/attestation", body).await.0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn a_policy_that_fails_is_an_internal_error() {
    let rest = Rest::new(None).await;
    // It has no such trust claim.
    let policy = URL_SAFE_NO_PAD.encode("package policy\ntrust_claims := {\"no-claim\": 2}");
    rest.post("/policy", json!({ "policy_id": "default_cpu", "policy": policy }).to_string()).await;
    let (status, text) = rest.post("/attestation", sample_request().to_string()).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(text.starts_with("An internal error occured: "), "{text}");
}

#[tokio::test]
async fn only_pages_of_the_allowed_origin_may_call() {
    let rest = Rest::new(Some("https://console.example")).await;
    let preflight = rest
        .client
        .request(Method::OPTIONS, rest.served.url("/policy"))
        .header("origin", "https://console.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type");
    let answer = preflight.send().await.unwrap();
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://console.example");
    assert_eq!(answer.headers()["access-control-allow-headers"], "content-type");

    // A page may post text without asking first.
    let request = rest.client.post(rest.served.url("/policy")).header("content-type", "text/plain");
    let answer = request.body(r#"{"policy_id":"a","policy":""}"#).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);

    let closed = Rest::new(None).await;
    let answer = closed.client.get(closed.served.url("/policy")).header("origin", "https://x").send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn readiness_differs_from_being_alive() {
    let rest = Rest::new(None).await;
    assert_eq!(rest.ask(Method::GET, "/readyz").await.0, StatusCode::OK);
    rest.bench.set_ready(false);
    assert_eq!(rest.ask(Method::GET, "/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rest.ask(Method::GET, "/healthz").await.0, StatusCode::OK);
}
