//! Numbers about requests, under the names that dashboards know, and their text for `GET /metrics`.

use std::time::Instant;

use hyper::header::CONTENT_TYPE;
use hyper::http::HeaderValue;
use hyper::{Method, Request, Response};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::measured::Measured;
use crate::{Body, full};

/// The metrics of one server. `GET /metrics` itself is not counted.
///
/// For a server called `kbs`: `kbs_http_requests_total` by method and status, `kbs_http_request_duration_seconds`,
/// `kbs_http_request_size_bytes`, `kbs_http_response_size_bytes` and `kbs_http_active_connections`. No label has a value
/// that a client chooses: methods that HTTP doesn't know are all `OTHER`.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    duration: Histogram,
    request_size: Histogram,
    response_size: Histogram,
    connections: Gauge,
}

impl Metrics {
    /// Registers the metrics of a server called `name`.
    pub fn new(name: &str, registry: &mut Registry) -> Self {
        let sizes = || Histogram::new(exponential_buckets(32.0, 4.0, 10));
        let metrics = Self {
            requests: Family::default(),
            duration: Histogram::new(DURATIONS),
            request_size: sizes(),
            response_size: sizes(),
            connections: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix(format!("{name}_http"));
        registry.register("requests", "Requests that were answered", metrics.requests.clone());
        registry.register(
            "request_duration_seconds",
            "Time from a request's head to its answer's head",
            metrics.duration.clone(),
        );
        registry.register("request_size_bytes", "Sizes of request bodies", metrics.request_size.clone());
        registry.register("response_size_bytes", "Sizes of response bodies", metrics.response_size.clone());
        registry.register("active_connections", "Connections that are open", metrics.connections.clone());
        metrics
    }

    /// Counts a connection as long as the answer lives.
    pub(crate) fn open_connection(&self) -> Open {
        self.connections.inc();
        Open(self.connections.clone())
    }

    /// Begins to measure a request.
    pub(crate) fn request<B: hyper::body::Body>(&self, request: &Request<B>) -> Measuring {
        let metrics = (request.uri().path() != "/metrics").then(|| self.clone());
        let method = match *request.method() {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::DELETE => "DELETE",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            Method::PATCH => "PATCH",
            _ => "OTHER",
        };
        Measuring { metrics, method, request_size: request.body().size_hint().exact(), began: Instant::now() }
    }
}

/// The answer to `GET /metrics`, in the text format of OpenMetrics.
pub fn render(registry: &Registry) -> Response<Body> {
    let mut text = String::new();
    // A String takes everything, and no metric here has a form that the text format lacks.
    let _ = text::encode(&mut text, registry);
    let mut response = Response::new(full(text));
    let format = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, format);
    response
}

/// A connection that is counted.
pub(crate) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request that is being answered.
pub(crate) struct Measuring {
    metrics: Option<Metrics>,
    method: &'static str,
    request_size: Option<u64>,
    began: Instant,
}

impl Measuring {
    /// Takes note of the answer's head, and of its body once it was sent.
    pub fn response(self, response: Response<Body>) -> Response<Measured> {
        let Some(metrics) = self.metrics else { return response.map(|body| Measured::new(body, None)) };
        let labels = Labels { method: self.method, status: response.status().as_u16() };
        metrics.requests.get_or_create(&labels).inc();
        metrics.duration.observe(self.began.elapsed().as_secs_f64());
        if let Some(size) = self.request_size {
            metrics.request_size.observe(size as f64);
        }
        response.map(|body| Measured::new(body, Some(metrics.response_size)))
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Labels {
    method: &'static str,
    status: u16,
}

const DURATIONS: [f64; 9] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, Empty, Full};
    use hyper::StatusCode;

    async fn text(registry: &Registry) -> String {
        let body = render(registry).into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn requests_are_counted_under_the_known_names_and_sizes_go_where_they_belong() {
        let mut registry = Registry::default();
        let metrics = Metrics::new("kbs", &mut registry);
        let request = Request::post("/kbs/v0/auth").body(Full::new(bytes::Bytes::from_static(&[0; 100]))).unwrap();
        let response = metrics.request(&request).response(Response::new(full(vec![0; 1000])));
        response.into_body().collect().await.unwrap();
        let open = metrics.open_connection();

        let exposed = text(&registry).await;
        for line in [
            "kbs_http_requests_total{method=\"POST\",status=\"200\"} 1",
            "kbs_http_request_duration_seconds_count 1",
            "kbs_http_request_size_bytes_sum 100.0",
            "kbs_http_response_size_bytes_sum 1000.0",
            "kbs_http_active_connections 1",
        ] {
            assert!(exposed.lines().any(|l| l == line), "{line} is not in {exposed}");
        }
        drop(open);
        assert!(text(&registry).await.contains("kbs_http_active_connections 0"));
    }

    #[tokio::test]
    async fn a_client_can_t_make_series_and_scraping_is_not_counted() {
        let mut registry = Registry::default();
        let metrics = Metrics::new("kbs", &mut registry);
        for i in 0..1000 {
            let request = Request::builder().method(format!("M{i}").as_str()).uri(format!("/{i}"));
            let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::NOT_FOUND;
            drop(metrics.request(&request).response(response));
        }
        let scrape = Request::get("/metrics").body(Empty::<bytes::Bytes>::new()).unwrap();
        drop(metrics.request(&scrape).response(Response::new(full(""))));

        let exposed = text(&registry).await;
        let series: Vec<_> = exposed.lines().filter(|line| line.starts_with("kbs_http_requests_total")).collect();
        assert_eq!(series, ["kbs_http_requests_total{method=\"OTHER\",status=\"404\"} 1000"]);
    }
}
