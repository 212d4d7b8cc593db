//! `cocoon metrics`: what pods cost and how long their answers take, of one or of all on this node, printed or served.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::monitor::Monitor;
use crate::pods::{Error, Known};
use crate::{Outcome, pods};

#[derive(Args)]
pub struct Arguments {
    /// The pod: its id, the beginning of that, or namespace/name; all pods of this node if left out.
    pod: Option<String>,
    /// Serve /metrics, /sandboxes and /agent-url for all pods of this node there, as kata-monitor does.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:8090", conflicts_with = "pod")]
    listen: Option<SocketAddr>,
}

/// Prints or serves metrics, in Prometheus' text form.
pub async fn metrics(arguments: Arguments) -> Outcome {
    match (arguments.pod, arguments.listen) {
        (Some(pod), _) => print!("{}", Known::find(&pod)?.text("/metrics").await?),
        (None, None) => print!("{}", Monitor::new().metrics(None).await?),
        (None, Some(address)) => serve(address).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(address: SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
    let failed = |error| format!("metrics: can't listen on {address}: {error}; next: name another address");
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    eprintln!("serving metrics on {}", listener.local_addr()?);
    let monitor = Arc::new(Monitor::new());
    loop {
        let (stream, _) = listener.accept().await?;
        let monitor = Arc::clone(&monitor);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let monitor = Arc::clone(&monitor);
                async move { Ok::<_, Infallible>(answer(&monitor, &request).await) }
            });
            let mut server = http1::Builder::new();
            // Who says nothing is let go.
            server.timer(TokioTimer::new());
            if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

async fn answer(monitor: &Monitor, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let query = request.uri().query().unwrap_or_default();
    let sandbox = form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "sandbox").map(|(_, value)| value);
    let answer = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => monitor.metrics(sandbox.as_deref()).await,
        (&Method::GET, "/sandboxes") => sandboxes(),
        (&Method::GET, "/agent-url") => match sandbox.as_deref().map(Known::find) {
            Some(Ok(pod)) => pod.text("/agent-url").await,
            Some(Err(error)) => Err(error),
            None => return respond(StatusCode::BAD_REQUEST, "add ?sandbox=ID\n"),
        },
        (&Method::GET, _) => return respond(StatusCode::NOT_FOUND, "there are /metrics, /sandboxes, /agent-url\n"),
        _ => return respond(StatusCode::METHOD_NOT_ALLOWED, "only GET\n"),
    };
    match answer {
        Ok(text) => respond(StatusCode::OK, text),
        Err(error) => respond(StatusCode::NOT_FOUND, format!("{error}\n")),
    }
}

fn sandboxes() -> Result<String, Error> {
    Ok(pods::all()?.into_iter().filter(|pod| pod.metrics).map(|pod| format!("{}\n", pod.name)).collect())
}

fn respond(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
    response
}
