//! The workload API's way to attestation: the agent in this process, with its errors in the API's terms.

use std::sync::Arc;

use async_trait::async_trait;
use attestation_agent::{AttestationAgent, Error, EventLogError};
use wire::event_log::Event;
use workload_api::{Attestation, Failure, Measured, Tees};
use zeroize::Zeroizing;

/// The attestation agent of this guest.
pub(crate) struct AgentAttestation(pub(crate) Arc<AttestationAgent>);

#[async_trait]
impl Attestation for AgentAttestation {
    async fn tees(&self) -> Result<Tees, Failure> {
        let additional = self.0.additional_tees().iter().map(ToString::to_string).collect();
        Ok(Tees { tee: self.0.tee().to_string(), additional })
    }

    async fn token(&self, kind: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.typed_token(kind).await.map_err(failure)
    }

    async fn evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        let evidence = self.0.evidence(runtime_data).await.map_err(failure)?;
        Ok(evidence.to_string().into_bytes())
    }

    async fn additional_evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        let devices = self.0.additional_evidence(runtime_data).await.map_err(failure)?;
        Ok(devices.map(|devices| serde_json::Value::Object(devices).to_string().into_bytes()).unwrap_or_default())
    }

    async fn measure(&self, domain: &str, operation: &str, content: &str) -> Result<Measured, Failure> {
        let event = Event::new(domain, operation, content).map_err(|e| failure(EventLogError::from(e).into()))?;
        match self.0.measure(event, None).await.map_err(failure)? {
            attestation_agent::Measured::Done => Ok(Measured::Done),
            attestation_agent::Measured::NotSupported => Ok(Measured::NotSupported),
            attestation_agent::Measured::NotEnabled => Ok(Measured::NotEnabled),
        }
    }
}

/// The agent's error in the API's terms.
pub(crate) fn failure(error: Error) -> Failure {
    let text = error.to_string();
    if error.is_of_the_caller() {
        Failure::Invalid(text)
    } else if matches!(error, Error::NotFound { .. }) {
        Failure::NotFound(text)
    } else if error.is_late() {
        Failure::Late(text)
    } else if error.is_unreachable() {
        Failure::Unreachable(text)
    } else if error.is_refused() {
        Failure::Refused(text)
    } else {
        Failure::Other(text)
    }
}
