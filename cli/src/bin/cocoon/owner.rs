//! What `cocoon run` answers of its pod, as a shim does of its own.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use management::{ContainerState, Failure, Failures, Identity, Moment, Output, Owner, State, Trouble};
use sandbox::{Agent, Console, Directory, SandboxConfig, Timeline};
use tokio::io::AsyncWrite;
use tokio::task::JoinHandle;
use wire::metrics::{Exposition, Kind};

use crate::run::MAIN;

/// A pod of ours.
pub struct Pod {
    identity: Identity,
    console: Console,
    timeline: Timeline,
    output: Output,
    machine: Mutex<Option<(Option<u32>, Agent)>>,
    server: Mutex<Option<JoinHandle<()>>>,
}

impl Pod {
    /// The pod that is going to be made of this, answering from the moment at which it has a folder.
    pub fn of(config: &mut SandboxConfig) -> Arc<Self> {
        let identity = Identity {
            id: config.name.to_string(),
            initdata: config.initdata.as_ref().map(|initdata| hex::encode(&initdata.digest)),
            memory_mib: config.memory_mib,
            vcpus: config.vcpus,
            ..Identity::default()
        };
        let (console, timeline) = (config.console.clone(), config.timeline.clone());
        let (output, machine, server) = (Output::default(), Mutex::default(), Mutex::default());
        let pod = Arc::new(Self { identity, console, timeline, output, machine, server });
        let owner = Arc::clone(&pod);
        config.opened = Some(Box::new(move |folder| {
            let serving = owner.identity.write(folder).and_then(|()| management::serve(folder, Arc::clone(&owner)));
            match serving {
                Ok(server) => *lock(&owner.server) = Some(tokio::spawn(server)),
                Err(error) => tracing::warn!(%error, "there is no management socket"),
            }
        }));
        pod
    }

    /// Notes that it runs.
    pub fn runs(&self, machine: Option<u32>, agent: &Agent) {
        *lock(&self.machine) = Some((machine, agent.clone()));
    }

    /// Puts on record that it failed.
    pub fn failed(&self, error: &dyn std::error::Error) {
        let error = error.to_string();
        let trouble = Trouble { at: management::now(), request: "run".to_owned(), error, ..Trouble::default() };
        let failure = Failure::new(self.identity.clone(), trouble, Moment::of(&self.timeline), &self.console);
        if let Err(error) = Failures::of_node().record(&failure) {
            tracing::warn!(%error, "the failure can't be put on record");
        }
    }

    /// Ends the answers.
    pub fn end(&self) {
        if let Some(server) = lock(&self.server).take() {
            server.abort();
        }
    }

    /// A place for output that is heard besides.
    pub fn heard<W: AsyncWrite + Unpin>(&self, to: W) -> Heard<W> {
        self.output.begin();
        Heard { to, output: self.output.clone() }
    }
}

#[async_trait]
impl Owner for Pod {
    fn state(&self) -> State {
        let machine = lock(&self.machine);
        let main = ContainerState { id: MAIN.to_owned(), phase: "running".to_owned(), ..ContainerState::default() };
        State {
            pod: self.identity.clone(),
            machine: machine.as_ref().and_then(|(pid, _)| *pid),
            timeline: Moment::of(&self.timeline),
            containers: machine.is_some().then_some(main).into_iter().collect(),
            ..State::default()
        }
    }

    fn console(&self) -> Console {
        self.console.clone()
    }

    fn output(&self, container: &str) -> Option<Output> {
        (container == MAIN).then(|| self.output.clone())
    }

    async fn metrics(&self) -> String {
        let machine = lock(&self.machine).clone();
        let mut text = Exposition::default();
        let mut of = |prefix: &str, pid: u32| {
            let (process, _) = management::process(pid);
            process.describe(prefix, &mut text);
            text.value(&format!("{prefix}_fds"), Kind::Gauge, "Open descriptors.", process.descriptors);
            process
        };
        let own = of("kata_shim", std::process::id());
        if let Some((Some(pid), _)) = &machine {
            of("kata_hypervisor", *pid);
        }
        own.describe_as_client("kata_shim", &mut text);
        let guest = match &machine {
            // Most policies keep the guest's numbers inside.
            Some((_, agent)) => agent.metrics().await.unwrap_or_default(),
            None => String::new(),
        };
        text.into_text() + &management::of_guest(&guest)
    }

    fn agent_url(&self) -> String {
        sandbox::agent_url(&Directory::of_all().join(&self.identity.id))
    }
}

/// Passes on what is written, and lets it be heard.
pub struct Heard<W> {
    to: W,
    output: Output,
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Heard<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.to).poll_write(context, bytes);
        if let Poll::Ready(Ok(length)) = &written {
            self.output.push(&bytes[..*length]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(context)
    }
}

impl<W> Drop for Heard<W> {
    fn drop(&mut self) {
        self.output.end();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
