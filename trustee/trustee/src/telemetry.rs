//! What the process tells of itself while it runs: logs on standard error, and traces.

use http_server::traces::{self, Export};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// Begins to log as `RUST_LOG` and `LOG_FORMAT` say, and to export traces where a collector is configured. Must be
/// called on a runtime of tokio, and what it returns be dropped on it.
///
/// # Errors
/// [`traces::Error`] for a collector that can't be used.
pub fn start(role: &'static str) -> Result<Option<Export>, traces::Error> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let export = Export::from_environment(role)?;
    let spans = export.as_ref().map(Export::layer);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match std::env::var("LOG_FORMAT").as_deref() {
        Ok("json") => lines.json().boxed(),
        _ => lines.boxed(),
    };
    tracing_subscriber::registry().with(spans).with(lines).with(filter).init();
    Ok(export)
}
