//! The servers of gRPC: packages `attestation` and `reference`, their health, and the signing keys over plain GET.

use std::error::Error;
use std::sync::Arc;

use attestation::AttestationService;
use axum::Router;
use reference_values::ReferenceValues;
use store::If;
use tonic::server::NamedService;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use wire::rcar::Tee;
use wire::reference_value::Message;
use wire_grpc::attestation::attestation_service_server::{self, AttestationServiceServer};
use wire_grpc::attestation::{
    AttestationRequest, AttestationResponse, ChallengeRequest, ChallengeResponse, SetPolicyRequest, SetPolicyResponse,
};
use wire_grpc::reference::reference_value_provider_service_server::{
    self, ReferenceValueProviderService, ReferenceValueProviderServiceServer,
};
use wire_grpc::reference::{
    ReferenceValueListRequest, ReferenceValueListResponse, ReferenceValueQueryRequest, ReferenceValueQueryResponse,
    ReferenceValueRegisterRequest, ReferenceValueRegisterResponse,
};

use crate::evaluation::{self, Malformed};
use crate::health::{self, Ready, Serving};
use crate::{MAX_REQUEST, well_known};

/// The attestation service, and the reference value provider where its values are at hand. Serve it over HTTP/2.
///
/// A refusal has the status ABORTED, as upstream's, and the error with its causes as message.
pub fn grpc_attestation_service(
    service: Arc<AttestationService>,
    reference_values: Option<ReferenceValues>,
    Serving { ready, scheme }: Serving,
) -> Router {
    let mut names = vec![AttestationServiceServer::<Evaluator>::NAME];
    let server = AttestationServiceServer::new(Evaluator(service.clone())).max_decoding_message_size(MAX_REQUEST);
    let mut routes = Routes::new(server);
    if let Some(values) = reference_values {
        names.push(ReferenceValueProviderServiceServer::<Provider>::NAME);
        routes = routes.add_service(provider(values));
    }
    routes.add_service(health::server(names, ready)).into_axum_router().merge(well_known::router(service, scheme))
}

/// The reference value provider. Serve it over HTTP/2.
pub fn reference_value_provider(reference_values: ReferenceValues, ready: Ready) -> Router {
    let names = vec![ReferenceValueProviderServiceServer::<Provider>::NAME];
    Routes::new(provider(reference_values)).add_service(health::server(names, ready)).into_axum_router()
}

/// Package `attestation`.
struct Evaluator(Arc<AttestationService>);

#[tonic::async_trait]
impl attestation_service_server::AttestationService for Evaluator {
    async fn attestation_evaluate(
        &self,
        request: Request<AttestationRequest>,
    ) -> Result<Response<AttestationResponse>, Status> {
        let evaluation = evaluation::from_grpc(request.into_inner()).map_err(aborted)?;
        let appraisal = self.0.evaluate(evaluation).await.map_err(aborted)?;
        Ok(Response::new(AttestationResponse { attestation_token: appraisal.token }))
    }

    async fn set_attestation_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let SetPolicyRequest { policy_id, policy } = request.into_inner();
        let text = evaluation::policy_text(&policy).map_err(aborted)?;
        self.0.set_policy(&policy_id, text, If::Any).await.map_err(aborted)?;
        Ok(Response::new(SetPolicyResponse {}))
    }

    async fn get_attestation_challenge(
        &self,
        request: Request<ChallengeRequest>,
    ) -> Result<Response<ChallengeResponse>, Status> {
        let inner = request.into_inner().inner;
        let tee = inner.get("tee").ok_or(Malformed::NoTee).map_err(aborted)?;
        let tee: Tee = tee.parse().map_err(Malformed::Tee).map_err(aborted)?;
        let params = inner.get("tee_params").map(String::as_str).unwrap_or_default();
        let attestation_challenge = self.0.challenge(tee, params).map_err(aborted)?;
        Ok(Response::new(ChallengeResponse { attestation_challenge }))
    }
}

/// Package `reference`.
struct Provider(ReferenceValues);

#[tonic::async_trait]
impl reference_value_provider_service_server::ReferenceValueProviderService for Provider {
    async fn query_reference_value(
        &self,
        request: Request<ReferenceValueQueryRequest>,
    ) -> Result<Response<ReferenceValueQueryResponse>, Status> {
        let value = self.0.query(&request.into_inner().reference_value_id);
        let reference_value_results = value.map(|value| value.to_string());
        Ok(Response::new(ReferenceValueQueryResponse { reference_value_results }))
    }

    async fn register_reference_value(
        &self,
        request: Request<ReferenceValueRegisterRequest>,
    ) -> Result<Response<ReferenceValueRegisterResponse>, Status> {
        let message = request.into_inner().message;
        let message: Message = serde_json::from_str(&message).map_err(Malformed::Message).map_err(aborted)?;
        let names = self.0.register(&message).await.map_err(aborted)?;
        tracing::info!(names = names.len(), "reference values registered");
        Ok(Response::new(ReferenceValueRegisterResponse {}))
    }

    async fn list_reference_values(
        &self,
        _: Request<ReferenceValueListRequest>,
    ) -> Result<Response<ReferenceValueListResponse>, Status> {
        let reference_value_ids = self.0.list("").into_iter().map(|record| record.name).collect();
        Ok(Response::new(ReferenceValueListResponse { reference_value_ids }))
    }
}

fn provider(values: ReferenceValues) -> ReferenceValueProviderServiceServer<impl ReferenceValueProviderService> {
    ReferenceValueProviderServiceServer::new(Provider(values)).max_decoding_message_size(MAX_REQUEST)
}

fn aborted(error: impl Error) -> Status {
    let text = chain(&error);
    tracing::warn!("refused: {text}");
    Status::aborted(text)
}

/// An error with its causes, less those that it tells itself. It travels in a header, so its length is bounded.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.chars().take(MAX_MESSAGE).collect()
}

const MAX_MESSAGE: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Layered {
        #[error("outer: {0}")]
        Told(#[source] std::io::Error),
        #[error("outer")]
        Untold(#[source] std::io::Error),
        #[error("{0}")]
        Long(String),
    }

    #[test]
    fn each_cause_is_told_once() {
        let cause = || std::io::Error::other("inner");
        assert_eq!(chain(&Layered::Told(cause())), "outer: inner");
        assert_eq!(chain(&Layered::Untold(cause())), "outer: inner");
        assert_eq!(chain(&Layered::Long("ü".repeat(5_000))).chars().count(), MAX_MESSAGE);
    }
}
