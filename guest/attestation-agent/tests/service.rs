//! The ttrpc service, over a unix socket, as upstream's clients use it.

#![allow(clippy::unwrap_used)]

mod double;

use std::sync::Arc;

use attestation_agent::{AaConfig, AttestationAgent, endpoint::Endpoint};
use double::KbsDouble;
use evidence::Attester;
use serde_json::Value;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::with_duration;
use wire::jwe::{TeeKey, TeePublicKey};
use wire_ttrpc::attestation_agent as api;
use wire_ttrpc::attestation_agent_ttrpc::AttestationAgentServiceClient;

#[tokio::test]
async fn a_kbs_token_comes_with_the_key_that_it_names() {
    let guest = Guest::start().await;

    let answer = guest.token("kbs").await.unwrap();

    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert!(answer["token"].as_str().unwrap().starts_with("e30."));
    let key = TeeKey::from_pkcs8_pem(answer["tee_keypair"].as_str().unwrap()).unwrap();
    let attested = TeePublicKey::from_jwk(&guest.kbs.last_attestation().runtime_data.tee_pubkey).unwrap();
    assert_eq!(*key.open(&attested.seal(b"for the guest").unwrap()).unwrap(), b"for the guest");
}

#[tokio::test]
async fn the_attestation_services_answer_is_passed_on() {
    let guest = Guest::start().await;
    let answer = guest.token("coco_as").await.unwrap();
    assert_eq!(answer, br#"sample:{"report_data":"","svn":"1"}"#);
}

#[tokio::test]
async fn an_unknown_token_type_is_the_callers_fault() {
    let guest = Guest::start().await;
    let (code, text) = guest.token("maa").await.unwrap_err();
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(text.starts_with("[ERROR:attestation-agent] ") && text.contains("maa"), "{text}");
}

#[tokio::test]
async fn evidence_carries_the_runtime_data_as_it_is() {
    let guest = Guest::start().await;
    let mut request = api::GetEvidenceRequest::new();
    request.RuntimeData = vec![0xfb, 0xff];
    let response = guest.client.get_evidence(with_duration(TIMEOUT), &request).await.unwrap();
    assert_eq!(response.Evidence, br#"{"report_data":"+/8=","svn":"1"}"#);

    request.RuntimeData = vec![0; 65];
    let (code, text) = status(guest.client.get_evidence(with_duration(TIMEOUT), &request).await.unwrap_err());
    assert_eq!(code, Code::INTERNAL);
    assert!(text.contains("65 bytes"), "{text}");
}

#[tokio::test]
async fn what_is_off_is_answered_as_upstream_does() {
    let guest = Guest::start().await;
    let context = || with_duration(TIMEOUT);

    let tee = guest.client.get_tee_type(context(), &api::GetTeeTypeRequest::new()).await.unwrap();
    assert_eq!(tee.tee, "sample");
    let devices = guest.client.get_additional_tees(context(), &api::GetAdditionalTeesRequest::new()).await.unwrap();
    assert!(devices.additional_tees.is_empty());
    let request = api::GetAdditionalEvidenceRequest::new();
    assert!(guest.client.get_additional_evidence(context(), &request).await.unwrap().Evidence.is_empty());
    let request = api::ExtendRuntimeMeasurementRequest::new();
    let extended = guest.client.extend_runtime_measurement(context(), &request).await.unwrap();
    assert_eq!(extended.Result, api::RuntimeMeasurementResult::NOT_ENABLED.into());
    let refused = guest.client.bind_init_data(context(), &api::BindInitDataRequest::new()).await.unwrap_err();
    assert_eq!(status(refused).0, Code::UNIMPLEMENTED);
}

struct Guest {
    kbs: KbsDouble,
    client: AttestationAgentServiceClient,
    _endpoint: Endpoint,
    _folder: tempfile::TempDir,
}

impl Guest {
    async fn start() -> Self {
        let kbs = KbsDouble::start().await;
        let config = format!(
            "[token_configs.kbs]\nurl = \"{url}\"\n[token_configs.coco_as]\nurl = \"{url}\"\n",
            url = kbs.url()
        );
        let agent = AttestationAgent::new(AaConfig::parse(&config).unwrap(), Attester::Sample, None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/aa/agent.sock", folder.path().display());
        let endpoint = attestation_agent::serve(Arc::new(agent), &address).await.unwrap();
        let client = AttestationAgentServiceClient::new(Client::connect(&address).await.unwrap());
        Self { kbs, client, _endpoint: endpoint, _folder: folder }
    }

    async fn token(&self, kind: &str) -> Result<Vec<u8>, (Code, String)> {
        let mut request = api::GetTokenRequest::new();
        request.TokenType = kind.to_owned();
        self.client.get_token(with_duration(TIMEOUT), &request).await.map(|response| response.Token).map_err(status)
    }
}

fn status(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    }
}

const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);
