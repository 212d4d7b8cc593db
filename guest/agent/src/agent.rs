//! The agent: the sandbox, its containers, and the life of each.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use wire_ttrpc::agent::{CopyFileRequest, CreateSandboxRequest};

use crate::container::Container;
use crate::containers::Containers;
use crate::copy::Copies;
use crate::disks::Disks;
use crate::fault::Fault;
use crate::helper::Helper;
use crate::id::Id;
use crate::images::Images;
use crate::oom::OomEvents;
use crate::policy::{Denial, Policy};
use crate::request::Gated;
use crate::sandbox::Sandbox;
use crate::secrets::{SecretError, Secrets};
use crate::service::DISKS;
use crate::volumes::Volumes;

/// What an agent is made of.
pub struct AgentConfig {
    /// What the guest's owner allows; [`Policy::default`] where the owner said nothing.
    pub policy: Policy,
    /// Who pulls images.
    pub images: Arc<dyn Images>,
    /// Who opens sealed secrets in environments; without, such an environment is refused.
    pub secrets: Option<Arc<dyn Secrets>>,
    /// Who encrypts disks; without, a volume on an encrypted disk is refused.
    pub disks: Option<Arc<dyn Disks>>,
    /// The binary that calls [`crate::run_helper`]. Containers' processes start as it: its mount should be read-only.
    pub helper: PathBuf,
    /// The folder for bundles and shared folders: `/run/kata-containers`.
    pub root: PathBuf,
    /// The guest's own resolver configuration, which follows the sandbox's: `/etc/resolv.conf`, or none to leave it.
    pub resolv_conf: Option<PathBuf>,
    /// Which drivers the guest has; what needs more of them waits.
    pub drivers: watch::Receiver<Drivers>,
    /// The version that the agent tells callers.
    pub version: String,
}

/// Which drivers a guest has: each step has those of the one before.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, PartialOrd)]
pub enum Drivers {
    /// Those of the channel.
    #[default]
    Channel,
    /// Those of the network.
    Network,
    /// All that it will ever have: the kernel takes no more.
    All,
}

/// A step in the life of a guest, for those who watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AgentEvent {
    /// Requests are accepted from now on.
    Listening,
    /// The first request has come.
    FirstRequest,
    /// Something waits for [`Drivers::All`].
    DriversWanted,
    /// The pod's sandbox is there.
    SandboxCreated,
    /// A container was made.
    ContainerCreated {
        /// The container's name.
        id: String,
        /// The digest of its image's manifest; none for the pod's sandbox container, which has no image.
        digest: Option<String>,
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
    pub(crate) images: Arc<dyn Images>,
    pub(crate) secrets: Option<Arc<dyn Secrets>>,
    pub(crate) disks: Option<Arc<dyn Disks>>,
    pub(crate) helper: Helper,
    pub(crate) root: PathBuf,
    pub(crate) containers: Containers,
    pub(crate) volumes: Volumes,
    pub(crate) copies: Copies,
    pub(crate) oom: OomEvents,
    resolv_conf: Option<PathBuf>,
    drivers: watch::Receiver<Drivers>,
    sandbox: Mutex<Option<Sandbox>>,
    events: broadcast::Sender<AgentEvent>,
    first_request: std::sync::Once,
}

impl Agent {
    /// Makes an agent and its folder.
    ///
    /// # Errors
    /// [`Error::Root`] where the folder can't be made.
    pub fn new(config: AgentConfig) -> Result<Self, Error> {
        let AgentConfig { policy, images, secrets, disks, helper, root, resolv_conf, drivers, version } = config;
        std::fs::create_dir_all(&root).map_err(Error::Root)?;
        let helper = Helper::new(helper, root.join(".state"));
        Ok(Self {
            policy,
            version,
            images,
            secrets,
            volumes: Volumes::below(&root, disks.clone()),
            disks,
            helper,
            copies: Copies::below(&root),
            oom: OomEvents::new(),
            containers: Containers::default(),
            root,
            resolv_conf,
            drivers,
            sandbox: Mutex::new(None),
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
    pub(crate) async fn admit<R: Gated>(&self, request: &R) -> Result<(), Fault> {
        self.note_request();
        if request.payload() > MAX_PAYLOAD {
            return Err(Fault::Invalid("the request carries more than 256 KiB; next: send it in parts"));
        }
        match self.policy.settled(R::NAME) {
            Some(decision) => heard(decision),
            None => self.decide(R::NAME, request.input()).await,
        }
    }

    /// Waits until the guest has the drivers of its network.
    pub(crate) async fn network_drivers(&self) {
        self.wait_for_drivers(Drivers::Network).await;
    }

    /// Waits until the guest has all drivers, and its kernel takes no more: nothing of the host's asking runs before.
    pub(crate) async fn all_drivers(&self) {
        if *self.drivers.borrow() != Drivers::All {
            self.announce(AgentEvent::DriversWanted);
        }
        self.wait_for_drivers(Drivers::All).await;
    }

    async fn wait_for_drivers(&self, wanted: Drivers) {
        // Whoever loads them and fails ends the guest.
        let _ = self.drivers.clone().wait_for(|drivers| *drivers >= wanted).await;
    }

    pub(crate) async fn create_sandbox(&self, request: &CreateSandboxRequest) -> Result<(), Fault> {
        {
            let mut sandbox = self.sandbox();
            if sandbox.is_some() {
                return Err(Fault::Exists("the sandbox".to_owned()));
            }
            *sandbox = Some(Sandbox::create(request, &self.root)?);
        }
        match self.furnish(request).await {
            Ok(()) => {
                // The host asks for a container next.
                self.helper.prepare().await;
                self.announce(AgentEvent::SandboxCreated);
                Ok(())
            }
            Err(fault) => {
                if let Some(sandbox) = self.sandbox().take() {
                    sandbox.destroy();
                }
                Err(fault)
            }
        }
    }

    /// Makes the volumes that come with the sandbox, and tells the guest itself its resolver.
    async fn furnish(&self, request: &CreateSandboxRequest) -> Result<(), Fault> {
        if request.storages.iter().any(|storage| DISKS.contains(&storage.driver.as_str())) {
            self.all_drivers().await;
        }
        let volumes = self.volumes.add(&request.storages).await?;
        let configured = match (&self.resolv_conf, &*self.sandbox()) {
            (Some(path), Some(sandbox)) => {
                let named = sandbox.resolver().lines().any(|line| line.starts_with("nameserver"));
                std::fs::write(path, if named { sandbox.resolver() } else { NO_RESOLVER })
            }
            _ => Ok(()),
        };
        match configured {
            Ok(()) => {
                // The sandbox has them until it ends.
                self.volumes.keep_all(&volumes);
                Ok(())
            }
            Err(error) => {
                self.volumes.release(volumes).await;
                Err(Fault::Io("guest's resolver can't be configured", error))
            }
        }
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
        self.volumes.clear().await;
        // Before the answer: the host may end the machine as soon as it has it.
        if let Some(disks) = &self.disks
            && let Err(error) = disks.close().await
        {
            tracing::warn!(%error, "a disk is not released");
        }
        self.copies.clear();
        if let Some(sandbox) = self.sandbox().take() {
            sandbox.destroy();
        }
        self.announce(AgentEvent::SandboxDestroyed);
        Ok(())
    }

    pub(crate) fn start_container(&self, id: &str) -> Result<(), Fault> {
        self.container(id)?.start()?;
        self.announce(AgentEvent::ContainerStarted { id: id.to_owned() });
        Ok(())
    }

    /// Kills and removes a container. Without a limit it waits as long as that takes.
    pub(crate) async fn remove_container(self: &Arc<Self>, id: &str, limit: Option<Duration>) -> Result<(), Fault> {
        let id = Id::parse(id)?;
        let container = match self.containers.begin_removal(&id) {
            Err(fault @ Fault::NotFound(_)) => {
                // The host may have given up before it asked for the container.
                self.copies.remove(&self.copies.named_after(id.as_str()));
                return Err(fault);
            }
            container => container?,
        };
        let agent = Arc::clone(self);
        let task = tokio::spawn(async move {
            let result = container.remove(agent.images.as_ref(), limit).await;
            if result.is_ok() {
                agent.copies.remove(container.copies());
                agent.volumes.release(container.give_back_volumes()).await;
            }
            agent.containers.settle(&id, result.is_err().then_some(container));
            result
        });
        task.await?
    }

    /// Takes what the host copies into the guest. A sealed secret appears opened.
    pub(crate) async fn copy_file(self: &Arc<Self>, request: CopyFileRequest) -> Result<(), Fault> {
        let agent = Arc::clone(self);
        // Files may be as large as the guest's memory.
        let received = tokio::task::spawn_blocking(move || agent.copies.receive(&request)).await?;
        let Some(mut arrived) = received? else { return Ok(()) };
        let sealed = arrived.sealed().map_err(|e| Fault::Io("copied file can't be read", e))?;
        let opened = match (sealed, &self.secrets) {
            (None, _) => None,
            (Some(sealed), Some(secrets)) => Some(secrets.unseal(&sealed).await?),
            (Some(_), None) => {
                return Err(SecretError(
                    "copied file: this guest opens no sealed secrets; next: leave it out".to_owned(),
                )
                .into());
            }
        };
        Ok(self.copies.place(arrived, opened.as_ref().map(|secret| secret.as_slice()))?)
    }

    /// The container of that name.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Fault> {
        self.containers.get(&Id::parse(id)?)
    }

    pub(crate) async fn decide(&self, request: &'static str, input: serde_json::Value) -> Result<(), Fault> {
        heard(self.policy.decision(request, input).await)
    }

    pub(crate) fn expect_sandbox(&self) -> Result<(), Fault> {
        match *self.sandbox() {
            Some(_) => Ok(()),
            None => Err(Fault::State("there is no sandbox; next: create it before its containers".to_owned())),
        }
    }

    pub(crate) fn sandbox(&self) -> MutexGuard<'_, Option<Sandbox>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says in the guest's log what was denied.
fn heard(decision: Result<(), Denial>) -> Result<(), Fault> {
    if let Err(denial) = &decision {
        tracing::info!(%denial, "request denied");
    }
    Ok(decision?)
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

/// Where the host names no resolver: without a name server here, the guest's client would ask public ones.
const NO_RESOLVER: &str = "options timeout:1 attempts:1\nnameserver 127.0.0.1\n";
const EVENTS: usize = 64;
const MAX_PAYLOAD: usize = 256 << 10;
