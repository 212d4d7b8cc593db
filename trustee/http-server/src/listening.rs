//! Listeners: connections are accepted up to a bound, and drained at the end.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::connection::{Limits, Service};
use crate::{Handler, Metrics, Tls};

/// Serves a handler on sockets until `stop` is done; then lets requests in progress end, for at most ten seconds.
pub async fn serve(
    handler: Arc<impl Handler>,
    listeners: Vec<TcpListener>,
    tls: Option<Tls>,
    metrics: Metrics,
    stop: impl Future<Output = ()>,
) {
    let (stopping, stopped) = watch::channel(false);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let service = Service {
            handler: handler.clone(),
            tls: tls.clone(),
            metrics: metrics.clone(),
            stopped: stopped.clone(),
            limits: Limits::default(),
        };
        accepting.spawn(accept(listener, service, places.clone()));
    }
    drop(stopped);
    stop.await;

    let _ = stopping.send(true);
    let drained = async { while accepting.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN_TIME, drained).await.is_err() {
        tracing::warn!("closing connections that did not end in time");
    }
}

/// Binds a socket, with the address in the error.
///
/// # Errors
/// What the system says.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))
}

/// Accepts connections until told to stop, then waits for the ones that are open.
async fn accept(listener: TcpListener, service: Service<impl Handler>, places: Arc<Semaphore>) {
    let mut connections = JoinSet::new();
    let mut stopped = service.stopped.clone();
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            io::Result::Ok((stream, peer, place))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = told(&mut stopped) => break,
        };
        match accepted {
            Ok((stream, peer, place)) => {
                let connection = service.clone().connection(stream, peer);
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("can't accept: {e}");
                // Out of descriptors: a connection that ends gives one back, here or elsewhere in the process.
                tokio::select! {
                    Some(_) = connections.join_next() => {}
                    () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                    () = told(&mut stopped) => break,
                }
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

pub(crate) async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

const MAX_CONNECTIONS: usize = 4096;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const DRAIN_TIME: Duration = Duration::from_secs(10);
