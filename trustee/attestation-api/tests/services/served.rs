//! A place to serve the services at, for tests: their data in memory, a port of the loopback, and an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use attestation::verifier::Enabled;
use attestation::{AttestationService, Evaluation, HashAlgorithm, InitDataInput, Part, RuntimeData, Settings};
use attestation_api::{ClientSettings, Ready, Serving};
use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reference_values::{ReferenceValues, Source};
use serde_json::{Value, json};
use store::Store;
use store::clock::Clock;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use wire::rcar::Tee;
use wire::reference_value::Message;

/// An attestation service and reference values, at a time that the test sets.
pub struct Bench {
    pub service: Arc<AttestationService>,
    pub values: ReferenceValues,
    pub seconds: Arc<AtomicU64>,
    is_ready: Arc<AtomicBool>,
}

impl Bench {
    pub async fn new() -> Self {
        let (values, seconds) = reference_values().await;
        let service = attestation_service(Arc::new(values.clone()), seconds.clone()).await;
        Self { service, values, seconds, is_ready: Arc::new(AtomicBool::new(true)) }
    }

    pub fn ready(&self) -> Ready {
        let ready = self.is_ready.clone();
        Arc::new(move || ready.load(Ordering::Relaxed))
    }

    pub fn serving(&self) -> Serving {
        Serving { ready: self.ready(), scheme: "http" }
    }

    pub fn set_ready(&self, ready: bool) {
        self.is_ready.store(ready, Ordering::Relaxed);
    }
}

pub async fn reference_values() -> (ReferenceValues, Arc<AtomicU64>) {
    let seconds = Arc::new(AtomicU64::new(1_700_000_000));
    let clock = Clock::set_by(seconds.clone());
    let settings = reference_values::Settings { allow_unsigned: true, ..Default::default() };
    (ReferenceValues::load(Store::memory().await.unwrap(), clock, settings).await.unwrap(), seconds)
}

pub async fn attestation_service(values: Arc<dyn Source>, seconds: Arc<AtomicU64>) -> Arc<AttestationService> {
    let settings = Settings { enabled: Enabled { sample: true }, ..Default::default() };
    let clock = Clock::set_by(seconds);
    AttestationService::load(Store::memory().await.unwrap(), values, settings, clock).await.unwrap()
}

/// A router that is served until it is ended or dropped.
pub struct Served {
    pub address: String,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Served {
    pub async fn new(router: Router) -> Self {
        Self::at("127.0.0.1:0", router).await
    }

    pub async fn at(address: &str, router: Router) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let serving = axum::serve(listener, router).with_graceful_shutdown(async { _ = stopped.await });
        let serving = tokio::spawn(async { serving.await.unwrap() });
        Self { address, stop: Some(stop), serving }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url("")).unwrap().connect().await.unwrap()
    }

    pub fn client_settings(&self) -> ClientSettings {
        ClientSettings {
            address: self.url(""),
            pool_size: 2,
            ca: None,
            identity: None,
            timeout: Duration::from_secs(10),
        }
    }

    /// Ends it; all its connections are closed then.
    pub async fn end(mut self) {
        self.stop.take();
        (&mut self.serving).await.unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Evidence of the sample TEE for some runtime data.
pub fn sample_part(tee: Tee) -> Part {
    let runtime_data = json!({ "nonce": "bm9uY2U=", "tee-pubkey": { "kty": "EC" } });
    let digest = HashAlgorithm::Sha384.digest(br#"{"nonce":"bm9uY2U=","tee-pubkey":{"kty":"EC"}}"#);
    Part {
        tee,
        evidence: json!({ "svn": "1", "report_data": STANDARD.encode(digest) }),
        runtime_data: RuntimeData::Structured(runtime_data),
        hash: HashAlgorithm::Sha384,
        init_data: InitDataInput::None,
    }
}

pub fn sample_evaluation() -> Evaluation {
    Evaluation { parts: vec![sample_part(Tee::Sample)], policy_id: "default".to_owned() }
}

/// The values that the default policy wants of the sample TEE.
pub fn good_values() -> Message {
    message(&json!({ "launch_digest": ["abcde"], "svn": ["1"], "major_version": 1, "minimum_minor_version": 2 }))
}

pub fn message(values: &Value) -> Message {
    Message::new("sample", values.to_string().as_bytes())
}

/// The claims of a token, whoever signed it.
pub fn claims(token: &str) -> Value {
    wire::token::unverified_claims(token).unwrap()
}
