//! The service over gRPC.

use std::sync::Arc;

use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use wire_grpc::attestation_agent::attestation_agent_service_server::{
    AttestationAgentService, AttestationAgentServiceServer,
};
use wire_grpc::attestation_agent::{
    BindInitDataRequest, BindInitDataResponse, ExtendRuntimeMeasurementRequest, ExtendRuntimeMeasurementResponse,
    GetAdditionalEvidenceRequest, GetAdditionalTeesRequest, GetAdditionalTeesResponse, GetEvidenceRequest,
    GetEvidenceResponse, GetTeeTypeRequest, GetTeeTypeResponse, GetTokenRequest, GetTokenResponse,
    RuntimeMeasurementResult,
};

use super::{Calls, Failure};
use crate::agent::AttestationAgent;
use crate::endpoint::{self, Endpoint};
use crate::platform::Measured;

/// Serves `agent` over gRPC at `address`, by default [`GRPC_ADDRESS`], until the endpoint is dropped.
///
/// # Errors
/// [`endpoint::Error`].
pub async fn serve_grpc(agent: Arc<AttestationAgent>, address: &str) -> Result<Endpoint, endpoint::Error> {
    Endpoint::open_grpc(address, Routes::new(AttestationAgentServiceServer::new(Calls(agent)))).await
}

#[tonic::async_trait]
impl AttestationAgentService for Calls {
    async fn get_evidence(
        &self,
        request: Request<GetEvidenceRequest>,
    ) -> Result<Response<GetEvidenceResponse>, Status> {
        let evidence = self.evidence(&request.get_ref().runtime_data).await?.into();
        Ok(Response::new(GetEvidenceResponse { evidence }))
    }

    async fn get_additional_evidence(
        &self,
        request: Request<GetAdditionalEvidenceRequest>,
    ) -> Result<Response<GetEvidenceResponse>, Status> {
        let evidence = self.additional_evidence(&request.get_ref().runtime_data).await?.into();
        Ok(Response::new(GetEvidenceResponse { evidence }))
    }

    async fn get_token(&self, request: Request<GetTokenRequest>) -> Result<Response<GetTokenResponse>, Status> {
        let token = self.token(&request.get_ref().token_type).await?.to_vec().into();
        Ok(Response::new(GetTokenResponse { token }))
    }

    async fn extend_runtime_measurement(
        &self,
        request: Request<ExtendRuntimeMeasurementRequest>,
    ) -> Result<Response<ExtendRuntimeMeasurementResponse>, Status> {
        let ExtendRuntimeMeasurementRequest { domain, operation, content, register_index } = request.into_inner();
        let result = match self.measure(&domain, &operation, &content, register_index).await? {
            Measured::Done => RuntimeMeasurementResult::Ok,
            Measured::NotSupported => RuntimeMeasurementResult::NotSupported,
            Measured::NotEnabled => RuntimeMeasurementResult::NotEnabled,
        };
        Ok(Response::new(ExtendRuntimeMeasurementResponse { result: result.into() }))
    }

    async fn bind_init_data(
        &self,
        request: Request<BindInitDataRequest>,
    ) -> Result<Response<BindInitDataResponse>, Status> {
        self.bind(&request.get_ref().digest).await?;
        Ok(Response::new(BindInitDataResponse {}))
    }

    async fn get_tee_type(&self, _: Request<GetTeeTypeRequest>) -> Result<Response<GetTeeTypeResponse>, Status> {
        Ok(Response::new(GetTeeTypeResponse { tee: self.tee() }))
    }

    async fn get_additional_tees(
        &self,
        _: Request<GetAdditionalTeesRequest>,
    ) -> Result<Response<GetAdditionalTeesResponse>, Status> {
        Ok(Response::new(GetAdditionalTeesResponse { additional_tees: self.additional_tees() }))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self::new(if failure.invalid { Code::InvalidArgument } else { Code::Internal }, failure.text)
    }
}

/// Where upstream's components look for this service when they speak gRPC.
pub const GRPC_ADDRESS: &str = "127.0.0.1:50002";
