//! Routes and answers, compatible with upstream's api-server-rest.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use serde_json::json;
use wire::rcar::Tee;
use wire::resource::ResourceUri;

use crate::resources::{ResourceError, Resources};

/// The API over `resources`, for a guest in a TEE of kind `tee`.
pub(crate) fn router(tee: Tee, resources: Arc<dyn Resources>) -> Router {
    Router::new()
        .route("/cdh/resource/{*path}", get(resource))
        .with_state(resources)
        .route("/info", get(move || info(tee)))
        .route("/aa/{*path}", any((StatusCode::NOT_FOUND, "Attestation Feature Not Enabled")))
        .fallback((StatusCode::NOT_FOUND, "URL NOT FOUND"))
        .layer(middleware::from_fn(local))
}

/// Who sent a request.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Only the pod's own containers are served, which share the loopback interface with the guest. And only who means
/// this API: a client that others lead here, by a redirect or a name that stands for the loopback address, does not.
async fn local(Extension(Peer(peer)): Extension<Peer>, request: Request, next: Next) -> Response {
    let meant = request.headers().get(header::HOST).is_none_or(|host| host.to_str().is_ok_and(is_loopback));
    if meant && peer.ip().to_canonical().is_loopback() {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "Forbidden").into_response()
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

async fn info(tee: Tee) -> Response {
    let info = json!({ "version": env!("CARGO_PKG_VERSION"), "tee": tee, "feature": "resource" });
    ([(header::CONTENT_TYPE, "application/json")], info.to_string()).into_response()
}

async fn resource(State(resources): State<Arc<dyn Resources>>, Path(path): Path<String>, uri: Uri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = match ResourceUri::parse(&format!("kbs:///{path}{query}")) {
        Ok(uri) => uri,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("BAD REQUEST: {error}")).into_response(),
    };
    match resources.get(&uri).await {
        Ok(resource) => {
            // The owner is wiped when the last part of it is sent.
            let body = Body::from(Bytes::from_owner(resource));
            let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
            (headers, body).into_response()
        }
        Err(error) => {
            tracing::warn!(%uri, %error, "a workload did not get a resource");
            (status(&error), error.to_string()).into_response()
        }
    }
}

fn status(error: &ResourceError) -> StatusCode {
    match error {
        ResourceError::NotFound(_) => StatusCode::NOT_FOUND,
        ResourceError::Refused(_) => StatusCode::FORBIDDEN,
        ResourceError::Unreachable(_) => StatusCode::SERVICE_UNAVAILABLE,
        ResourceError::Other(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
