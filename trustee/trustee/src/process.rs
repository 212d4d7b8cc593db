//! What every role does as a process: a runtime, signals, sockets, and a line that says it is ready.

use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_server::{Handler, Metrics, Tls, bind, serve, tls, traces};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::telemetry;

/// Runs a role to its end on a runtime of so many threads, or one for each processor.
///
/// # Errors
/// What the role returns, and [`Error::Runtime`] and [`Error::Traces`].
pub fn run<E: From<Error>>(
    role: &'static str,
    threads: Option<u16>,
    warnings: Vec<String>,
    main: impl Future<Output = Result<(), E>>,
) -> Result<(), E> {
    // Clients of TLS that are made deep in libraries take the one of the process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_stack_size(attestation::policy::STACK).max_blocking_threads(BLOCKING);
    if let Some(threads) = threads {
        builder.worker_threads(threads.into());
    }
    let runtime = builder.build().map_err(Error::Runtime)?;
    runtime.block_on(async {
        let export = telemetry::start(role).map_err(Error::Traces)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let done = main.await;
        // Sending what is left blocks until the runtime has done it.
        tokio::task::spawn_blocking(|| drop(export)).await.map_err(|e| Error::Runtime(io::Error::other(e)))?;
        done
    })
}

/// A process that has its sockets, and ends on SIGTERM or Ctrl-C.
pub struct Process {
    terminated: Signal,
    interrupted: Signal,
    listeners: Vec<TcpListener>,
    tls: Option<Tls>,
}

impl Process {
    /// Takes signals and sockets. Done first: a signal during the start must not end the process half way through a
    /// write, and a start that fails for a wrong address should leave no trace.
    ///
    /// # Errors
    /// [`Error::Listen`] with the address.
    pub async fn start(sockets: &[String], tls: Option<Tls>) -> Result<Self, Error> {
        let terminated = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
        let interrupted = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;
        let mut listeners = Vec::new();
        for socket in sockets {
            listeners.push(bind(socket).await.map_err(Error::Listen)?);
        }
        Ok(Self { terminated, interrupted, listeners, tls })
    }

    /// Whether clients come over TLS.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Prints `listening on URL` for each socket, serves until a signal, and lets requests in progress end.
    ///
    /// # Errors
    /// [`Error::Listen`] if a socket has no address.
    pub async fn serve(self, handler: Arc<impl Handler>, metrics: Metrics) -> Result<(), Error> {
        let Self { mut terminated, mut interrupted, listeners, tls } = self;
        let scheme = if tls.is_some() { "https" } else { "http" };
        for listener in &listeners {
            let address = listener.local_addr().map_err(Error::Listen)?;
            // Whoever started us waits for this line; who doesn't read it may have closed the pipe.
            let _ = writeln!(io::stdout(), "listening on {scheme}://{address}");
        }
        let stop = async {
            tokio::select! { _ = terminated.recv() => {}, _ = interrupted.recv() => {} }
            tracing::info!("stopping");
        };
        serve(handler, listeners, tls, metrics, stop).await;
        Ok(())
    }
}

/// Reads a file that the configuration names.
///
/// # Errors
/// [`Error::File`].
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Why a role did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("start: {} can't be read: {source}; next: check the path in the configuration", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("start: the system gives no threads or signals: {0}; next: check the limits on processes")]
    Runtime(io::Error),
    #[error("start: can't listen on {0}; next: choose another address, or end what uses it")]
    Listen(io::Error),
    #[error("start: {0}")]
    Traces(traces::Error),
    #[error("start: {0}")]
    Tls(#[from] tls::Error),
}

/// Verification and policies have eight of them at once; files and maintenance the rest.
const BLOCKING: usize = 16;
