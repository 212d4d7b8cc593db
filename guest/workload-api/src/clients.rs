//! The attestation agent and the data hub as processes of their own, over ttrpc.

use async_trait::async_trait;
use tokio::sync::Mutex;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_duration};
use wire::resource::ResourceUri;
use wire_ttrpc::attestation_agent::{
    ExtendRuntimeMeasurementRequest, GetAdditionalEvidenceRequest, GetAdditionalTeesRequest, GetEvidenceRequest,
    GetTeeTypeRequest, GetTokenRequest, RuntimeMeasurementResult,
};
use wire_ttrpc::attestation_agent_ttrpc::AttestationAgentServiceClient;
use wire_ttrpc::confidential_data_hub::GetResourceRequest;
use wire_ttrpc::confidential_data_hub_ttrpc::GetResourceServiceClient;
use zeroize::Zeroizing;

use crate::backend::{Attestation, Failure, Measured, Resources, Tees};

/// The data hub at a socket.
pub(crate) struct Hub(Line);

impl Hub {
    /// `address` is `unix://` and a path. Nothing is connected before the first call.
    pub(crate) fn at(address: &str) -> Self {
        Self(Line::to("data hub", address))
    }
}

/// The attestation agent at a socket.
pub(crate) struct Agent(Line);

impl Agent {
    /// As [`Hub::at`].
    pub(crate) fn at(address: &str) -> Self {
        Self(Line::to("attestation agent", address))
    }
}

#[async_trait]
impl Resources for Hub {
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut request = GetResourceRequest::new();
        request.ResourcePath = uri.to_string();
        let call = |client| {
            let request = &request;
            async move { GetResourceServiceClient::new(client).get_resource(context(), request).await }
        };
        self.0.call(call).await.map(|response| Zeroizing::new(response.Resource))
    }
}

#[async_trait]
impl Attestation for Agent {
    async fn tees(&self) -> Result<Tees, Failure> {
        let call = |client| async move {
            let client = AttestationAgentServiceClient::new(client);
            let tee = client.get_tee_type(context(), &GetTeeTypeRequest::new()).await?.tee;
            let additional = client.get_additional_tees(context(), &GetAdditionalTeesRequest::new()).await?;
            Ok(Tees { tee, additional: additional.additional_tees })
        };
        self.0.call(call).await
    }

    async fn token(&self, kind: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut request = GetTokenRequest::new();
        request.TokenType = kind.to_owned();
        let call = |client| {
            let request = &request;
            async move { AttestationAgentServiceClient::new(client).get_token(context(), request).await }
        };
        self.0.call(call).await.map(|response| Zeroizing::new(response.Token))
    }

    async fn evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut request = GetEvidenceRequest::new();
        request.RuntimeData = runtime_data.to_vec();
        let call = |client| {
            let request = &request;
            async move { AttestationAgentServiceClient::new(client).get_evidence(context(), request).await }
        };
        self.0.call(call).await.map(|response| response.Evidence)
    }

    async fn additional_evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut request = GetAdditionalEvidenceRequest::new();
        request.RuntimeData = runtime_data.to_vec();
        let call = |client| {
            let request = &request;
            async move { AttestationAgentServiceClient::new(client).get_additional_evidence(context(), request).await }
        };
        self.0.call(call).await.map(|response| response.Evidence)
    }

    async fn measure(&self, domain: &str, operation: &str, content: &str) -> Result<Measured, Failure> {
        let mut request = ExtendRuntimeMeasurementRequest::new();
        (request.Domain, request.Operation) = (domain.to_owned(), operation.to_owned());
        request.Content = content.to_owned();
        let call = |client| {
            let request = &request;
            async move { AttestationAgentServiceClient::new(client).extend_runtime_measurement(context(), request).await }
        };
        // An event that reached an agent which ended then may be measured already.
        match self.0.call_again_if(is_unsent, call).await?.Result.enum_value() {
            Ok(RuntimeMeasurementResult::OK) => Ok(Measured::Done),
            Ok(RuntimeMeasurementResult::NOT_SUPPORTED) => Ok(Measured::NotSupported),
            Ok(RuntimeMeasurementResult::NOT_ENABLED) => Ok(Measured::NotEnabled),
            Err(number) => Err(Failure::Other(format!("attestation agent: result {number} is not known"))),
        }
    }
}

/// A connection that is made when it is needed, and again when the other side was restarted. Calls share it.
struct Line {
    what: &'static str,
    address: String,
    client: Mutex<Option<(u64, Client)>>,
}

impl Line {
    fn to(what: &'static str, address: &str) -> Self {
        Self { what, address: address.to_owned(), client: Mutex::new(None) }
    }

    /// Makes a call. One that found the connection closed is made once more, on a new one.
    async fn call<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        self.call_again_if(is_closed, call).await
    }

    /// Makes a call, and once more on a new connection if its error says that this does no harm.
    async fn call_again_if<T, F>(
        &self,
        harmless: fn(&ttrpc::Error) -> bool,
        call: impl Fn(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let (number, client) = self.client(0).await?;
        let outcome = match call(client).await {
            Err(error) if harmless(&error) => {
                tracing::info!(to = self.what, %error, "connecting anew");
                let (_, client) = self.client(number + 1).await?;
                call(client).await
            }
            outcome => outcome,
        };
        outcome.map_err(|error| failure(self.what, &self.address, error))
    }

    /// The connection, of this number or a later one.
    async fn client(&self, least: u64) -> Result<(u64, Client), Failure> {
        let mut current = self.client.lock().await;
        if let Some((number, client)) = &*current
            && *number >= least
        {
            return Ok((*number, client.clone()));
        }
        let client = Client::connect(&self.address).await.map_err(|error| {
            Failure::Unreachable(format!(
                "{} at {}: {error}; next: check that it runs and listens there",
                self.what, self.address
            ))
        })?;
        *current = Some((least, client.clone()));
        Ok((least, client))
    }
}

/// True if nobody is at the other end any longer.
fn is_closed(error: &ttrpc::Error) -> bool {
    is_unsent(error) || matches!(error, ttrpc::Error::Socket(_) | ttrpc::Error::RemoteClosed | ttrpc::Error::Eof)
}

/// True if the request did not leave this process, because the connection's task had ended.
fn is_unsent(error: &ttrpc::Error) -> bool {
    match error {
        ttrpc::Error::LocalClosed => true,
        // ttrpc has no variant for it.
        ttrpc::Error::Others(text) => text.ends_with("channel closed"),
        _ => false,
    }
}

fn failure(what: &str, address: &str, error: ttrpc::Error) -> Failure {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code() {
            Code::INVALID_ARGUMENT => Failure::Invalid(status.message),
            Code::NOT_FOUND => Failure::NotFound(status.message),
            Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => Failure::Refused(status.message),
            Code::UNAVAILABLE => Failure::Unreachable(status.message),
            Code::DEADLINE_EXCEEDED => Failure::Late(format!("{what} at {address}: {}", status.message)),
            _ => by_words(status.message),
        },
        error if is_closed(&error) => {
            Failure::Unreachable(format!("{what} at {address}: {error}; next: look up in its log why it ended"))
        }
        error => Failure::Other(format!("{what} at {address}: {error}")),
    }
}

/// The protocols know no status but INTERNAL for what a key broker said. Our own texts name the broker's answer.
fn by_words(text: String) -> Failure {
    let answered = |status: &str| text.contains(&format!(" answered {status} "));
    if answered("404") {
        Failure::NotFound(text)
    } else if answered("401") || answered("403") {
        Failure::Refused(text)
    } else if text.contains(": no answer from ") {
        Failure::Late(text)
    } else if text.contains("check that the server runs") || ["429", "502", "503", "504"].into_iter().any(answered) {
        Failure::Unreachable(text)
    } else if text.contains("is not a resource URI") {
        Failure::Invalid(text)
    } else {
        Failure::Other(text)
    }
}

fn context() -> Context {
    with_duration(TIMEOUT)
}

/// As upstream's API server waits.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(50);

#[cfg(test)]
mod tests;
