//! Every call of the service, over both protocols, as upstream's clients make them.

#![allow(clippy::unwrap_used)]

mod client;
mod double;

use std::sync::Arc;

use attestation_agent::{AaConfig, AttestationAgent, endpoint::Endpoint};
use client::{AaClient, Protocol, Refusal};
use double::KbsDouble;
use evidence::Attester;
use serde_json::{Value, json};
use wire::initdata::InitData;
use wire::jwe::{TeeKey, TeePublicKey};

#[tokio::test]
async fn a_kbs_token_comes_with_the_key_that_it_names() {
    for protocol in Protocol::BOTH {
        let guest = Guest::start(protocol, "").await;

        let answer = guest.client.token("kbs").await.unwrap();

        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(answer["token"].as_str().unwrap().starts_with("e30."));
        let key = TeeKey::from_pem(answer["tee_keypair"].as_str().unwrap()).unwrap();
        let attested = TeePublicKey::from_jwk(&guest.kbs.last_attestation().runtime_data.tee_pubkey).unwrap();
        assert_eq!(*key.open(&attested.seal(b"for the guest").unwrap()).unwrap(), b"for the guest");
        // Upstream's agent would attest for each of these.
        guest.client.token("kbs").await.unwrap();
        assert_eq!(guest.kbs.handshakes(), 1);
    }
}

#[tokio::test]
async fn the_attestation_services_answer_is_passed_on_and_gets_the_initdata() {
    for protocol in Protocol::BOTH {
        let guest = Guest::start(protocol, "").await;
        let answer = guest.client.token("coco_as").await.unwrap();
        assert_eq!(answer, br#"sample:{"report_data":"","svn":"1"}"#);
        let expected = json!({ "init_data_toml": INITDATA });
        assert_eq!(guest.kbs.last_verification()["verification_requests"][0]["init_data"], expected);
    }
}

#[tokio::test]
async fn an_unknown_token_type_is_the_callers_fault() {
    for protocol in Protocol::BOTH {
        let guest = Guest::start(protocol, "").await;
        let refusal = guest.client.token("maa").await.unwrap_err();
        assert!(refusal.invalid);
        assert!(refusal.text.starts_with("[ERROR:attestation-agent] get token failed: "), "{refusal:?}");
        assert!(refusal.text.contains("maa"), "{refusal:?}");
    }
}

#[tokio::test]
async fn evidence_carries_the_runtime_data_as_it_is() {
    for protocol in Protocol::BOTH {
        let guest = Guest::start(protocol, "").await;
        let evidence = guest.client.evidence(&[0xfb, 0xff]).await.unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&evidence).unwrap(), json!({ "report_data": "+/8=", "svn": "1" }));

        let refusal = guest.client.evidence(&[0; 65]).await.unwrap_err();
        assert!(refusal.invalid && refusal.text.contains("65 bytes"), "{refusal:?}");
    }
}

#[tokio::test]
async fn a_guest_without_devices_answers_zero_bytes() {
    for protocol in Protocol::BOTH {
        let guest = Guest::start(protocol, "").await;
        assert_eq!(guest.client.tee().await.unwrap(), "sample");
        assert!(guest.client.additional_tees().await.unwrap().is_empty());
        assert!(guest.client.additional_evidence(&[1]).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn events_are_measured_where_the_log_is_on() {
    for protocol in Protocol::BOTH {
        let off = Guest::start(protocol, "").await;
        assert_eq!(off.client.measure(["d", "o", "c"], None).await.unwrap(), 2);

        let on = Guest::start(protocol, "[eventlog_config]\nenable_eventlog = true\n").await;
        assert_eq!(on.client.measure(["domain", "operation", "content"], None).await.unwrap(), 0);
        assert_eq!(on.client.measure(["domain", "operation", "of another"], Some(9)).await.unwrap(), 0);

        let log = std::fs::read(on.folder.path().join("eventlog")).unwrap();
        let entries = wire::event_log::entries(&log).unwrap();
        let told: Vec<_> = entries.iter().map(|entry| (entry.register, entry.event.text())).collect();
        assert_eq!(told, [(17, "domain operation content"), (9, "domain operation of another")]);
        for (event, register) in [(["a b", "o", "c"], None), (["d", "o", "c\nd"], None), (["d", "o", "c"], Some(24))] {
            let refusal = on.client.measure(event, register).await.unwrap_err();
            assert!(refusal.invalid && refusal.text.contains("next: "), "{event:?} {refusal:?}");
        }
    }
}

#[tokio::test]
async fn initdata_is_bound_once() {
    for protocol in Protocol::BOTH {
        let guest = Guest::start(protocol, "").await;
        let digest = InitData::parse(INITDATA.to_owned()).unwrap().digest();
        guest.client.bind(&digest).await.unwrap();

        let other = guest.client.bind(&[7; 32]).await.unwrap_err();
        assert!(!other.invalid && other.text.contains("bound to another"), "{other:?}");
        let short = guest.client.bind(&[7; 31]).await.unwrap_err();
        assert!(short.invalid && short.text.contains("31 bytes"), "{short:?}");
    }
}

#[tokio::test]
async fn a_failed_handshake_is_internal_and_says_why() {
    for protocol in Protocol::BOTH {
        let faults = double::Faults { refuse_attest: Some("sample is off".to_owned()), ..Default::default() };
        let guest = Guest::with(protocol, KbsDouble::with_faults(faults).await, "").await;
        let Refusal { invalid, text } = guest.client.token("kbs").await.unwrap_err();
        assert!(!invalid);
        assert!(text.starts_with("[ERROR:attestation-agent] get token failed: attestation: POST "), "{text}");
        assert!(text.contains("sample is off") && text.contains("; next: "), "{text}");
    }
}

struct Guest {
    kbs: KbsDouble,
    client: AaClient,
    folder: tempfile::TempDir,
    _endpoint: Endpoint,
}

impl Guest {
    /// `more` is added to the configuration.
    async fn start(protocol: Protocol, more: &str) -> Self {
        Self::with(protocol, KbsDouble::start().await, more).await
    }

    async fn with(protocol: Protocol, kbs: KbsDouble, more: &str) -> Self {
        let config = format!(
            "[token_configs.kbs]\nurl = \"{url}\"\n[token_configs.coco_as]\nurl = \"{url}\"\n{more}",
            url = kbs.url()
        );
        let folder = tempfile::tempdir().unwrap();
        let mut config = AaConfig::parse(&config).unwrap();
        config.eventlog_config.path = folder.path().join("eventlog");
        let initdata = InitData::parse(INITDATA.to_owned()).unwrap();
        let agent = Arc::new(AttestationAgent::new(config, Attester::sample(), Some(initdata)).unwrap());
        let (endpoint, client) = match protocol {
            Protocol::Ttrpc => {
                let address = format!("unix://{}/aa/agent.sock", folder.path().display());
                (attestation_agent::serve(agent, &address).await.unwrap(), AaClient::ttrpc(&address).await)
            }
            Protocol::Grpc => {
                let endpoint = attestation_agent::serve_grpc(agent, "127.0.0.1:0").await.unwrap();
                let address = endpoint.grpc_address().unwrap();
                (endpoint, AaClient::grpc(&address.to_string()).await)
            }
        };
        Self { kbs, client, folder, _endpoint: endpoint }
    }
}

const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n";
