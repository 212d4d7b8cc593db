//! Where the resources come from, as the workload API sees it.

use async_trait::async_trait;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

/// Fetches resources for workloads.
#[async_trait]
pub trait Resources: Send + Sync + 'static {
    /// The resource's bytes.
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, ResourceError>;
}

/// Why a workload does not get a resource. The text goes to the workload: stage, cause and next step, no secret.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ResourceError {
    /// There is no such resource: status 404.
    #[error("{0}")]
    NotFound(String),
    /// Attestation or policy says no: status 403.
    #[error("{0}")]
    Refused(String),
    /// The key broker does not answer: status 503.
    #[error("{0}")]
    Unreachable(String),
    /// Anything else: status 500.
    #[error("{0}")]
    Other(String),
}
