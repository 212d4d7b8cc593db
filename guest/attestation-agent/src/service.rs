//! The ttrpc service that upstream's tools and components call.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Serialize;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use wire_ttrpc::attestation_agent::{
    BindInitDataRequest, BindInitDataResponse, ExtendRuntimeMeasurementRequest, ExtendRuntimeMeasurementResponse,
    GetAdditionalEvidenceRequest, GetAdditionalTeesRequest, GetAdditionalTeesResponse, GetEvidenceRequest,
    GetEvidenceResponse, GetTeeTypeRequest, GetTeeTypeResponse, GetTokenRequest, GetTokenResponse,
    RuntimeMeasurementResult,
};
use wire_ttrpc::attestation_agent_ttrpc::{AttestationAgentService, create_attestation_agent_service};
use zeroize::Zeroizing;

use crate::agent::AttestationAgent;
use crate::endpoint::{self, Endpoint};
use crate::error::Error;

/// Serves `agent` at `address`, in a guest [`ADDRESS`], until the endpoint is dropped.
///
/// # Errors
/// [`endpoint::Error`].
pub async fn serve(agent: Arc<AttestationAgent>, address: &str) -> Result<Endpoint, endpoint::Error> {
    let services: HashMap<_, _> = create_attestation_agent_service(Arc::new(Facade(agent)));
    Endpoint::open(address, services).await
}

struct Facade(Arc<AttestationAgent>);

#[async_trait]
impl AttestationAgentService for Facade {
    async fn get_evidence(&self, _: &TtrpcContext, request: GetEvidenceRequest) -> ttrpc::Result<GetEvidenceResponse> {
        let evidence = self.0.evidence(&request.RuntimeData).await.map_err(|e| failed("get evidence", &e))?;
        let mut response = GetEvidenceResponse::new();
        response.Evidence = evidence.to_string().into_bytes();
        Ok(response)
    }

    async fn get_additional_evidence(
        &self,
        _: &TtrpcContext,
        _: GetAdditionalEvidenceRequest,
    ) -> ttrpc::Result<GetEvidenceResponse> {
        // No device has an attester, which upstream says with zero bytes.
        Ok(GetEvidenceResponse::new())
    }

    async fn get_token(&self, _: &TtrpcContext, request: GetTokenRequest) -> ttrpc::Result<GetTokenResponse> {
        let token = match request.TokenType.as_str() {
            "kbs" => self.kbs_token().await,
            "coco_as" => self.0.attestation_service_token().await,
            other => {
                let text = format!("{PREFIX} get token failed: token type {other:?} is not kbs or coco_as");
                return Err(ttrpc::error::get_rpc_status(Code::INVALID_ARGUMENT, text));
            }
        };
        let token = token.map_err(|e| failed("get token", &e))?;
        let mut response = GetTokenResponse::new();
        response.Token = token.to_vec();
        Ok(response)
    }

    async fn extend_runtime_measurement(
        &self,
        _: &TtrpcContext,
        _: ExtendRuntimeMeasurementRequest,
    ) -> ttrpc::Result<ExtendRuntimeMeasurementResponse> {
        let mut response = ExtendRuntimeMeasurementResponse::new();
        response.Result = RuntimeMeasurementResult::NOT_ENABLED.into();
        Ok(response)
    }

    async fn bind_init_data(&self, _: &TtrpcContext, _: BindInitDataRequest) -> ttrpc::Result<BindInitDataResponse> {
        let text = format!("{PREFIX} bind init data failed: initdata is bound once, at boot");
        Err(ttrpc::error::get_rpc_status(Code::UNIMPLEMENTED, text))
    }

    async fn get_tee_type(&self, _: &TtrpcContext, _: GetTeeTypeRequest) -> ttrpc::Result<GetTeeTypeResponse> {
        let mut response = GetTeeTypeResponse::new();
        response.tee = self.0.tee().to_string();
        Ok(response)
    }

    async fn get_additional_tees(
        &self,
        _: &TtrpcContext,
        _: GetAdditionalTeesRequest,
    ) -> ttrpc::Result<GetAdditionalTeesResponse> {
        Ok(GetAdditionalTeesResponse::new())
    }
}

impl Facade {
    async fn kbs_token(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        #[derive(Serialize)]
        struct Answer<'a> {
            token: &'a str,
            tee_keypair: &'a str,
        }
        let token = self.0.token().await?;
        let pem = token.key().to_pkcs8_pem().map_err(|e| Error::Key(e.to_string()))?;
        let answer = Answer { token: token.jwt(), tee_keypair: &pem };
        serde_json::to_vec(&answer).map(Zeroizing::new).map_err(|e| Error::Key(e.to_string()))
    }
}

fn failed(what: &str, error: &Error) -> ttrpc::Error {
    ttrpc::error::get_rpc_status(Code::INTERNAL, format!("{PREFIX} {what} failed: {error}"))
}

const PREFIX: &str = "[ERROR:attestation-agent]";
/// Where upstream's components look for this service.
pub const ADDRESS: &str = "unix:///run/confidential-containers/attestation-agent/attestation-agent.sock";
