//! What relying parties look up: the keys that sign tokens, and where to find them.

use std::sync::Arc;

use attestation::AttestationService;
use axum::extract::State;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

/// `GET /.well-known/jwks.json` and `GET /.well-known/openid-configuration`, served by this scheme.
pub(crate) fn router(service: Arc<AttestationService>, scheme: &'static str) -> Router {
    let keys = service.clone();
    Router::new()
        .route("/.well-known/jwks.json", get(async move || Json(keys.jwks())))
        .route("/.well-known/openid-configuration", get(openid_configuration))
        .with_state((service, scheme))
}

type Discovery = State<(Arc<AttestationService>, &'static str)>;

async fn openid_configuration(State((service, scheme)): Discovery, uri: Uri, headers: HeaderMap) -> Response {
    match host(&uri, &headers) {
        Some(host) => Json(service.openid_configuration(&format!("{scheme}://{host}"))).into_response(),
        None => (StatusCode::BAD_REQUEST, "the request does not say which host it is for\n").into_response(),
    }
}

/// Whom a request is for: in HTTP/2 its URI says so, in HTTP/1.1 a header.
fn host(uri: &Uri, headers: &HeaderMap) -> Option<Authority> {
    let host = match uri.authority() {
        Some(authority) => authority.clone(),
        None => headers.get(HOST)?.to_str().ok()?.parse().ok()?,
    };
    (!host.as_str().contains('@')).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn the_host_is_in_uri_or_header() {
        let headers = |host| HeaderMap::from_iter([(HOST, HeaderValue::from_static(host))]);
        let (path, full) = (Uri::from_static("/x"), Uri::from_static("https://as.example:1/x"));
        assert_eq!(host(&full, &headers("other")).unwrap(), "as.example:1");
        assert_eq!(host(&path, &headers("as.example:2")).unwrap(), "as.example:2");
        for bad in ["", "user@as.example", "as.example/path", "a b"] {
            assert_eq!(host(&path, &headers(bad)), None, "{bad}");
        }
        assert_eq!(host(&path, &HeaderMap::new()), None);
    }
}
