//! The server of one pod: its runtime, its services, and its end.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use management::Failures;
use tokio::signal::unix::{SignalKind, signal};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::bundle::Bundle;
use crate::events::Events;
use crate::machine::Hypervisors;
use crate::shim::Shim;
use crate::{Arguments, Error, log, sandbox_api, task};

/// Serves a pod on the socket that is standard input, until containerd says that it is over.
///
/// # Errors
/// [`Error::Serve`] where standard input is no socket, or the server can't be started.
pub fn serve(arguments: &Arguments) -> Result<(), Error> {
    let failed = |error: io::Error| Error::Serve(format!("standard input is no socket to listen on: {error}"));
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    listener.local_addr().map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;

    // Away from containerd's terminal and process group. It fails where that was done already.
    let _ = rustix::process::setsid();
    log::start(&Bundle::of(&arguments.bundle)?, arguments.debug);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_keep_alive(Duration::from_secs(1))
        .enable_all()
        .build()
        .map_err(|error| Error::Serve(format!("its threads can't be started: {error}")))?;
    let outcome = runtime.block_on(run(arguments, listener));
    if let Err(error) = &outcome {
        tracing::error!(%error, "the shim ends");
    }
    runtime.shutdown_background();
    if let Some(socket) = std::env::var_os(SOCKET).map(PathBuf::from) {
        let _ = std::fs::remove_file(socket);
    }
    outcome
}

async fn run(arguments: &Arguments, listener: UnixListener) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Serve(format!("the server can't be started: {error}"));
    // Whoever stops containerd must not stop its pods.
    let _deaf = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);

    let events = Events::start(std::env::var("TTRPC_ADDRESS").unwrap_or_default(), arguments.namespace.clone());
    let shim =
        Arc::new(Shim::new(&arguments.id, &arguments.namespace, events.clone(), Hypervisors, Failures::of_node()));
    let listener = Listener::try_from(listener).map_err(|error| failed(&error))?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(task::services(&shim))
        .register_service(sandbox_api::service(&shim));
    server.start().await.map_err(|error| failed(&error))?;
    tracing::info!(id = %arguments.id, version = env!("CARGO_PKG_VERSION"), "serving");

    shim.over().await;
    events.flush(FLUSH).await;
    server.shutdown().await.map_err(|error| failed(&error))?;
    tracing::info!(id = %arguments.id, "served");
    Ok(())
}

/// Names the socket's file to the server, which removes it at its end.
pub(crate) const SOCKET: &str = "COCOON_SHIM_SOCKET";
/// One may be held up by a file while the other serves.
const WORKERS: usize = 2;
/// For containerd to take the last events.
const FLUSH: Duration = Duration::from_secs(5);
