//! One request and its answer: read completely, dispatched to what serves it, refused with a reason.
//!
//! Empty path segments are ignored: clients join a base URL that ends in a slash with a path that begins with one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, COOKIE, ETAG, HOST, SET_COOKIE};
use hyper::http::{HeaderValue, request::Parts};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Broker;
use crate::bodies::Held;
use crate::refusal::Refusal;
use crate::routes::{Found, Route, find};
use crate::session;

/// One request, read completely.
pub(crate) struct Call {
    pub peer: IpAddr,
    pub method: Method,
    /// The name under which the client reached us.
    pub host: String,
    pub headers: HeaderMap,
    pub path: String,
    pub query: Option<String>,
    pub body: Bytes,
}

/// What a request is answered with when it is not refused.
pub(crate) struct Reply {
    status: StatusCode,
    body: Bytes,
    content_type: Option<&'static str>,
    etag: Option<String>,
    set_cookie: Option<String>,
}

impl Broker {
    /// Answers one request of a client at `peer`. A body that is too large is refused, and whatever takes longer than 30
    /// seconds.
    ///
    /// What was begun is done to its end, also where the client has gone or has waited long enough: a write that is
    /// given up half way could be stored and not in force.
    pub async fn answer<B>(self: &Arc<Self>, peer: IpAddr, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let answering = async {
            let (call, held) = self.read(peer, request).await?;
            let broker = self.clone();
            let serving = tokio::spawn(async move {
                let _until_done = held;
                broker.dispatch(&call).await
            });
            serving.await.unwrap_or(Err(Refusal::Busy))
        };
        let answered = tokio::time::timeout(REQUEST_TIME, answering).await;
        match answered.unwrap_or(Err(Refusal::Slow)) {
            Ok(reply) => reply.into_response(),
            Err(refusal) => {
                tracing::info!(%peer, status = refusal.status().as_u16(), %refusal, "refused");
                let body = serde_json::to_vec(&refusal.information()).unwrap_or_default();
                Reply { body: body.into(), content_type: Some(JSON), ..Reply::empty() }
                    .with_status(refusal.status())
                    .into_response()
            }
        }
    }

    async fn read<B>(&self, peer: IpAddr, request: Request<B>) -> Result<(Call, Held), Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        let (body, held) = self.bodies.read(&headers, body).await?;
        let (path, query) = (uri.path().to_owned(), uri.query().map(str::to_owned));
        // HTTP/2 names the host beside the path, HTTP/1.1 in a header.
        let named = headers.get(HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
        let host = uri.authority().map(ToString::to_string).or(named).unwrap_or_default();
        Ok((Call { peer, method, host, headers, path, query, body }, held))
    }

    async fn dispatch(&self, call: &Call) -> Result<Reply, Refusal> {
        let segments: Vec<&str> = call.path.split('/').filter(|segment| !segment.is_empty()).collect();
        let (route, open) = match find(&call.method, &segments) {
            Found::Endpoint(route, open) => (route, open),
            Found::OtherMethod => return Err(Refusal::Method),
            Found::Nothing => return Err(Refusal::Path),
        };
        let name = open.join("/");
        match route {
            Route::Auth => self.auth(call).await,
            Route::Attest => self.attest(call).await,
            Route::GetResource => self.get_resource(call, &name).await,
            Route::ResourceVersion => self.resource_version(call, &name).await,
            Route::ListResources => self.list_resources(call).await,
            Route::SetResource => self.set_resource(call, &name).await,
            Route::DeleteResource => self.delete_resource(call, &name).await,
            Route::ListResourcePolicies => self.list_resource_policies(call).await,
            Route::GetResourcePolicy => self.resource_policy(call, &name).await,
            Route::SetResourcePolicy => self.set_resource_policy(call, open.first().copied()).await,
            Route::DeleteResourcePolicy => self.delete_resource_policy(call, &name).await,
            Route::ListAttestationPolicies => self.list_attestation_policies(call).await,
            Route::GetAttestationPolicy => self.attestation_policy(call, &name).await,
            Route::SetAttestationPolicy => self.set_attestation_policy(call, open.first().copied()).await,
            Route::DeleteAttestationPolicy => self.delete_attestation_policy(call, &name).await,
            Route::ListReferenceValues => self.list_reference_values(call).await,
            Route::GetReferenceValue => self.reference_value(call, &name).await,
            Route::RegisterReferenceValues => self.register_reference_values(call).await,
            Route::DeleteReferenceValue => self.delete_reference_value(call, &name).await,
            Route::Explain => self.explain(call, &name).await,
            Route::Audit => self.audit_lines(call).await,
            Route::Backup => self.backup(call).await,
            Route::Plugin => self.plugin(call, &open).await,
            Route::Healthz => Ok(Reply::empty()),
            Route::Readyz => self.readyz().await,
            Route::Metrics => self.metrics(call).await,
            Route::Jwks => Reply::json(&self.attester.built_in()?.jwks()),
            Route::OpenIdConfiguration => Reply::json(
                &self.attester.built_in()?.openid_configuration(&format!("{}://{}", self.scheme, call.host)),
            ),
        }
    }

    async fn metrics(&self, call: &Call) -> Result<Reply, Refusal> {
        if self.metrics_for_administrators {
            self.administrator(call).await?;
        }
        Ok(Reply::text(self.metrics.render(), "application/openmetrics-text; version=1.0.0"))
    }

    async fn readyz(&self) -> Result<Reply, Refusal> {
        self.store.ping().await?;
        if !self.store.healthy() {
            return Err(Refusal::NotReady);
        }
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

    /// The members of the query; of several with one name the last.
    pub fn query_members(&self) -> BTreeMap<String, String> {
        form_urlencoded::parse(self.query.as_deref().unwrap_or_default().as_bytes()).into_owned().collect()
    }

    /// Path and query, as rules for administrators match them: without empty segments, as the request is dispatched.
    pub fn uri(&self) -> String {
        let mut uri = String::with_capacity(self.path.len());
        for segment in self.path.split('/').filter(|segment| !segment.is_empty()) {
            uri.push('/');
            uri.push_str(segment);
        }
        if let Some(query) = &self.query {
            uri.push('?');
            uri.push_str(query);
        }
        uri
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
        Self { status: StatusCode::OK, body: Bytes::new(), content_type: None, etag: None, set_cookie: None }
    }

    /// A JSON document.
    ///
    /// # Errors
    /// [`Refusal::Body`] for what has no form in JSON, which no type here is.
    pub fn json(value: &impl Serialize) -> Result<Self, Refusal> {
        let body = serde_json::to_vec(value).map_err(|e| Refusal::Body(e.to_string()))?;
        Ok(Self::text(body, JSON))
    }

    /// Anything else.
    pub fn text(body: impl Into<Bytes>, content_type: &'static str) -> Self {
        Self { body: body.into(), content_type: Some(content_type), ..Self::empty() }
    }

    /// The same with a cookie.
    pub fn with_cookie(self, set_cookie: String) -> Self {
        Self { set_cookie: Some(set_cookie), ..self }
    }

    /// The same with an ETag, if there is a version to name.
    pub fn with_etag(self, version: Option<String>) -> Self {
        Self { etag: version.map(|version| format!("\"{version}\"")), ..self }
    }

    /// The same with another status.
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(content_type) = self.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        for (name, value) in [(ETAG, self.etag), (SET_COOKIE, self.set_cookie)] {
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        response
    }
}

const JSON: &str = "application/json";
const REQUEST_TIME: Duration = Duration::from_secs(30);
