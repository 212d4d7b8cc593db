//! The services over gRPC, driven by the generated clients and by ours.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use attestation::Evaluation;
use attestation_api::{
    AttestationClient, ClientSettings, Error, MAX_REQUEST, ReferenceValueClient, grpc_attestation_service,
    reference_value_provider,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reference_values::Source;
use serde_json::{Value, json};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use wire::rcar::Tee;
use wire_grpc::attestation::attestation_service_client::AttestationServiceClient;
use wire_grpc::attestation::individual_attestation_request::RuntimeData as Runtime;
use wire_grpc::attestation::{AttestationRequest, ChallengeRequest, IndividualAttestationRequest, SetPolicyRequest};
use wire_grpc::reference::reference_value_provider_service_client::ReferenceValueProviderServiceClient;
use wire_grpc::reference::{ReferenceValueQueryRequest, ReferenceValueRegisterRequest};

use crate::served::*;

#[tokio::test]
async fn evidence_becomes_a_token_that_relying_parties_can_verify() {
    let bench = Bench::new().await;
    let served = Served::new(grpc_attestation_service(bench.service.clone(), None, bench.serving())).await;
    let client = AttestationClient::connect(served.client_settings()).unwrap();

    let token = client.evaluate(&sample_evaluation()).await.unwrap();
    assert_eq!(claims(&token)["submods"]["cpu0"]["ear.status"], "contraindicated");
    bench.values.register(&good_values()).await.unwrap();
    let token = client.evaluate(&sample_evaluation()).await.unwrap();
    assert_eq!(claims(&token)["submods"]["cpu0"]["ear.status"], "affirming");

    let keys: jsonwebtoken::jwk::JwkSet = get_json(&served.url("/.well-known/jwks.json")).await;
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    // The service's clock is the test's.
    validation.validate_exp = false;
    let verified = keys.keys.iter().find_map(|key| {
        let key = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
        jsonwebtoken::decode::<Value>(&token, &key, &validation).ok()
    });
    assert_eq!(verified.unwrap().claims, claims(&token));

    let discovery: Value = get_json(&served.url("/.well-known/openid-configuration")).await;
    assert_eq!(discovery["jwks_uri"], served.url("/.well-known/jwks.json"));
}

#[tokio::test]
async fn devices_are_appraised_beside_their_machine() {
    let bench = Bench::new().await;
    let served = Served::new(grpc_attestation_service(bench.service.clone(), None, bench.serving())).await;
    let client = AttestationClient::connect(served.client_settings()).unwrap();

    let parts = vec![sample_part(Tee::Sample), sample_part(Tee::SampleDevice)];
    let token = client.evaluate(&Evaluation { parts, policy_id: "default".to_owned() }).await.unwrap();
    let submods = &claims(&token)["submods"];
    assert!(submods["cpu0"].is_object() && submods["gpu0"].is_object(), "{submods}");
}

#[tokio::test]
async fn a_policy_is_set_and_used() {
    let bench = Bench::new().await;
    let served = Served::new(grpc_attestation_service(bench.service.clone(), None, bench.serving())).await;
    let client = AttestationClient::connect(served.client_settings()).unwrap();

    client.set_policy("own_cpu", "package policy\ntrust_claims := {\"hardware\": 2}").await.unwrap();
    let evaluation = Evaluation { policy_id: "own".to_owned(), ..sample_evaluation() };
    let token = client.evaluate(&evaluation).await.unwrap();
    let part = &claims(&token)["submods"]["cpu0"];
    assert_eq!(part["ear.appraisal-policy-id"], "own");
    assert_eq!(part["ear.status"], "affirming");

    for (id, text, told) in [("own_cpu", "no policy", "own_cpu"), ("own cpu", "package policy", "can't name")] {
        let error = client.set_policy(id, text).await.unwrap_err();
        assert!(matches!(&error, Error::Refused { message, .. } if message.contains(told)), "{error}");
    }
    let unknown = Evaluation { policy_id: "unknown".to_owned(), ..sample_evaluation() };
    let error = client.evaluate(&unknown).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { message, .. } if message.contains("unknown_cpu")), "{error}");
}

#[tokio::test]
async fn a_challenge_is_random() {
    let bench = Bench::new().await;
    let served = Served::new(grpc_attestation_service(bench.service.clone(), None, bench.serving())).await;
    let client = AttestationClient::connect(served.client_settings()).unwrap();

    let first = client.challenge(Tee::Snp, "").await.unwrap();
    assert_eq!(first.len(), 44);
    assert_ne!(first, client.challenge(Tee::Snp, "").await.unwrap());

    let mut generated = AttestationServiceClient::new(served.channel().await);
    for inner in [HashMap::new(), HashMap::from([("tee".to_owned(), "Snp".to_owned())])] {
        let status = generated.get_attestation_challenge(ChallengeRequest { inner }).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
    }
}

#[tokio::test]
async fn bad_requests_are_aborted_with_the_reason() {
    let bench = Bench::new().await;
    let served = Served::new(grpc_attestation_service(bench.service.clone(), None, bench.serving())).await;
    let mut client = AttestationServiceClient::new(served.channel().await);

    let part = |tee: &str, evidence: &str| IndividualAttestationRequest {
        tee: tee.to_owned(),
        evidence: evidence.to_owned(),
        ..Default::default()
    };
    let deep = URL_SAFE_NO_PAD.encode("[".repeat(100_000));
    let other = URL_SAFE_NO_PAD.encode(json!({ "svn": "1", "report_data": "AAAA" }).to_string());
    let unbound = IndividualAttestationRequest {
        runtime_data: Some(Runtime::StructuredRuntimeData("{}".to_owned())),
        ..part("sample", &other)
    };
    for (parts, told) in [
        (vec![], "no evidence"),
        (vec![part("unknown", "e30")], "\"unknown\" is not the name of a TEE"),
        (vec![part("sample", "*")], "evidence is not base64url"),
        (vec![part("sample", &deep)], "recursion limit"),
        (vec![part("sample", "e30")], "sample evidence"),
        (vec![unbound], "report_data"),
    ] {
        let request = AttestationRequest { verification_requests: parts, policy_ids: vec!["default".to_owned()] };
        let status = client.attestation_evaluate(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted, "{told}");
        assert!(status.message().contains(told), "{}", status.message());
    }

    let request = SetPolicyRequest { policy_id: "own_cpu".to_owned(), policy: "cGFja2FnZQ==".to_owned() };
    let status = client.set_attestation_policy(request).await.unwrap_err();
    assert!(status.message().contains("base64url"), "{}", status.message());
}

#[tokio::test]
async fn a_long_request_is_not_read() {
    let bench = Bench::new().await;
    let served = Served::new(grpc_attestation_service(bench.service.clone(), None, bench.serving())).await;
    let mut client = AttestationServiceClient::new(served.channel().await);

    let policy = "a".repeat(MAX_REQUEST);
    let request = SetPolicyRequest { policy_id: "own_cpu".to_owned(), policy };
    let status = client.set_attestation_policy(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
}

#[tokio::test]
async fn health_follows_readiness() {
    let bench = Bench::new().await;
    let values = Some(bench.values.clone());
    let served = Served::new(grpc_attestation_service(bench.service.clone(), values, bench.serving())).await;
    let mut client = HealthClient::new(served.channel().await);

    for ready in [true, false] {
        bench.set_ready(ready);
        for name in ["", "attestation.AttestationService", "reference.ReferenceValueProviderService"] {
            let request = HealthCheckRequest { service: name.to_owned() };
            let status = client.check(request).await.unwrap().into_inner().status();
            assert_eq!(status == tonic_health::pb::health_check_response::ServingStatus::Serving, ready);
        }
    }
    let unknown = HealthCheckRequest { service: "other".to_owned() };
    assert_eq!(client.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reference_values_are_registered_queried_listed_and_end() {
    let bench = Bench::new().await;
    let served = Served::new(reference_value_provider(bench.values.clone(), bench.ready())).await;
    let client = ReferenceValueClient::connect(served.client_settings()).unwrap();

    assert_eq!(client.query("svn").await.unwrap(), None);
    client.register(&message(&json!({ "svn": ["1"], "a/b": null }))).await.unwrap();
    assert_eq!(client.query("svn").await.unwrap(), Some(json!(["1"])));
    assert_eq!(client.query("a/b").await.unwrap(), Some(Value::Null));
    assert_eq!(client.list().await.unwrap(), ["a/b", "svn"]);

    bench.seconds.fetch_add(2 * 365 * 24 * 60 * 60, Ordering::Relaxed);
    assert_eq!(client.query("svn").await.unwrap(), None);
    assert!(client.list().await.unwrap().is_empty());

    let mut generated = ReferenceValueProviderServiceClient::new(served.channel().await);
    let unknown = r#"{"version":"0.1.0","type":"unknown","payload":"e30="}"#;
    for (text, told) in [("", "not JSON"), ("{}", "not JSON"), (unknown, "no extractor")] {
        let request = ReferenceValueRegisterRequest { message: text.to_owned() };
        let status = generated.register_reference_value(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert!(status.message().contains(told), "{}", status.message());
    }
    let query = ReferenceValueQueryRequest { reference_value_id: "no name ü".to_owned() };
    assert_eq!(generated.query_reference_value(query).await.unwrap().into_inner().reference_value_results, None);
}

#[tokio::test]
async fn policies_ask_a_provider_elsewhere() {
    let (values, seconds) = reference_values().await;
    let bench = Bench::new().await;
    let provider = Served::new(reference_value_provider(values, bench.ready())).await;
    let settings = ClientSettings { timeout: Duration::from_secs(2), ..provider.client_settings() };
    let client = Arc::new(ReferenceValueClient::connect(settings).unwrap());
    let service = attestation_service(client.clone(), seconds).await;

    client.register(&good_values()).await.unwrap();
    let token = service.evaluate(sample_evaluation()).await.unwrap().token;
    assert_eq!(claims(&token)["submods"]["cpu0"]["ear.status"], "affirming");

    // Without an answer nothing is appraised: it might have been a stricter one.
    provider.end().await;
    let error = service.evaluate(sample_evaluation()).await.unwrap_err();
    assert_eq!(error.kind(), attestation::Kind::Unavailable, "{error}");
    let asked = tokio::task::spawn_blocking(move || Source::query(client.as_ref(), "svn")).await;
    assert!(matches!(asked.unwrap(), Err(reference_values::Error::Remote(_))));
}

#[tokio::test]
async fn a_restarted_service_is_found_again() {
    let bench = Bench::new().await;
    let router = || grpc_attestation_service(bench.service.clone(), None, bench.serving());
    let served = Served::new(router()).await;
    let address = served.address.clone();
    let client = AttestationClient::connect(served.client_settings()).unwrap();
    client.evaluate(&sample_evaluation()).await.unwrap();

    served.end().await;
    let error = client.evaluate(&sample_evaluation()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");

    let _served = Served::at(&address, router()).await;
    client.evaluate(&sample_evaluation()).await.unwrap();
}

#[tokio::test]
async fn a_silent_service_is_not_waited_for_longer_than_agreed() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let timeout = Duration::from_millis(50);
    let address = format!("http://{}", silent.local_addr().unwrap());
    let settings = ClientSettings { address, pool_size: 1, ca: None, identity: None, timeout };
    let client = AttestationClient::connect(settings).unwrap();
    let error = client.evaluate(&sample_evaluation()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

async fn get_json<T: serde::de::DeserializeOwned>(url: &str) -> T {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let text = reqwest::get(url).await.unwrap().error_for_status().unwrap().text().await.unwrap();
    serde_json::from_str(&text).unwrap()
}
