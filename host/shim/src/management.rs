//! What the shim answers on its pod's management socket.

use std::sync::Arc;

use async_trait::async_trait;
use management::{Owner, State};
use sandbox::{Console, Directory, SandboxConfig, SandboxName};
use tokio::sync::watch;

use crate::Error;
use crate::direct_volumes;
use crate::phase::Phase;
use crate::shim::Shim;

/// Serves from the moment at which the machine's folder exists until the sender is dropped.
pub(crate) fn serve_from_the_start(shim: &Arc<Shim>, config: &mut SandboxConfig) -> watch::Sender<()> {
    let (until, mut over) = watch::channel(());
    let (shim, identity) = (Arc::clone(shim), shim.journal.follow(config));
    config.opened = Some(Box::new(move |folder| {
        let written = identity.write(folder).map_err(Error::file("management", folder));
        match written.and_then(|()| management::serve(folder, shim).map_err(Error::file("management", folder))) {
            Ok(server) => drop(tokio::spawn(async move {
                tokio::select! {
                    () = server => {}
                    // Nothing is ever sent.
                    _ = over.changed() => {}
                }
            })),
            Err(error) => tracing::warn!(%error, "there is no management socket"),
        }
    }));
    until
}

#[async_trait]
impl Owner for Shim {
    fn state(&self) -> State {
        let mut state = self.journal.state();
        let pod = self.pod().ok();
        for container in &mut state.containers {
            let phase = pod.as_ref().and_then(|pod| pod.container(&container.id).ok()).map(|it| it.init.phase());
            container.phase = match phase {
                Some(Phase::Created) => "created",
                Some(Phase::Running) => "running",
                Some(Phase::Paused) => "paused",
                Some(Phase::Ended(_)) => "ended",
                None => "removed",
            }
            .to_owned();
        }
        if let Some(pod) = pod {
            state.machine = Some(pod.machine().pid());
            state.ended = pod.machine().end();
        }
        state
    }

    fn console(&self) -> Console {
        self.journal.console()
    }

    fn output(&self, container: &str) -> Option<management::Output> {
        self.journal.output(container)
    }

    async fn metrics(&self) -> String {
        let Ok(pod) = self.pod() else { return self.metrics.text(None, None) };
        let machine = pod.machine().pid();
        let own = self.metrics.text(Some(machine), pod.usage().await);
        // Most policies keep the guest's numbers inside.
        match pod.guest_metrics().await {
            Ok(guest) => own + &management::of_guest(&guest),
            Err(error) => {
                tracing::debug!(%error, "no metrics of the guest");
                own
            }
        }
    }

    fn agent_url(&self) -> String {
        let folder = SandboxName::parse(&self.id).map(|name| Directory::path_of(&name)).unwrap_or_default();
        sandbox::agent_url(&folder)
    }

    async fn answer(&self, request: &management::Request) -> Option<management::Answer> {
        direct_volumes::answer(self, request).await
    }
}
