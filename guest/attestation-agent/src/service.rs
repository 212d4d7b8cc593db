//! The service that upstream's tools and components call: what each call answers, whichever protocol it comes by.

mod grpc;
mod ttrpc;

pub use self::grpc::{GRPC_ADDRESS, serve_grpc};
pub(crate) use self::ttrpc::REFUSED_TOKEN;
pub use self::ttrpc::{ADDRESS, serve};

use std::sync::Arc;

use evidence::InitDataDigest;
use wire::event_log::Event;
use zeroize::Zeroizing;

use crate::agent::AttestationAgent;
use crate::error::Error;
use crate::event_log;
use crate::platform::Measured;

/// The calls, in the terms of neither protocol.
struct Calls(Arc<AttestationAgent>);

impl Calls {
    /// Evidence over `runtime_data` as it is, as JSON text.
    async fn evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        let evidence = self.0.evidence(runtime_data).await.map_err(|e| Failure::of("get evidence", &e))?;
        Ok(evidence.to_string().into_bytes())
    }

    /// A JSON object from device to evidence; without devices zero bytes.
    async fn additional_evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        let devices = self.0.additional_evidence(runtime_data).await;
        let devices = devices.map_err(|e| Failure::of("get additional evidence", &e))?;
        Ok(devices.map(|devices| serde_json::Value::Object(devices).to_string().into_bytes()).unwrap_or_default())
    }

    /// The key broker has said no to this token.
    fn refused(&self, jwt: &str) {
        self.0.invalidate(jwt);
    }

    async fn token(&self, kind: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.typed_token(kind).await.map_err(|e| Failure::of("get token", &e))
    }

    async fn measure(
        &self,
        domain: &str,
        operation: &str,
        content: &str,
        register: Option<u64>,
    ) -> Result<Measured, Failure> {
        const WHAT: &str = "extend runtime measurement";
        let event = Event::new(domain, operation, content).map_err(event_log::Error::from);
        let event = event.map_err(|e| Failure::of(WHAT, &e.into()))?;
        self.0.measure(event, register).await.map_err(|e| Failure::of(WHAT, &e))
    }

    async fn bind(&self, digest: &[u8]) -> Result<(), Failure> {
        const WHAT: &str = "bind init data";
        let digest = InitDataDigest::new(digest).map_err(|e| Failure::invalid(WHAT, e.to_string()))?;
        self.0.bind_initdata(digest).await.map(drop).map_err(|e| Failure::of(WHAT, &e))
    }

    fn tee(&self) -> String {
        self.0.tee().to_string()
    }

    fn additional_tees(&self) -> Vec<String> {
        self.0.additional_tees().iter().map(ToString::to_string).collect()
    }
}

/// A call that failed: the status that says so and its text, which starts as upstream's does.
struct Failure {
    /// The call itself was wrong; otherwise the status is INTERNAL, as upstream's always is.
    invalid: bool,
    text: String,
}

impl Failure {
    fn of(what: &str, error: &Error) -> Self {
        tracing::warn!(%error, "{what} failed");
        Self { invalid: error.is_of_the_caller(), text: format!("{PREFIX} {what} failed: {error}") }
    }

    fn invalid(what: &str, cause: String) -> Self {
        Self { invalid: true, text: format!("{PREFIX} {what} failed: {cause}") }
    }
}

const PREFIX: &str = "[ERROR:attestation-agent]";
