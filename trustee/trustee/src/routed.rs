//! Serves a router beside what every role answers: `/healthz`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::Router;
use http_body_util::BodyExt as _;
use http_server::{Body, BoxError, Handler, Metrics, Peer, full, metrics};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use store::Store;
use tower::ServiceExt as _;

/// A router, and the storage whose health is its own.
pub struct Routed {
    router: Router,
    store: Store,
    registry: Registry,
}

impl Routed {
    /// A role called `name`, whose metrics bear that name.
    pub fn new(name: &str, router: Router, store: Store) -> (Arc<Self>, Metrics) {
        let mut registry = Registry::default();
        let metrics = Metrics::new(name, &mut registry);
        (Arc::new(Self { router, store, registry }), metrics)
    }

    async fn ready(&self) -> Response<Body> {
        let ready = self.store.healthy() && self.store.ping().await.is_ok();
        let mut response = Response::new(full(if ready { "" } else { "the storage does not answer" }));
        if !ready {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }
}

impl Handler for Routed {
    async fn answer(&self, _: Peer, request: Request<Incoming>) -> Response<Body> {
        if request.method() == Method::GET {
            match request.uri().path() {
                "/healthz" => return Response::new(full("")),
                "/readyz" => return self.ready().await,
                "/metrics" => return metrics::render(&self.registry),
                _ => {}
            }
        }
        match self.router.clone().oneshot(request.map(axum::body::Body::new)).await {
            Ok(response) => response.map(|body| body.map_err(BoxError::from).boxed_unsync()),
            Err(never) => match never {},
        }
    }
}
