//! The agent's way to sealed secrets: the data hub.

use std::sync::Arc;

use agent::{SecretError, Secrets};
use async_trait::async_trait;
use data_hub::DataHub;
use zeroize::Zeroizing;

/// Sealed secrets of the data hub.
pub(crate) struct HubSecrets(pub(crate) Arc<DataHub>);

#[async_trait]
impl Secrets for HubSecrets {
    async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        self.0.unseal(sealed.as_bytes()).await.map_err(|error| SecretError(error.to_string()))
    }
}
