//! The service over ttrpc.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use wire_ttrpc::attestation_agent::{
    BindInitDataRequest, BindInitDataResponse, ExtendRuntimeMeasurementRequest, ExtendRuntimeMeasurementResponse,
    GetAdditionalEvidenceRequest, GetAdditionalTeesRequest, GetAdditionalTeesResponse, GetEvidenceRequest,
    GetEvidenceResponse, GetTeeTypeRequest, GetTeeTypeResponse, GetTokenRequest, GetTokenResponse,
    RuntimeMeasurementResult,
};
use wire_ttrpc::attestation_agent_ttrpc::{AttestationAgentService, create_attestation_agent_service};

use super::{Calls, Failure};
use crate::agent::AttestationAgent;
use crate::endpoint::{self, Endpoint};
use crate::platform::Measured;

/// Serves `agent` over ttrpc at `address`, in a guest [`ADDRESS`], until the endpoint is dropped.
///
/// # Errors
/// [`endpoint::Error`].
pub async fn serve(agent: Arc<AttestationAgent>, address: &str) -> Result<Endpoint, endpoint::Error> {
    Endpoint::open(address, create_attestation_agent_service(Arc::new(Calls(agent)))).await
}

#[async_trait]
impl AttestationAgentService for Calls {
    async fn get_evidence(&self, _: &TtrpcContext, request: GetEvidenceRequest) -> ttrpc::Result<GetEvidenceResponse> {
        let mut response = GetEvidenceResponse::new();
        response.Evidence = self.evidence(&request.RuntimeData).await?;
        Ok(response)
    }

    async fn get_additional_evidence(
        &self,
        _: &TtrpcContext,
        request: GetAdditionalEvidenceRequest,
    ) -> ttrpc::Result<GetEvidenceResponse> {
        let mut response = GetEvidenceResponse::new();
        response.Evidence = self.additional_evidence(&request.RuntimeData).await?;
        Ok(response)
    }

    async fn get_token(&self, context: &TtrpcContext, request: GetTokenRequest) -> ttrpc::Result<GetTokenResponse> {
        if let Some(jwt) = context.metadata.get(REFUSED_TOKEN).and_then(|values| values.first()) {
            self.refused(jwt);
        }
        let mut response = GetTokenResponse::new();
        response.Token = self.token(&request.TokenType).await?.to_vec();
        Ok(response)
    }

    async fn extend_runtime_measurement(
        &self,
        _: &TtrpcContext,
        request: ExtendRuntimeMeasurementRequest,
    ) -> ttrpc::Result<ExtendRuntimeMeasurementResponse> {
        let (domain, operation, content) = (&request.Domain, &request.Operation, &request.Content);
        let result = match self.measure(domain, operation, content, request.RegisterIndex).await? {
            Measured::Done => RuntimeMeasurementResult::OK,
            Measured::NotSupported => RuntimeMeasurementResult::NOT_SUPPORTED,
            Measured::NotEnabled => RuntimeMeasurementResult::NOT_ENABLED,
        };
        let mut response = ExtendRuntimeMeasurementResponse::new();
        response.Result = result.into();
        Ok(response)
    }

    async fn bind_init_data(
        &self,
        _: &TtrpcContext,
        request: BindInitDataRequest,
    ) -> ttrpc::Result<BindInitDataResponse> {
        self.bind(&request.Digest).await?;
        Ok(BindInitDataResponse::new())
    }

    async fn get_tee_type(&self, _: &TtrpcContext, _: GetTeeTypeRequest) -> ttrpc::Result<GetTeeTypeResponse> {
        let mut response = GetTeeTypeResponse::new();
        response.tee = self.tee();
        Ok(response)
    }

    async fn get_additional_tees(
        &self,
        _: &TtrpcContext,
        _: GetAdditionalTeesRequest,
    ) -> ttrpc::Result<GetAdditionalTeesResponse> {
        let mut response = GetAdditionalTeesResponse::new();
        response.additional_tees = self.additional_tees();
        Ok(response)
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        let code = if failure.invalid { Code::INVALID_ARGUMENT } else { Code::INTERNAL };
        ttrpc::error::get_rpc_status(code, failure.text)
    }
}

/// Where upstream's components look for this service.
pub const ADDRESS: &str = "unix:///run/confidential-containers/attestation-agent/attestation-agent.sock";
/// Metadata of `GetToken`: the token that the key broker has refused, and that the answer should not be. Upstream's agent
/// ignores it, since it attests for each call.
pub(crate) const REFUSED_TOKEN: &str = "cocoon-refused-token";
