//! The clients against an attestation agent and a hub at real sockets, which come and go.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use attestation_agent::endpoint::Endpoint;
use attestation_agent::{AaConfig, AttestationAgent, Error, Stage};
use evidence::Attester;
use tokio::sync::Barrier;
use ttrpc::r#async::{Service, TtrpcContext};
use wire_ttrpc::confidential_data_hub::GetResourceResponse;
use wire_ttrpc::confidential_data_hub_ttrpc::{GetResourceService, create_get_resource_service};

use super::*;

#[tokio::test]
async fn a_hub_that_was_restarted_is_connected_to_anew() {
    let folder = tempfile::tempdir().unwrap();
    let hub = Hub::at(&address(folder.path()));
    let error = hub.get(&uri()).await.unwrap_err();
    assert!(matches!(&error, Failure::Unreachable(text) if text.contains("; next: ")), "{error}");

    for life in ["first", "second", "third"] {
        let double = HubDouble { answer: life, ..HubDouble::default() };
        let _endpoint = double.open(folder.path()).await;
        assert_eq!(*hub.get(&uri()).await.unwrap(), life.as_bytes());
        assert_eq!(*hub.get(&uri()).await.unwrap(), life.as_bytes());
    }
}

#[tokio::test]
async fn calls_run_side_by_side_over_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    // Nobody is answered before all have asked.
    let double = HubDouble { together: Some(Arc::new(Barrier::new(20))), ..HubDouble::default() };
    let _endpoint = double.open(folder.path()).await;
    let hub = Arc::new(Hub::at(&address(folder.path())));

    let calls = (0..20).map(|_| {
        let hub = Arc::clone(&hub);
        tokio::spawn(async move { hub.get(&uri()).await.map(drop) })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(hub.0.client.lock().await.as_ref().map(|(number, _)| *number), Some(0));
}

#[tokio::test]
async fn an_agents_answers_are_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = AaConfig::parse("[eventlog_config]\nenable_eventlog = true\n").unwrap();
    config.eventlog_config.path = folder.path().join("eventlog");
    let agent = Arc::new(AttestationAgent::new(config, Attester::sample(), None).unwrap());
    let _endpoint = attestation_agent::serve(agent, &address(folder.path())).await.unwrap();
    let agent = Agent::at(&address(folder.path()));

    assert_eq!(agent.tees().await.unwrap(), Tees { tee: "sample".to_owned(), additional: Vec::new() });
    let evidence: serde_json::Value = serde_json::from_slice(&agent.evidence(&[0xff]).await.unwrap()).unwrap();
    assert_eq!(evidence["report_data"], "/w==");
    assert!(agent.additional_evidence(&[0xff]).await.unwrap().is_empty());
    assert_eq!(agent.measure("d", "o", "c").await.unwrap(), Measured::Done);
    assert!(matches!(agent.measure("d d", "o", "c").await, Err(Failure::Invalid(_))));
    assert!(matches!(agent.token("maa").await, Err(Failure::Invalid(_))));
    assert!(matches!(agent.token("kbs").await, Err(Failure::Other(text)) if text.contains("no KBS is configured")));
}

/// The words are those of the agent's own errors.
#[test]
fn what_the_key_broker_said_is_found_in_the_text() {
    let call = || "GET http://kbs/x".to_owned();
    let (kind, detail) = ("Kind".to_owned(), "no".to_owned());
    let refused = |status| Error::Refused {
        stage: Stage::Resource,
        call: call(),
        status,
        kind: kind.clone(),
        detail: detail.clone(),
    };
    let status = |error: &Error| match by_words(format!("[CDH] [ERROR]: Get Resource failed: {error}")) {
        Failure::Invalid(_) => 400,
        Failure::Refused(_) => 403,
        Failure::NotFound(_) => 404,
        Failure::Unreachable(_) => 502,
        Failure::Late(_) => 504,
        Failure::Other(_) => 500,
    };
    let not_found = Error::NotFound { call: call(), kind: kind.clone(), detail: detail.clone() };
    let unreachable = Error::Unreachable { stage: Stage::Auth, call: call(), cause: "refused".to_owned() };
    let late = Error::Deadline { stage: Stage::Attest, url: "http://kbs".to_owned(), seconds: 40 };
    for (error, expected) in [
        (not_found, 404),
        (refused(403), 403),
        (refused(401), 403),
        (refused(503), 502),
        (refused(500), 500),
        (unreachable, 502),
        (late, 504),
        (Error::NoKbs, 500),
    ] {
        assert_eq!(status(&error), expected, "{error}");
    }
    // Upstream's hub says no more than this.
    assert!(matches!(by_words("[CDH] [ERROR]: Get Resource failed".to_owned()), Failure::Other(_)));
}

/// A hub that gives every resource.
#[derive(Default)]
struct HubDouble {
    answer: &'static str,
    /// Whom each answer waits for.
    together: Option<Arc<Barrier>>,
}

impl HubDouble {
    async fn open(self, folder: &Path) -> Endpoint {
        let services: HashMap<String, Service> = create_get_resource_service(Arc::new(self));
        Endpoint::open(&address(folder), services).await.unwrap()
    }
}

#[async_trait]
impl GetResourceService for HubDouble {
    async fn get_resource(&self, _: &TtrpcContext, request: GetResourceRequest) -> ttrpc::Result<GetResourceResponse> {
        assert_eq!(request.ResourcePath, uri().to_string());
        if let Some(barrier) = &self.together {
            barrier.wait().await;
        }
        let mut response = GetResourceResponse::new();
        response.Resource = self.answer.as_bytes().to_vec();
        Ok(response)
    }
}

fn uri() -> ResourceUri {
    ResourceUri::parse("kbs:///default/key/1").unwrap()
}

fn address(folder: &Path) -> String {
    format!("unix://{}/socket", folder.display())
}
