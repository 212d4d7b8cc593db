//! Forwarded ports: what connects to the pod's loopback interface on the node, as containerd does for `kubectl port-forward`,
//! is carried to what listens in the guest.
//!
//! First the guest is asked for the port of its own loopback interface, which takes a rule of its policy. Without one there
//! is still the pod's address, which everybody in the pod's network may try.

use std::sync::Arc;
use std::time::Duration;

use pod_network::{Caller, Loopback, Namespace};
use sandbox::{PodNetwork, SandboxName};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Carries connections until the future is dropped. Returns where there is nothing to forward, or no way to.
pub(crate) async fn serve(name: SandboxName, network: PodNetwork) {
    let path = match network {
        PodNetwork::Namespace(path) | PodNetwork::Macvtap(path) | PodNetwork::Isolated(path) => path,
        PodNetwork::User => return,
    };
    let taken = async { Namespace::open(&path)?.loopback().await };
    let loopback = match taken.await {
        Ok(loopback) => loopback,
        Err(error) => return tracing::warn!(%error, "ports of this pod can't be forwarded"),
    };
    let pod = Arc::new(Pod { name, loopback });
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            caller = pod.loopback.accept(), if carried.len() < AT_ONCE => match caller {
                Ok(caller) => drop(carried.spawn(Arc::clone(&pod).carry(caller))),
                Err(error) => {
                    tracing::warn!(%error, "a forwarded port's connection is lost");
                    // Where descriptors are short, the next attempt would fail at once.
                    sleep(PAUSE).await;
                }
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

struct Pod {
    name: SandboxName,
    loopback: Loopback,
}

impl Pod {
    async fn carry(self: Arc<Self>, caller: Caller) {
        let Caller { mut stream, port } = caller;
        let outcome = match sandbox::connect_port(&self.name, port).await {
            Ok(mut guest) => copy_bidirectional(&mut stream, &mut guest).await,
            Err(refusal) => match self.connect_address(port).await {
                Some(mut program) => copy_bidirectional(&mut stream, &mut program).await,
                None => {
                    tracing::warn!(port, %refusal, "nobody in the pod takes a forwarded port, at the pod's address either");
                    // The caller is connected already. A reset is the nearest to a refusal.
                    stream.set_zero_linger().map(|()| (0, 0))
                }
            },
        };
        if let Err(error) = outcome {
            tracing::debug!(port, %error, "a forwarded port's connection ended");
        }
    }

    /// Whoever in the pod listens at one of its addresses.
    async fn connect_address(&self, port: u16) -> Option<TcpStream> {
        for &address in self.loopback.addresses() {
            let connecting = TcpStream::connect((address, port));
            match timeout(PATIENCE, connecting).await {
                Ok(Ok(program)) => return Some(program),
                Ok(Err(error)) => tracing::debug!(%address, port, %error, "the pod doesn't take a connection"),
                Err(_) => tracing::debug!(%address, port, "the pod doesn't answer"),
            }
        }
        None
    }
}

/// Connections of one pod; more wait.
const AT_ONCE: usize = 256;
const PAUSE: Duration = Duration::from_millis(100);
/// For an address to answer, as long as containerd itself gives it.
const PATIENCE: Duration = Duration::from_secs(5);
