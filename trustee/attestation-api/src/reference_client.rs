//! The client of a reference value provider that speaks gRPC, ours or upstream's.

use reference_values::Source;
use serde_json::Value;
use tokio::runtime::Handle;
use tonic::transport::Channel;
use wire::reference_value::Message;
use wire_grpc::reference::reference_value_provider_service_client::ReferenceValueProviderServiceClient;
use wire_grpc::reference::{ReferenceValueListRequest, ReferenceValueQueryRequest, ReferenceValueRegisterRequest};

use crate::MAX_REQUEST;
use crate::connections::{ClientSettings, Connections};
use crate::error::Error;

/// A reference value provider elsewhere.
pub struct ReferenceValueClient {
    connections: Connections,
    runtime: Handle,
}

impl ReferenceValueClient {
    /// Prepares connections to the provider, which need not run yet. Must be called on a runtime of tokio.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::File`], [`Error::Tls`], [`Error::Watch`] for settings that can't be used.
    pub fn connect(settings: ClientSettings) -> Result<Self, Error> {
        Ok(Self { connections: Connections::open(settings)?, runtime: Handle::current() })
    }

    /// The value of a name, or none.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Timeout`]; [`Error::Answer`] if the value is not JSON.
    pub async fn query(&self, name: &str) -> Result<Option<Value>, Error> {
        let answer = self.connections.call(|channel| {
            let request = ReferenceValueQueryRequest { reference_value_id: name.to_owned() };
            async move { client(channel).query_reference_value(request).await }
        });
        let text = answer.await?.reference_value_results;
        text.map(|text| serde_json::from_str(&text)).transpose().map_err(|e| self.connections.misunderstood(e))
    }

    /// Registers the values of a message.
    ///
    /// # Errors
    /// [`Error::Refused`] for a message that is no good; [`Error::Unreachable`], [`Error::Timeout`].
    pub async fn register(&self, message: &Message) -> Result<(), Error> {
        let message = serde_json::to_string(message).map_err(|e| self.connections.misunderstood(e))?;
        let answer = self.connections.call(|channel| {
            let request = ReferenceValueRegisterRequest { message: message.clone() };
            async move { client(channel).register_reference_value(request).await }
        });
        answer.await.map(drop)
    }

    /// The names of all values.
    ///
    /// # Errors
    /// [`Error::Refused`] by a provider that is too old to know this call; [`Error::Unreachable`], [`Error::Timeout`].
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        let answer = self
            .connections
            .call(|channel| async move { client(channel).list_reference_values(ReferenceValueListRequest {}).await });
        Ok(answer.await?.reference_value_ids)
    }
}

/// What policies ask while they run. Blocks, so it is for threads that may: not for tasks of the runtime.
impl Source for ReferenceValueClient {
    fn query(&self, name: &str) -> Result<Option<Value>, reference_values::Error> {
        let query = Self::query(self, name);
        self.runtime.block_on(query).map_err(|e| reference_values::Error::Remote(e.to_string()))
    }
}

fn client(channel: Channel) -> ReferenceValueProviderServiceClient<Channel> {
    ReferenceValueProviderServiceClient::new(channel).max_decoding_message_size(MAX_REQUEST)
}
