//! The management socket in a pod's folder: metrics, and where the guest's agent is reached.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixListener;

use crate::Error;
use crate::metrics::Metrics;
use crate::pod::Pod;

/// Serves until the pod's machine ends.
///
/// # Errors
/// [`Error::File`] where nothing can listen in the pod's folder.
pub(crate) fn serve(pod: Arc<Pod>, metrics: Metrics, folder: PathBuf) -> Result<(), Error> {
    let path = folder.join(SOCKET);
    let listener = UnixListener::bind(&path).map_err(Error::file("management", &path))?;
    let management = Arc::new(Management { pod: Arc::clone(&pod), metrics, folder });
    tokio::spawn(async move {
        tokio::select! {
            () = management.accept(listener) => {}
            _ = pod.machine().ended() => {}
        }
    });
    Ok(())
}

struct Management {
    pod: Arc<Pod>,
    metrics: Metrics,
    folder: PathBuf,
}

impl Management {
    async fn accept(self: Arc<Self>, listener: UnixListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let management = Arc::clone(&self);
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let management = Arc::clone(&management);
                    async move { Ok::<_, Infallible>(management.answer(&request).await) }
                });
                if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a management connection ended");
                }
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => (StatusCode::OK, self.metrics().await),
            (&Method::GET, "/agent-url") => (StatusCode::OK, agent_url(&self.folder)),
            (_, "/metrics" | "/agent-url") => (StatusCode::METHOD_NOT_ALLOWED, "only GET".to_owned()),
            _ => (StatusCode::NOT_FOUND, "there are /metrics and /agent-url".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; version=0.0.4"));
        response
    }

    async fn metrics(&self) -> String {
        let own = self.metrics.text(Some(self.pod.machine().pid()));
        // Most policies keep the guest's numbers inside.
        match self.pod.guest_metrics().await {
            Ok(guest) => own + &of_guest(&guest),
            Err(error) => {
                tracing::debug!(%error, "no metrics of the guest");
                own
            }
        }
    }
}

/// The guest's metrics without those that only the host can know, whoever says them.
fn of_guest(text: &str) -> String {
    let name = |line: &str| line.trim_start_matches("# TYPE ").trim_start_matches("# HELP ").to_owned();
    let ours = |line: &str| OURS.iter().any(|prefix| name(line).starts_with(prefix));
    text.lines().filter(|line| !ours(line)).flat_map(|line| [line, "\n"]).collect()
}

/// Where the guest's agent is reached: through the host's kernel, or through the socket in the pod's folder.
fn agent_url(folder: &Path) -> String {
    match std::fs::read_to_string(folder.join("cid")) {
        Ok(cid) => format!("vsock://{}:{AGENT_PORT}", cid.trim()),
        Err(_) => format!("hvsock://{}:{AGENT_PORT}", folder.join("vsock.sock").display()),
    }
}

const SOCKET: &str = "shim-monitor.sock";
const AGENT_PORT: u32 = 1024;
const OURS: [&str; 2] = ["kata_shim_", "kata_hypervisor_"];
