//! The agent: the sandbox, its containers, and the life of each.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{broadcast, oneshot, watch};
use wire_ttrpc::agent::{CreateContainerRequest, CreateSandboxRequest};

use crate::container::{Container, Home};
use crate::containers::Containers;
use crate::fault::Fault;
use crate::helper::Helper;
use crate::id::Id;
use crate::images::{Images, ResolvedImage};
use crate::policy::Policy;
use crate::request::Gated;
use crate::sandbox::Sandbox;
use crate::secrets::{self, Secrets};
use crate::spec;

/// What an agent is made of.
pub struct AgentConfig {
    /// What the guest's owner allows; [`Policy::default`] where the owner said nothing.
    pub policy: Policy,
    /// Who pulls images.
    pub images: Arc<dyn Images>,
    /// Who opens sealed secrets in environments; without, such an environment is refused.
    pub secrets: Option<Arc<dyn Secrets>>,
    /// The binary that calls [`crate::run_helper`]. Containers' processes start as it: its mount should be read-only.
    pub helper: PathBuf,
    /// The folder for bundles and shared folders: `/run/kata-containers`.
    pub root: PathBuf,
    /// The guest's own resolver configuration, which follows the sandbox's: `/etc/resolv.conf`, or none to leave it.
    pub resolv_conf: Option<PathBuf>,
    /// Becomes true when the guest has the drivers for its network and for images; what needs them waits for it.
    pub drivers: watch::Receiver<bool>,
    /// The version that the agent tells callers.
    pub version: String,
}

/// A step in the life of a guest, for those who watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentEvent {
    /// Requests are accepted from now on.
    Listening,
    /// The first request has come.
    FirstRequest,
    /// The pod's sandbox is there.
    SandboxCreated,
    /// A container was made from the image with this digest.
    ContainerCreated {
        /// The container's name.
        id: String,
        /// The digest of the image's manifest.
        digest: String,
    },
    /// A container's program runs.
    ContainerStarted {
        /// The container's name.
        id: String,
    },
    /// A container's first process has ended.
    ContainerEnded {
        /// The container's name.
        id: String,
        /// Its exit code, or 128 plus the signal that killed it.
        status: i32,
    },
    /// Another policy is in force.
    PolicyReplaced,
    /// The pod is over.
    SandboxDestroyed,
}

/// The manager of the guest's pod. See [`Agent::serve`].
pub struct Agent {
    pub(crate) policy: Policy,
    pub(crate) version: String,
    images: Arc<dyn Images>,
    secrets: Option<Arc<dyn Secrets>>,
    helper: Helper,
    root: PathBuf,
    resolv_conf: Option<PathBuf>,
    drivers: watch::Receiver<bool>,
    sandbox: Mutex<Option<Sandbox>>,
    containers: Containers,
    events: broadcast::Sender<AgentEvent>,
    first_request: std::sync::Once,
}

impl Agent {
    /// Makes an agent and its folder.
    ///
    /// # Errors
    /// [`Error::Root`] where the folder can't be made.
    pub fn new(config: AgentConfig) -> Result<Self, Error> {
        let AgentConfig { policy, images, secrets, helper, root, resolv_conf, drivers, version } = config;
        std::fs::create_dir_all(&root).map_err(Error::Root)?;
        let helper = Helper { program: helper, state: root.join(".state") };
        Ok(Self {
            policy,
            version,
            images,
            secrets,
            helper,
            root,
            resolv_conf,
            drivers,
            sandbox: Mutex::new(None),
            containers: Containers::default(),
            events: broadcast::channel(EVENTS).0,
            first_request: std::sync::Once::new(),
        })
    }

    /// The steps that the guest takes from now on. A reader that lags behind misses the oldest.
    pub fn events(&self) -> broadcast::Receiver<AgentEvent> {
        self.events.subscribe()
    }

    pub(crate) fn announce(&self, event: AgentEvent) {
        // Nobody has to listen.
        let _ = self.events.send(event);
    }

    /// Says once that the host has begun to talk.
    pub(crate) fn note_request(&self) {
        self.first_request.call_once(|| self.announce(AgentEvent::FirstRequest));
    }

    /// Lets a request pass, or says why the policy does not.
    pub(crate) fn admit<R: Gated>(&self, request: &R) -> Result<(), Fault> {
        self.note_request();
        if request.payload() > MAX_PAYLOAD {
            return Err(Fault::Invalid("the request carries more than 256 KiB; next: send it in parts"));
        }
        self.decide(R::NAME, request.input())
    }

    /// Waits until the guest has its drivers.
    pub(crate) async fn drivers(&self) {
        // Whoever loads them and fails ends the guest.
        let _ = self.drivers.clone().wait_for(|loaded| *loaded).await;
    }

    pub(crate) fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<(), Fault> {
        let mut sandbox = self.sandbox();
        if sandbox.is_some() {
            return Err(Fault::Exists("the sandbox".to_owned()));
        }
        let created = Sandbox::create(request, &self.root)?;
        if let Some(path) = &self.resolv_conf {
            let named = created.resolver().lines().any(|line| line.starts_with("nameserver"));
            std::fs::write(path, if named { created.resolver() } else { NO_RESOLVER })
                .map_err(|e| Fault::Io("guest's resolver can't be configured", e))?;
        }
        *sandbox = Some(created);
        self.announce(AgentEvent::SandboxCreated);
        Ok(())
    }

    pub(crate) async fn destroy_sandbox(self: &Arc<Self>) -> Result<(), Fault> {
        let ids = self.containers.settled().await;
        let removals = ids.iter().map(|id| self.remove_container(id.as_str(), None));
        for result in futures::future::join_all(removals).await {
            match result {
                Ok(()) | Err(Fault::NotFound(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
        if let Some(mut sandbox) = self.sandbox().take() {
            sandbox.destroy();
        }
        self.announce(AgentEvent::SandboxDestroyed);
        Ok(())
    }

    /// Makes a container from the image that the policy allows: what is pulled is the digest that was decided on.
    pub(crate) async fn create_container(self: &Arc<Self>, request: CreateContainerRequest) -> Result<(), Fault> {
        self.note_request();
        if !self.policy.mentions(CreateContainerRequest::NAME) {
            // No digest could change the answer, so no registry has to be asked.
            return self.decide(CreateContainerRequest::NAME, serde_json::Value::Null);
        }
        let id = Id::parse(&request.container_id)?;
        if !request.exec_id.is_empty() {
            Id::parse(&request.exec_id)?;
        }
        let reference = spec::image(&request, &self.root)?;
        // Before any look-up: with the sandbox comes the resolver.
        self.expect_sandbox()?;
        self.drivers().await;
        let image = self.images.resolve(&reference).await?;
        if !is_digest(&image.digest) {
            return Err(Fault::Digest(reference, image.digest));
        }
        let mut input = request.input();
        input["images"] = serde_json::json!({ reference: image.digest });
        self.decide(CreateContainerRequest::NAME, input)?;

        let give_up = self.containers.reserve(&id)?;
        // The work goes on in a task of its own, so that it is undone even where the caller has given up on it.
        let (caller, gone) = oneshot::channel::<()>();
        let agent = Arc::clone(self);
        let abandoned = async move {
            tokio::select! {
                _ = gone => {}
                () = give_up.notified() => {}
            }
        };
        let task = tokio::spawn(async move { agent.build(id, request, image, abandoned).await });
        let result = task.await;
        drop(caller);
        result?
    }

    pub(crate) fn start_container(&self, id: &str) -> Result<(), Fault> {
        self.container(id)?.start()?;
        self.announce(AgentEvent::ContainerStarted { id: id.to_owned() });
        Ok(())
    }

    /// Kills and removes a container. Without a limit it waits as long as that takes.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str, limit: Option<Duration>) -> Result<(), Fault> {
        let id = Id::parse(id)?;
        let container = self.containers.begin_removal(&id)?;
        let agent = Arc::clone(self);
        let task = tokio::spawn(async move {
            let result = container.remove(agent.images.as_ref(), limit).await;
            agent.containers.settle(&id, result.is_err().then_some(container));
            result
        });
        task.await?
    }

    /// The container of that name.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Fault> {
        self.containers.get(&Id::parse(id)?)
    }

    async fn build(
        self: Arc<Self>,
        id: Id,
        request: CreateContainerRequest,
        image: ResolvedImage,
        abandoned: impl Future<Output = ()> + Send,
    ) -> Result<(), Fault> {
        let home = match Home::make(&id, &self.root, &self.helper) {
            Ok(home) => home,
            Err(fault) => {
                self.containers.settle(&id, None);
                return Err(fault);
            }
        };
        let mut volumes = Vec::new();
        let mut abandoned = std::pin::pin!(abandoned);
        let mut result = self.assemble(&home, &request, &image, &mut volumes, abandoned.as_mut()).await;
        // Making the container can't be interrupted, but it can be undone.
        if result.is_ok() && abandoned.now_or_never().is_some() {
            result = Err(Fault::Abandoned);
        }
        match result {
            Ok(container) => {
                let container = Arc::new(container);
                self.watch(&id, &container);
                self.containers.settle(&id, Some(container));
                self.announce(AgentEvent::ContainerCreated { id: id.to_string(), digest: image.digest });
                Ok(())
            }
            Err(fault) => {
                home.clear(self.images.as_ref()).await;
                if let Some(sandbox) = self.sandbox().as_mut() {
                    sandbox.remove_volumes(&volumes);
                }
                self.containers.settle(&id, None);
                Err(fault)
            }
        }
    }

    async fn assemble(
        &self,
        home: &Home,
        request: &CreateContainerRequest,
        image: &ResolvedImage,
        volumes: &mut Vec<PathBuf>,
        mut abandoned: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Container, Fault> {
        let pulled = tokio::select! {
            pulled = self.images.pull(image, home.bundle()) => pulled?,
            () = abandoned.as_mut() => return Err(Fault::Abandoned),
        };
        if pulled.digest != image.digest {
            return Err(Fault::Digest(image.reference.clone(), pulled.digest));
        }
        // Only here, after the decision: what the policy and its log see is what the host sent.
        let request = &tokio::select! {
            opened = secrets::opened(request.clone(), self.secrets.as_deref()) => opened?,
            () = abandoned => return Err(Fault::Abandoned),
        };
        let storages: Vec<_> =
            request.storages.iter().filter(|storage| storage.driver != spec::GUEST_PULL).cloned().collect();
        let (hostname, files, shared) = {
            let mut sandbox = self.sandbox();
            let sandbox = sandbox.as_mut().ok_or_else(|| Fault::State("the sandbox is gone".to_owned()))?;
            *volumes = sandbox.add_volumes(&storages, &self.root)?;
            let files =
                sandbox.write_files(home.bundle()).map_err(|e| Fault::Io("container's files can't be written", e))?;
            (sandbox.hostname().to_owned(), files, sandbox.volumes().to_vec())
        };
        let config = spec::build(request, &pulled, &hostname, &files, &shared)?;
        let terminal = config["process"]["terminal"] == true;
        write_config(home.bundle(), &config)?;
        Container::create(home.clone(), &request.exec_id, terminal).await
    }

    fn watch(self: &Arc<Self>, id: &Id, container: &Arc<Container>) {
        let (agent, container, id) = (Arc::downgrade(self), Arc::clone(container), id.to_string());
        tokio::spawn(async move {
            let status = container.init().ended().await;
            if let Some(agent) = agent.upgrade() {
                agent.announce(AgentEvent::ContainerEnded { id, status });
            }
        });
    }

    fn decide(&self, request: &'static str, input: serde_json::Value) -> Result<(), Fault> {
        let decision = self.policy.decide(request, input);
        if let Err(denial) = &decision {
            tracing::info!(%denial, "request denied");
        }
        Ok(decision?)
    }

    fn expect_sandbox(&self) -> Result<(), Fault> {
        match *self.sandbox() {
            Some(_) => Ok(()),
            None => Err(Fault::State("there is no sandbox; next: create it before its containers".to_owned())),
        }
    }

    fn sandbox(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no agent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent's folder can't be made.
    #[error("agent's folder can't be made: {0}; next: check that its parent is writable")]
    Root(#[source] std::io::Error),
    /// The address can't be listened on.
    #[error("agent can't listen on {0}: {1}; next: check that the address is free and its transport there")]
    Listen(String, #[source] ttrpc::Error),
}

fn write_config(bundle: &Path, config: &serde_json::Value) -> Result<(), Fault> {
    std::fs::write(bundle.join("config.json"), config.to_string())
        .map_err(|e| Fault::Io("container's configuration can't be written", e))
}

/// `sha256:` and 64 hexadecimal digits.
fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Where the host names no resolver: without a name server here, the guest's client would ask public ones.
const NO_RESOLVER: &str = "options timeout:1 attempts:1\nnameserver 127.0.0.1\n";
const EVENTS: usize = 64;
const MAX_PAYLOAD: usize = 256 << 10;
