//! The HTTP API under `/kbs/v0`: which method and path does what.
//!
//! | Method, path | Who | What |
//! |---|---|---|
//! | POST /auth, /attest | guests | the handshake |
//! | GET /resource/r/t/t | guests with a token | a secret, sealed to the guest's key |
//! | POST, DELETE /resource/r/t/t | administrators | set, delete |
//! | GET, POST /resource-policy; POST /attestation-policy | administrators | policies |
//! | POST /reference-value; GET, DELETE /reference-value/name; GET /reference-value | administrators | reference values |
//! | GET /explain/reference | administrators | the full record of a refusal |
//! | GET /healthz (outside the prefix) | anyone | whether the store answers |
//!
//! Empty path segments are ignored: clients join a base URL that ends in a slash with a path that begins with one.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, SET_COOKIE};
use hyper::http::{HeaderValue, request::Parts};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Broker;
use crate::excerpt::excerpt;
use crate::refusal::Refusal;
use crate::session;

/// One request, read completely.
pub(crate) struct Call {
    pub peer: IpAddr,
    pub headers: HeaderMap,
    pub path: String,
    pub query: Option<String>,
    pub body: Bytes,
}

/// What a request is answered with when it is not refused.
pub(crate) struct Reply {
    body: Bytes,
    json: bool,
    set_cookie: Option<String>,
}

impl Broker {
    /// Answers one request of a client at `peer`. A body of more than 2 MiB is refused, and whatever takes longer
    /// than 30 seconds.
    pub async fn answer<B>(&self, peer: IpAddr, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let answered = tokio::time::timeout(REQUEST_TIME, self.dispatch(peer, request)).await;
        match answered.unwrap_or(Err(Refusal::Slow)) {
            Ok(reply) => reply.into_response(),
            Err(refusal) => {
                tracing::info!(%peer, status = refusal.status().as_u16(), %refusal, "refused");
                let body = serde_json::to_vec(&refusal.information()).unwrap_or_default();
                let mut response = Reply { body: body.into(), json: true, set_cookie: None }.into_response();
                *response.status_mut() = refusal.status();
                response
            }
        }
    }

    async fn dispatch<B>(&self, peer: IpAddr, request: Request<B>) -> Result<Reply, Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        let (body, _held) = self.bodies.read(&headers, body).await?;
        let call = Call { peer, headers, path: uri.path().to_owned(), query: uri.query().map(str::to_owned), body };
        let segments: Vec<&str> = call.path.split('/').filter(|segment| !segment.is_empty()).collect();

        let route = match segments.as_slice() {
            ["healthz"] if method == Method::GET => return self.healthz().await,
            ["kbs", "v0", route @ ..] => route,
            _ => return Err(Refusal::Path),
        };
        match (method.as_str(), route) {
            ("POST", ["auth"]) => self.auth(&call).await,
            ("POST", ["attest"]) => self.attest(&call).await,
            ("GET", ["resource", path @ ..]) => self.get_resource(&call, &path.join("/")).await,
            ("POST", ["resource", path @ ..]) => self.set_resource(&call, &path.join("/")).await,
            ("DELETE", ["resource", path @ ..]) => self.delete_resource(&call, &path.join("/")).await,
            ("GET", ["resource-policy"]) => self.list_resource_policies(&call),
            ("POST", ["resource-policy"]) => self.set_resource_policy(&call).await,
            ("POST", ["attestation-policy"]) => self.set_attestation_policy(&call).await,
            ("POST", ["reference-value"]) => self.register_reference_values(&call).await,
            ("GET", ["reference-value"]) => self.list_reference_values(&call),
            ("GET", ["reference-value", name @ ..]) => self.reference_value(&call, &name.join("/")),
            ("DELETE", ["reference-value", name @ ..]) => self.delete_reference_value(&call, &name.join("/")).await,
            ("GET", ["explain", reference]) => self.explain(&call, reference),
            (_, ["auth" | "attest" | "resource-policy" | "attestation-policy"])
            | (_, ["resource" | "reference-value" | "explain", ..]) => Err(Refusal::Method),
            (_, [plugin, ..]) => Err(Refusal::Plugin(excerpt(plugin))),
            (_, []) => Err(Refusal::Path),
        }
    }

    async fn healthz(&self) -> Result<Reply, Refusal> {
        self.store.ping().await?;
        Ok(Reply::empty())
    }
}

impl Call {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`Refusal::Body`] with line and column.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body).map_err(|e| Refusal::Body(e.to_string()))
    }

    /// The token in the `Authorization` header.
    pub fn bearer(&self) -> Option<&str> {
        let (scheme, token) = self.headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// The value of the session cookie.
    pub fn cookie(&self) -> Option<&str> {
        let cookies = self.headers.get_all(COOKIE).iter().filter_map(|header| header.to_str().ok());
        cookies.flat_map(|header| header.split(';')).find_map(|cookie| {
            let (name, value) = cookie.trim().split_once('=')?;
            (name == session::NAME).then_some(value)
        })
    }
}

impl Reply {
    /// Done, and nothing to say.
    pub fn empty() -> Self {
        Self { body: Bytes::new(), json: false, set_cookie: None }
    }

    /// A JSON document.
    ///
    /// # Errors
    /// [`Refusal::Body`] for what has no form in JSON, which no type here is.
    pub fn json(value: &impl Serialize) -> Result<Self, Refusal> {
        let body = serde_json::to_vec(value).map_err(|e| Refusal::Body(e.to_string()))?;
        Ok(Self { body: body.into(), json: true, set_cookie: None })
    }

    /// The same with a cookie.
    pub fn with_cookie(self, set_cookie: String) -> Self {
        Self { set_cookie: Some(set_cookie), ..self }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.json {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(cookie) = self.set_cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
            headers.insert(SET_COOKIE, cookie);
        }
        response
    }
}

const REQUEST_TIME: Duration = Duration::from_secs(30);
