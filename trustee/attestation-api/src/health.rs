//! `grpc.health.v1`: whether a service is ready.

use std::sync::Arc;

use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Says whether requests can be answered, such as by [`store::Store::healthy`].
pub type Ready = Arc<dyn Fn() -> bool + Send + Sync>;

/// What the attestation service's servers have to know of the place where they are served.
#[derive(Clone)]
pub struct Serving {
    /// Whether it is ready.
    pub ready: Ready,
    /// `https` or `http`, as relying parties are told.
    pub scheme: &'static str,
}

/// The health of some services, known by the names of their gRPC services or, all together, by an empty one.
pub(crate) fn server(services: Vec<&'static str>, ready: Ready) -> HealthServer<Health> {
    HealthServer::new(Health { services, ready })
}

/// The health service.
pub(crate) struct Health {
    services: Vec<&'static str>,
    ready: Ready,
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let name = request.into_inner().service;
        if !name.is_empty() && !self.services.contains(&name.as_str()) {
            return Err(Status::not_found("there is no such service here"));
        }
        let status = if (self.ready)() { ServingStatus::Serving } else { ServingStatus::NotServing };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }

    /// The protocol lets a server do without; clients then go by the calls' outcome.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("health can be checked, but not watched"))
    }
}
