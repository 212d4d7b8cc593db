//! What each request gets: the endpoints of the table, with upstream's words first and the cause after them.

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::backend::{Attestation, Failure, Measured, Resources};
use crate::peer::Peer;
use crate::routes::{self, Endpoint, Feature, Features, Found, Route};

/// The API over what answers it. Clones share it.
#[derive(Clone)]
pub struct Api {
    features: Features,
    resources: Arc<dyn Resources>,
    attestation: Arc<dyn Attestation>,
}

impl Api {
    /// An API that offers `features`.
    pub fn new(features: Features, resources: Arc<dyn Resources>, attestation: Arc<dyn Attestation>) -> Self {
        Self { features, resources, attestation }
    }

    /// Answers one request of `peer`.
    pub(crate) async fn answer<B>(&self, peer: &Peer, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !may_ask(peer, &request) {
            return plain(StatusCode::FORBIDDEN, FORBIDDEN);
        }
        let path = request.uri().path().to_owned();
        match routes::find(request.method(), &path) {
            Found::Nothing => plain(StatusCode::NOT_FOUND, "URL NOT FOUND"),
            Found::Endpoint(endpoint, _) if !self.features.has(endpoint.feature) => disabled(endpoint.feature),
            Found::OtherMethod(allowed) => other_method(allowed),
            Found::Endpoint(endpoint, open) => {
                let answer = self.endpoint(endpoint, &open, request).await;
                answer.unwrap_or_else(|failure| {
                    tracing::warn!(%path, error = %failure, "a workload did not get what it asked for");
                    refused(&failure)
                })
            }
        }
    }

    async fn endpoint<B>(
        &self,
        endpoint: &Endpoint,
        open: &[&str],
        request: Request<B>,
    ) -> Result<Response<Full<Bytes>>, Failure>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let query = request.uri().query();
        match endpoint.route {
            Route::Info => self.info().await,
            Route::Token => {
                let kind = parameter(query, "token_type")?.ok_or_else(|| missing("token_type"))?;
                Ok(secret(self.attestation.token(&kind).await?))
            }
            Route::Evidence => Ok(binary(self.attestation.evidence(&runtime_data(query)?).await?)),
            Route::AdditionalEvidence => Ok(binary(self.attestation.additional_evidence(&runtime_data(query)?).await?)),
            Route::Measure => self.measure(request.into_body()).await,
            Route::Resource => self.resource("kbs", open[0], query).await,
            Route::Plugin => self.resource(&format!("kbs+{}", open[0]), open[1], query).await,
        }
    }

    async fn info(&self) -> Result<Response<Full<Bytes>>, Failure> {
        let mut info = json!({ "version": env!("CARGO_PKG_VERSION"), "feature": self.features.to_string() });
        match self.attestation.tees().await {
            Ok(tees) => {
                info["tee"] = tees.tee.into();
                if !tees.additional.is_empty() {
                    info["additional_tees"] = tees.additional.into();
                }
            }
            // A guest that offers resources alone may have no attestation agent that this API reaches.
            Err(_) if self.features == Features::Resource => {}
            Err(failure) => return Err(failure),
        }
        Ok(document(StatusCode::OK, &info))
    }

    async fn measure<B>(&self, body: B) -> Result<Response<Full<Bytes>>, Failure>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        #[derive(Deserialize)]
        struct Event {
            domain: String,
            operation: String,
            content: String,
        }
        let body = Limited::new(body, MAX_EVENT).collect().await.map_err(|e| Failure::Invalid(e.to_string()))?;
        let event: Event = serde_json::from_slice(&body.to_bytes()).map_err(|e| Failure::Invalid(e.to_string()))?;
        let failed = |status, message: &str| document(status, &json!({ "success": "false", "message": message }));
        let measured = self.attestation.measure(&event.domain, &event.operation, &event.content).await;
        Ok(match measured {
            Ok(Measured::Done) => document(StatusCode::OK, &json!({ "success": "true" })),
            Ok(Measured::NotSupported) => {
                failed(StatusCode::OK, "Not Supported: this TEE has no register that events could extend")
            }
            Ok(Measured::NotEnabled) => failed(
                StatusCode::OK,
                "Not Enabled: there is no event log; next: set eventlog_config.enable_eventlog in aa.toml of the initdata",
            ),
            Err(failure) => failed(status(&failure), &failure.to_string()),
        })
    }

    async fn resource(&self, scheme: &str, path: &str, query: Option<&str>) -> Result<Response<Full<Bytes>>, Failure> {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let uri = ResourceUri::parse(&format!("{scheme}:///{path}{query}"));
        let uri = uri.map_err(|e| Failure::Invalid(e.to_string()))?;
        Ok(secret(self.resources.get(&uri).await?))
    }
}

/// Only the pod's own containers are served, which share the loopback interface with the guest. And only who means this
/// API: a client that others lead here, by a redirect or a name that stands for the loopback address, does not.
fn may_ask<B>(peer: &Peer, request: &Request<B>) -> bool {
    match peer {
        Peer::Network(address) => {
            let host = request.headers().get(header::HOST);
            let meant = host.is_none_or(|host| host.to_str().is_ok_and(is_loopback));
            meant && address.ip().to_canonical().is_loopback()
        }
        Peer::Process(caller, guard) => {
            let path = request.uri().path();
            let allowed = guard(caller, path);
            tracing::info!(%caller, container = caller.container(), path, allowed, "a workload asks");
            allowed
        }
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

/// What evidence is to carry.
fn runtime_data(query: Option<&str>) -> Result<Vec<u8>, Failure> {
    let data = parameter(query, "runtime_data")?.ok_or_else(|| missing("runtime_data"))?;
    match parameter(query, "encoding")?.as_deref() {
        None => Ok(data.into_bytes()),
        Some("base64") => URL_SAFE_NO_PAD
            .decode(data)
            .map_err(|_| Failure::Invalid("runtime_data is not base64url without padding".to_owned())),
        Some(_) => Err(Failure::Invalid("the only encoding is base64".to_owned())),
    }
}

/// The decoded value of a query parameter.
fn parameter(query: Option<&str>, name: &str) -> Result<Option<String>, Failure> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let Some((_, value)) = pairs.find(|(key, _)| key == name) else { return Ok(None) };
    // What is not UTF-8 would become something else here, and evidence over something else is of no use.
    if value.contains(char::REPLACEMENT_CHARACTER) {
        return Err(Failure::Invalid(format!("{name} is not UTF-8; next: send it with encoding=base64")));
    }
    Ok(Some(value.into_owned()))
}

fn missing(name: &str) -> Failure {
    Failure::Invalid(format!("the query has no {name}"))
}

fn secret(bytes: Zeroizing<Vec<u8>>) -> Response<Full<Bytes>> {
    // The owner is wiped when the last part of it is sent.
    octets(Bytes::from_owner(bytes))
}

fn binary(bytes: Vec<u8>) -> Response<Full<Bytes>> {
    octets(bytes.into())
}

fn octets(bytes: Bytes) -> Response<Full<Bytes>> {
    let mut response = typed(StatusCode::OK, "application/octet-stream", bytes);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn document(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    typed(status, "application/json", value.to_string().into())
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", text.into())
}

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn disabled(feature: Feature) -> Response<Full<Bytes>> {
    let (words, wanted) = match feature {
        Feature::Attestation => ("Attestation Feature Not Enabled", "attestation"),
        Feature::Resource | Feature::Always => ("Resource Feature Not Enabled", "resource"),
    };
    let next = format!("{words}\nnext: start the guest with agent.guest_components_rest_api={wanted}, or all\n");
    plain(StatusCode::NOT_FOUND, next)
}

fn other_method(allowed: &'static Method) -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, format!("METHOD NOT ALLOWED\nallowed: {allowed}\n"));
    if let Ok(allowed) = HeaderValue::from_str(allowed.as_str()) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

fn refused(failure: &Failure) -> Response<Full<Bytes>> {
    let text = match failure {
        Failure::Invalid(cause) => format!("BAD REQUEST\n{cause}\n"),
        failure => failure.to_string(),
    };
    plain(status(failure), text)
}

fn status(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Invalid(_) => StatusCode::BAD_REQUEST,
        Failure::Refused(_) => StatusCode::FORBIDDEN,
        Failure::NotFound(_) => StatusCode::NOT_FOUND,
        Failure::Unreachable(_) => StatusCode::BAD_GATEWAY,
        Failure::Late(_) => StatusCode::GATEWAY_TIMEOUT,
        Failure::Other(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

const FORBIDDEN: &str = "Forbidden";
/// An event's text has at most 64 KiB, which JSON can double.
const MAX_EVENT: usize = 128 << 10;
