//! A span for each request, and their export to an OpenTelemetry collector where one is configured.
//!
//! The variables of the OpenTelemetry specification decide: `OTEL_EXPORTER_OTLP_ENDPOINT` turns export on,
//! `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and `OTEL_EXPORTER_OTLP_TIMEOUT` are heeded.

use std::time::Duration;

use hyper::{HeaderMap, Request};
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::Peer;

/// Spans on their way to a collector. Dropping it sends those that wait, for at most five seconds; it must be dropped
/// while the runtime still runs.
pub struct Export(SdkTracerProvider);

impl Export {
    /// Starts to export if `OTEL_EXPORTER_OTLP_ENDPOINT` (or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`) is set, on the
    /// runtime that this is called from.
    ///
    /// # Errors
    /// [`Error`] for an endpoint that can't be used.
    pub fn from_environment(service: &'static str) -> Result<Option<Self>, Error> {
        let named = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !named("OTEL_EXPORTER_OTLP_ENDPOINT") && !named("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return Ok(None);
        }
        let client = reqwest::Client::builder().timeout(EXPORT_TIME).build().map_err(Error::Client)?;
        let client = OnRuntime { client, runtime: Handle::current() };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build();
        let exporter = exporter.map_err(|e| Error::Exporter(e.to_string()))?;
        let mut resource = Resource::builder();
        if !named("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(service);
        }
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        Ok(Some(Self(provider.build())))
    }

    /// What a subscriber needs to hand its spans over.
    pub fn layer<S>(&self) -> OpenTelemetryLayer<S, SdkTracer>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer().with_tracer(self.0.tracer("trustee"))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(e) = self.0.shutdown_with_timeout(FLUSH_TIME) {
            tracing::warn!("traces: the last spans were not sent: {e}");
        }
    }
}

/// Why traces can't be exported.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("traces: {0}; next: correct OTEL_EXPORTER_OTLP_ENDPOINT, or unset it")]
    Exporter(String),
    #[error(
        "traces: no HTTP client: {0}; next: correct the system's trusted certificates, or unset OTEL_EXPORTER_OTLP_ENDPOINT"
    )]
    Client(reqwest::Error),
}

/// The span of a request. It continues the trace that the client names in `traceparent`.
pub(crate) fn span<B>(peer: &Peer, request: &Request<B>) -> Span {
    let span = tracing::info_span!(
        "request",
        method = %request.method(),
        path = request.uri().path(),
        peer = %peer.address,
        status = Empty,
    );
    if request.headers().contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
        // An error means that nobody exports spans.
        let _ = span.set_parent(parent);
    }
    span
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(hyper::header::HeaderName::as_str).collect()
    }
}

/// Sends from the exporter's own thread, which has no runtime, over the one that serves.
#[derive(Debug)]
struct OnRuntime {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait::async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<hyper::Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let sending = self.runtime.spawn(async move {
            let mut response = client.execute(request.try_into()?).await?;
            let mut answer = hyper::Response::new(Bytes::new());
            *answer.status_mut() = response.status();
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err(HttpError::from("the collector's answer is too large"));
                }
                body.extend_from_slice(&chunk);
            }
            *answer.body_mut() = body.into();
            Ok(answer)
        });
        sending.await?
    }
}

const EXPORT_TIME: Duration = Duration::from_secs(10);
const FLUSH_TIME: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 << 10;
