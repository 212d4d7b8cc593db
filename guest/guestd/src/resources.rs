//! The workload API's way to resources: the data hub, with its errors in the API's terms.

use std::sync::Arc;

use async_trait::async_trait;
use data_hub::DataHub;
use wire::resource::ResourceUri;
use workload_api::{Failure, Resources};
use zeroize::Zeroizing;

/// Resources of the data hub.
pub(crate) struct HubResources(pub(crate) Arc<DataHub>);

#[async_trait]
impl Resources for HubResources {
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.get_resource(uri).await.map_err(|error| {
            let text = error.to_string();
            if error.is_not_found() {
                Failure::NotFound(text)
            } else if error.is_refused() {
                Failure::Refused(text)
            } else if matches!(&error, data_hub::Error::Broker(error) if error.is_late()) {
                Failure::Late(text)
            } else if error.is_unreachable() {
                Failure::Unreachable(text)
            } else {
                Failure::Other(text)
            }
        })
    }
}
