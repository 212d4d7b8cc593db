//! Where the answers come from, as the workload API sees it.

use async_trait::async_trait;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

/// Fetches resources for workloads.
#[async_trait]
pub trait Resources: Send + Sync + 'static {
    /// The resource's bytes.
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Failure>;
}

/// Proves to workloads, and for them, what the guest is.
#[async_trait]
pub trait Attestation: Send + Sync + 'static {
    /// What the guest runs in.
    async fn tees(&self) -> Result<Tees, Failure>;

    /// A token of this kind: `kbs` or `coco_as`.
    async fn token(&self, kind: &str) -> Result<Zeroizing<Vec<u8>>, Failure>;

    /// Evidence over `runtime_data`, as JSON text.
    async fn evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure>;

    /// Evidence of the devices beside the TEE, as JSON text; no bytes without devices.
    async fn additional_evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure>;

    /// Measures an event.
    async fn measure(&self, domain: &str, operation: &str, content: &str) -> Result<Measured, Failure>;
}

/// The TEE and the devices beside it, by their names in attestations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tees {
    /// The TEE.
    pub tee: String,
    /// The devices.
    pub additional: Vec<String>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Measured {
    /// It is in the register and in the log.
    Done,
    /// The TEE has nothing to extend.
    NotSupported,
    /// The guest's configuration has no event log.
    NotEnabled,
}

/// Why a workload does not get what it asks for. The text goes to the workload: stage, cause and next step, no secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The request can't be meant: status 400.
    #[error("{0}")]
    Invalid(String),
    /// Attestation or policy says no: status 403.
    #[error("{0}")]
    Refused(String),
    /// There is no such resource: status 404.
    #[error("{0}")]
    NotFound(String),
    /// The key broker, or the part of the guest that asks it, can't be reached: status 502.
    #[error("{0}")]
    Unreachable(String),
    /// They did not answer in time: status 504.
    #[error("{0}")]
    Late(String),
    /// Anything else: status 500.
    #[error("{0}")]
    Other(String),
}
