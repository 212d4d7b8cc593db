//! The workload API's way to resources: the data hub, with its errors in the API's terms.

use std::sync::Arc;

use async_trait::async_trait;
use data_hub::DataHub;
use wire::resource::ResourceUri;
use workload_api::{ResourceError, Resources};
use zeroize::Zeroizing;

/// Resources of the data hub.
pub(crate) struct HubResources(pub(crate) Arc<DataHub>);

#[async_trait]
impl Resources for HubResources {
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, ResourceError> {
        self.0.get_resource(uri).await.map_err(|error| {
            let text = error.to_string();
            if error.is_not_found() {
                ResourceError::NotFound(text)
            } else if error.is_refused() {
                ResourceError::Refused(text)
            } else if error.is_unreachable() {
                ResourceError::Unreachable(text)
            } else {
                ResourceError::Other(text)
            }
        })
    }
}
