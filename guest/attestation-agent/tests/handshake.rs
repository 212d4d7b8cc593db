//! The handshake with a key broker: how often it runs, what it sends, and what is said when it fails.

#![allow(clippy::unwrap_used)]

mod double;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attestation_agent::{AaConfig, AttestationAgent, Error, Measured, Stage};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use double::{Faults, KbsDouble};
use evidence::Attester;
use serde_json::json;
use sha2::{Digest as _, Sha384};
use wire::event_log::Event;
use wire::initdata::InitData;
use wire::jwe::KeyAlgorithm;
use wire::resource::ResourceUri;

#[tokio::test]
async fn fifty_callers_share_one_handshake() {
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    let agent = agent(&kbs);
    let mut attested = agent.attested();
    assert!(!*attested.borrow_and_update());

    let calls = (0..50).map(|_| {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move { agent.get_resource(&uri("kbs:///default/key/1")).await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(*call.await.unwrap().unwrap(), b"secret");
    }

    assert_eq!(kbs.handshakes(), 1);
    assert!(*attested.wait_for(|attested| *attested).await.unwrap());
    assert!(kbs.user_agent().starts_with("attestation-agent-kbs-client/"));
}

/// The names of all members are upstream's, and the report data is hashed here as RFC 8785 says: with sorted members and
/// without white space.
#[tokio::test]
async fn what_is_sent_is_what_upstreams_broker_reads() {
    let kbs = KbsDouble::start().await;
    let initdata = InitData::parse("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n".to_owned()).unwrap();
    let text = initdata.text().to_owned();
    AttestationAgent::new(config(&kbs), Attester::sample(), Some(initdata)).unwrap().token().await.unwrap();

    let [("auth", auth), ("attest", attest)] = &kbs.transcript()[..] else { panic!("{:?}", kbs.transcript()) };
    let algorithms = json!({ "supported-hash-algorithms": ["sha256", "sha384", "sha512"] });
    assert_eq!(*auth, json!({ "version": "0.4.0", "tee": "sample", "extra-params": algorithms }));
    let runtime_data = &attest["runtime-data"];
    let (nonce, key) = (&runtime_data["nonce"], &runtime_data["tee-pubkey"]);
    let member = |name: &str| key[name].as_str().unwrap();
    let bound = format!(
        r#"{{"additional-evidence":"","nonce":{nonce},"tee-pubkey":{{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"{}","y":"{}"}}}}"#,
        member("x"),
        member("y")
    );
    let report_data = STANDARD.encode(Sha384::digest(bound));
    let expected = json!({
        "init-data": { "format": "toml", "body": text },
        "runtime-data": { "nonce": nonce, "tee-pubkey": key },
        "tee-evidence": {
            "primary_evidence": { "svn": "1", "report_data": report_data },
            "additional_evidence": "",
        },
    });
    assert_eq!(*attest, expected);
    assert_eq!(key.as_object().unwrap().len(), 5, "{key}");
}

#[tokio::test]
async fn the_initdata_goes_with_the_evidence_byte_for_byte() {
    let kbs = KbsDouble::start().await;
    let text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n# a comment\n[data]\n";
    let initdata = InitData::parse(text.to_owned()).unwrap();
    let agent = AttestationAgent::new(config(&kbs), Attester::sample(), Some(initdata)).unwrap();

    agent.token().await.unwrap();

    let sent = kbs.last_attestation().init_data.unwrap();
    assert_eq!((sent.format.as_str(), sent.body.as_str()), ("toml", text));
}

#[tokio::test]
async fn the_configured_kind_of_key_is_made() {
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    for (algorithm, members) in KeyAlgorithm::ALL.into_iter().zip([
        json!({ "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW" }),
        json!({ "kty": "EC", "crv": "P-521", "alg": "ECDH-ES+A256KW" }),
        json!({ "kty": "RSA", "alg": "RSA-OAEP-256" }),
        json!({ "kty": "AKP", "alg": "ML-KEM-768+A192KW" }),
    ]) {
        let mut config = config(&kbs);
        config.token_configs.kbs.as_mut().unwrap().tee_key_algorithm = algorithm;
        let agent = AttestationAgent::new(config, Attester::sample(), None).unwrap();

        assert_eq!(*agent.get_resource(&uri("kbs:///default/key/1")).await.unwrap(), b"secret", "{algorithm:?}");
        let key = kbs.last_attestation().runtime_data.tee_pubkey;
        assert!(members.as_object().unwrap().iter().all(|(name, value)| key[name] == *value), "{key}");
    }
}

#[tokio::test]
async fn a_guest_with_an_event_log_attests_and_measures_side_by_side() {
    let kbs = KbsDouble::start().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&kbs);
    config.eventlog_config.enable_eventlog = true;
    config.eventlog_config.path = folder.path().join("eventlog");
    let agent = Arc::new(AttestationAgent::new(config, Attester::sample(), None).unwrap());

    let measures = (0..30).map(|number| {
        let agent = Arc::clone(&agent);
        tokio::spawn(async move {
            let event = Event::new("test", "measure", &number.to_string()).unwrap();
            agent.measure(event, None).await
        })
    });
    let measures: Vec<_> = measures.collect();
    agent.token().await.unwrap();
    for measure in measures {
        assert_eq!(measure.await.unwrap().unwrap(), Measured::Done);
    }

    let log = std::fs::read(folder.path().join("eventlog")).unwrap();
    assert_eq!(wire::event_log::entries(&log).unwrap().len(), 30);
}

#[tokio::test]
async fn an_expired_token_is_replaced() {
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    let time = Arc::new(Mutex::new(Instant::now()));
    let clock = Arc::clone(&time);
    let agent =
        AttestationAgent::with_clock(config(&kbs), Attester::sample(), None, Arc::new(move || *clock.lock().unwrap()))
            .unwrap();

    agent.token().await.unwrap();
    *time.lock().unwrap() += Duration::from_secs(239);
    agent.token().await.unwrap();
    assert_eq!(kbs.handshakes(), 1);

    *time.lock().unwrap() += Duration::from_secs(61);
    assert_eq!(*agent.get_resource(&uri("kbs:///default/key/1")).await.unwrap(), b"secret");
    assert_eq!(kbs.handshakes(), 2);
}

#[tokio::test]
async fn a_token_that_the_broker_forgot_is_replaced_and_the_call_repeated() {
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    let agent = agent(&kbs);
    agent.token().await.unwrap();

    kbs.revoke_tokens();

    assert_eq!(*agent.get_resource(&uri("kbs:///default/key/1")).await.unwrap(), b"secret");
    assert_eq!(kbs.handshakes(), 2);
}

#[tokio::test]
async fn a_broker_that_accepts_no_token_is_given_up_after_three() {
    let kbs = KbsDouble::with_faults(Faults { forget_tokens: true, ..Faults::default() }).await;

    let error = agent(&kbs).get_resource(&uri("kbs:///default/key/1")).await.unwrap_err();

    assert!(matches!(&error, Error::Refused { stage: Stage::Resource, status: 401, .. }), "{error}");
    assert_eq!(kbs.handshakes(), 3);
}

#[tokio::test]
async fn a_refused_attestation_is_not_repeated_and_says_why() {
    let faults = Faults { refuse_attest: Some("sample is off".to_owned()), ..Faults::default() };
    let kbs = KbsDouble::with_faults(faults).await;

    let error = agent(&kbs).token().await.unwrap_err().to_string();

    let expected =
        format!("attestation: POST {}/kbs/v0/attest answered 401 RcarAttestFailed: sample is off; next: ", kbs.url());
    assert!(error.starts_with(&expected), "{error}");
    assert_eq!(kbs.challenges(), 1);
}

#[tokio::test]
async fn broken_connections_lead_to_another_attempt() {
    let kbs = KbsDouble::with_faults(Faults { drop_connections: 2, ..Faults::default() }).await;
    agent(&kbs).token().await.unwrap();
    assert_eq!(kbs.handshakes(), 1);
}

#[tokio::test]
async fn an_unreachable_broker_is_named_with_its_cause() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let config = AaConfig::parse(&format!("[token_configs.kbs]\nurl = \"http://{address}\"\n")).unwrap();
    let agent = AttestationAgent::new(config, Attester::sample(), None).unwrap();

    let error = agent.token().await.unwrap_err();

    assert!(error.is_unreachable());
    let error = error.to_string();
    assert!(error.starts_with(&format!("attestation challenge: POST http://{address}/kbs/v0/auth: ")), "{error}");
    assert!(error.contains("refused") && error.contains("; next: "), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_no_challenge_is_named() {
    for (answer, expected) in [
        ((200, "<html>"), "can't be used: it is not the JSON expected"),
        ((200, "{\"nonce\":\"n\",\"extra-params\":{\"selected-hash-algorithm\":\"sm3\"}}"), "sm3"),
        ((400, "bad\u{1b}[31m request"), "answered 400 Bad Request: bad\\u{1b}[31m request"),
    ] {
        let kbs = KbsDouble::with_faults(Faults { auth_answers: Some(answer), ..Faults::default() }).await;
        let error = agent(&kbs).token().await.unwrap_err().to_string();
        assert!(error.starts_with("attestation challenge: ") && error.contains(expected), "{error}");
        assert_eq!(kbs.challenges(), 1);
    }
}

#[tokio::test]
async fn an_overloaded_broker_is_asked_again() {
    let kbs = KbsDouble::with_faults(Faults { auth_answers: Some((503, "busy")), ..Faults::default() }).await;
    let error = agent(&kbs).token().await.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert_eq!(kbs.challenges(), 5);
}

#[tokio::test]
async fn a_denied_a_missing_and_an_open_resource_are_told_apart() {
    let kbs = KbsDouble::start().await;
    kbs.deny("resource/default/key/denied", 403);
    kbs.deny("resource/default/key/upstream", 401);
    let agent = agent(&kbs);

    for path in ["denied", "upstream"] {
        let error = agent.get_resource(&uri(&format!("kbs:///default/key/{path}"))).await.unwrap_err();
        assert!(matches!(&error, Error::Refused { kind, .. } if kind == "PolicyDeny"), "{error}");
        assert!(error.to_string().contains("the resource policy says no"), "{error}");
    }
    let missing = agent.get_resource(&uri("kbs:///default/key/missing")).await.unwrap_err();
    assert!(matches!(&missing, Error::NotFound { .. }), "{missing}");
    assert_eq!(kbs.handshakes(), 1);
}

#[tokio::test]
async fn a_resource_that_is_not_sealed_is_refused_and_not_repeated() {
    let kbs = KbsDouble::with_faults(Faults { forget_to_seal: true, ..Faults::default() }).await;
    kbs.put("resource/default/key/1", b"\"in clear\"");
    let error = agent(&kbs).get_resource(&uri("kbs:///default/key/1")).await.unwrap_err().to_string();
    assert!(error.contains("not a sealed resource") && !error.contains("in clear"), "{error}");
}

#[tokio::test]
async fn plugins_and_queries_reach_the_broker() {
    let kbs = KbsDouble::start().await;
    kbs.put("nebula-ca/credential", b"credential");
    let resource = agent(&kbs).get_resource(&uri("kbs+nebula-ca:///credential?ip=10.0.0.1/8&name=n")).await.unwrap();
    assert_eq!(*resource, b"credential");
}

#[tokio::test]
async fn tls_is_trusted_through_the_configured_ca_alone() {
    let kbs = KbsDouble::with_tls().await;
    kbs.put("resource/default/key/1", b"secret");
    let resource = agent(&kbs).get_resource(&uri("kbs:///default/key/1")).await.unwrap();
    assert_eq!(*resource, b"secret");

    let stranger = KbsDouble::with_tls().await;
    for cert in [stranger.ca.clone(), None] {
        let mut config = config(&kbs);
        config.token_configs.kbs.as_mut().unwrap().cert = cert;
        let agent = AttestationAgent::new(config, Attester::sample(), None).unwrap();
        let error = agent.token().await.unwrap_err();
        assert!(matches!(&error, Error::Tls { .. }), "{error}");
        assert!(error.to_string().contains("token_configs.kbs.cert"), "{error}");
    }
}

fn agent(kbs: &KbsDouble) -> Arc<AttestationAgent> {
    Arc::new(AttestationAgent::new(config(kbs), Attester::sample(), None).unwrap())
}

fn config(kbs: &KbsDouble) -> AaConfig {
    let cert = kbs.ca.as_ref().map(|ca| format!("cert = \"\"\"\n{ca}\"\"\"\n")).unwrap_or_default();
    AaConfig::parse(&format!("[token_configs.kbs]\nurl = \"{}\"\n{cert}", kbs.url())).unwrap()
}

fn uri(text: &str) -> ResourceUri {
    ResourceUri::parse(text).unwrap()
}
