//! A client of the attestation agent that makes every call over either protocol.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use ttrpc::context::{Context, with_duration};
use wire_grpc::attestation_agent as grpc;
use wire_grpc::attestation_agent::attestation_agent_service_client::AttestationAgentServiceClient as GrpcClient;
use wire_ttrpc::attestation_agent as rpc;
use wire_ttrpc::attestation_agent_ttrpc::AttestationAgentServiceClient as TtrpcClient;

#[derive(Clone, Copy, Debug)]
pub enum Protocol {
    Ttrpc,
    Grpc,
}

impl Protocol {
    pub const BOTH: [Self; 2] = [Self::Ttrpc, Self::Grpc];
}

pub enum AaClient {
    Ttrpc(TtrpcClient),
    Grpc(GrpcClient<Channel>),
}

/// A call that failed.
#[derive(Debug)]
pub struct Refusal {
    /// INVALID_ARGUMENT; otherwise it is INTERNAL.
    pub invalid: bool,
    pub text: String,
}

pub type Answer<T> = Result<T, Refusal>;

impl AaClient {
    pub async fn ttrpc(address: &str) -> Self {
        Self::Ttrpc(TtrpcClient::new(ttrpc::r#async::Client::connect(address).await.unwrap()))
    }

    pub async fn grpc(address: &str) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self::Grpc(GrpcClient::new(channel))
    }

    pub async fn evidence(&self, runtime_data: &[u8]) -> Answer<Vec<u8>> {
        match self {
            Self::Ttrpc(client) => {
                let request = rpc::GetEvidenceRequest { RuntimeData: runtime_data.to_vec(), ..Default::default() };
                Ok(client.get_evidence(context(), &request).await?.Evidence)
            }
            Self::Grpc(client) => {
                let request = grpc::GetEvidenceRequest { runtime_data: runtime_data.to_vec().into() };
                Ok(client.clone().get_evidence(request).await?.into_inner().evidence.to_vec())
            }
        }
    }

    pub async fn additional_evidence(&self, runtime_data: &[u8]) -> Answer<Vec<u8>> {
        match self {
            Self::Ttrpc(client) => {
                let request =
                    rpc::GetAdditionalEvidenceRequest { RuntimeData: runtime_data.to_vec(), ..Default::default() };
                Ok(client.get_additional_evidence(context(), &request).await?.Evidence)
            }
            Self::Grpc(client) => {
                let request = grpc::GetAdditionalEvidenceRequest { runtime_data: runtime_data.to_vec().into() };
                Ok(client.clone().get_additional_evidence(request).await?.into_inner().evidence.to_vec())
            }
        }
    }

    pub async fn token(&self, kind: &str) -> Answer<Vec<u8>> {
        match self {
            Self::Ttrpc(client) => {
                let request = rpc::GetTokenRequest { TokenType: kind.to_owned(), ..Default::default() };
                Ok(client.get_token(context(), &request).await?.Token)
            }
            Self::Grpc(client) => {
                let request = grpc::GetTokenRequest { token_type: kind.to_owned() };
                Ok(client.clone().get_token(request).await?.into_inner().token.to_vec())
            }
        }
    }

    /// The result's number.
    pub async fn measure(&self, event: [&str; 3], register: Option<u64>) -> Answer<i32> {
        let [domain, operation, content] = event.map(str::to_owned);
        match self {
            Self::Ttrpc(client) => {
                let mut request = rpc::ExtendRuntimeMeasurementRequest::new();
                (request.Domain, request.Operation, request.Content) = (domain, operation, content);
                request.RegisterIndex = register;
                Ok(client.extend_runtime_measurement(context(), &request).await?.Result.value())
            }
            Self::Grpc(client) => {
                let request =
                    grpc::ExtendRuntimeMeasurementRequest { domain, operation, content, register_index: register };
                Ok(client.clone().extend_runtime_measurement(request).await?.into_inner().result)
            }
        }
    }

    pub async fn bind(&self, digest: &[u8]) -> Answer<()> {
        match self {
            Self::Ttrpc(client) => {
                let request = rpc::BindInitDataRequest { Digest: digest.to_vec(), ..Default::default() };
                Ok(client.bind_init_data(context(), &request).await.map(drop)?)
            }
            Self::Grpc(client) => {
                let request = grpc::BindInitDataRequest { digest: digest.to_vec().into() };
                Ok(client.clone().bind_init_data(request).await.map(drop)?)
            }
        }
    }

    pub async fn tee(&self) -> Answer<String> {
        match self {
            Self::Ttrpc(client) => Ok(client.get_tee_type(context(), &rpc::GetTeeTypeRequest::new()).await?.tee),
            Self::Grpc(client) => Ok(client.clone().get_tee_type(grpc::GetTeeTypeRequest {}).await?.into_inner().tee),
        }
    }

    pub async fn additional_tees(&self) -> Answer<Vec<String>> {
        match self {
            Self::Ttrpc(client) => {
                let request = rpc::GetAdditionalTeesRequest::new();
                Ok(client.get_additional_tees(context(), &request).await?.additional_tees)
            }
            Self::Grpc(client) => {
                let request = grpc::GetAdditionalTeesRequest {};
                Ok(client.clone().get_additional_tees(request).await?.into_inner().additional_tees)
            }
        }
    }
}

impl From<ttrpc::Error> for Refusal {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => match status.code() {
                ttrpc::Code::INVALID_ARGUMENT => Self { invalid: true, text: status.message },
                ttrpc::Code::INTERNAL => Self { invalid: false, text: status.message },
                code => panic!("{code:?} {}", status.message),
            },
            other => panic!("{other}"),
        }
    }
}

impl From<tonic::Status> for Refusal {
    fn from(status: tonic::Status) -> Self {
        let invalid = match status.code() {
            tonic::Code::InvalidArgument => true,
            tonic::Code::Internal => false,
            code => panic!("{code} {}", status.message()),
        };
        Self { invalid, text: status.message().to_owned() }
    }
}

fn context() -> Context {
    with_duration(Duration::from_secs(30))
}
