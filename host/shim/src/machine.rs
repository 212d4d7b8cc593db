//! A pod's machine as the shim holds it: one task owns it, everybody else asks that task or watches its end.

use async_trait::async_trait;
use sandbox::{AttachedDisk, DiskConfig, Sandbox, SandboxConfig};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::health_ttrpc::HealthClient;

use crate::{Error, forward};

/// What makes machines.
#[async_trait]
pub(crate) trait Boot: Send + Sync + 'static {
    async fn boot(&self, config: SandboxConfig) -> Result<Machine, Error>;
}

/// Machines of QEMU, and those that an adaptor makes elsewhere.
pub(crate) struct Hypervisors;

#[async_trait]
impl Boot for Hypervisors {
    async fn boot(&self, config: SandboxConfig) -> Result<Machine, Error> {
        let (name, network) = (config.name.clone(), config.network.clone());
        let sandbox = Sandbox::start(config).await?;
        // What is elsewhere can be reached at its agent alone.
        let forwarding = sandbox.pid().map(|_| tokio::spawn(forward::serve(name, network)));
        let agent = sandbox.agent();
        let (machine, owner) = Machine::new(sandbox.pid(), agent.service().clone(), agent.health().clone());
        tokio::spawn(own(sandbox, owner, forwarding));
        Ok(machine)
    }
}

/// A running machine. Clones are of the same one; when the last is dropped the machine ends.
#[derive(Clone)]
pub(crate) struct Machine {
    vmm: Option<u32>,
    agent: AgentServiceClient,
    health: HealthClient,
    wishes: mpsc::Sender<Wish>,
    end: watch::Receiver<Option<String>>,
}

/// What the task that owns a machine is asked, and tells.
pub(crate) struct Owner {
    pub(crate) wishes: mpsc::Receiver<Wish>,
    pub(crate) end: watch::Sender<Option<String>>,
}

/// What is wished of a machine.
pub(crate) enum Wish {
    /// Its end. Nothing is answered when that is done, but that it can't be done yet.
    Stop(oneshot::Sender<Error>),
    /// A disk.
    Attach(DiskConfig, oneshot::Sender<Result<AttachedDisk, Error>>),
    /// A disk's end.
    Detach(AttachedDisk, oneshot::Sender<Result<(), Error>>),
}

impl Machine {
    pub(crate) fn new(vmm: Option<u32>, agent: AgentServiceClient, health: HealthClient) -> (Self, Owner) {
        let (wish, wishes) = mpsc::channel(1);
        let (tell, end) = watch::channel(None);
        (Self { vmm, agent, health, wishes: wish, end }, Owner { wishes, end: tell })
    }

    /// The process id that stands for those of all processes in it: the machine's, or our own for a machine elsewhere.
    pub(crate) fn pid(&self) -> u32 {
        self.vmm.unwrap_or_else(std::process::id)
    }

    /// The process id of the machine, if it is on this host.
    pub(crate) fn vmm(&self) -> Option<u32> {
        self.vmm
    }

    /// The agent in its guest.
    pub(crate) fn agent(&self) -> AgentServiceClient {
        self.agent.clone()
    }

    /// Whether that serves.
    pub(crate) fn health(&self) -> HealthClient {
        self.health.clone()
    }

    /// Why it ended, as soon as it has.
    pub(crate) async fn ended(&self) -> String {
        match self.end.clone().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            Ok(None) | Err(_) => "its owner is gone".to_owned(),
        }
    }

    /// Why it ended, if it has.
    pub(crate) fn end(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    /// Ends it, and returns when nothing of it is left.
    ///
    /// # Errors
    /// [`Error::Sandbox`] for a machine elsewhere whose adaptor can't be told. It can be tried again.
    pub(crate) async fn stop(&self) -> Result<(), Error> {
        let (refuse, refused) = oneshot::channel();
        let _ = self.wishes.send(Wish::Stop(refuse)).await;
        match refused.await {
            Ok(error) => Err(error),
            Err(_) => {
                self.wishes.closed().await;
                Ok(())
            }
        }
    }

    /// Gives its guest a disk.
    pub(crate) async fn attach(&self, disk: DiskConfig) -> Result<AttachedDisk, Error> {
        let (answer, answered) = oneshot::channel();
        let _ = self.wishes.send(Wish::Attach(disk, answer)).await;
        match answered.await {
            Ok(disk) => disk,
            Err(_) => Err(Error::Ended(self.ended().await)),
        }
    }

    /// Takes a disk from its guest.
    pub(crate) async fn detach(&self, disk: AttachedDisk) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let _ = self.wishes.send(Wish::Detach(disk, answer)).await;
        // Disks end with their machine.
        answered.await.unwrap_or(Ok(()))
    }
}

async fn own(sandbox: Sandbox, mut owner: Owner, forwarding: Option<JoinHandle<()>>) {
    let mut refuse = None;
    let reason = loop {
        let wish = tokio::select! {
            reason = sandbox.exited() => break reason.to_string(),
            wish = owner.wishes.recv() => wish,
        };
        match wish {
            Some(Wish::Stop(asker)) => {
                refuse = Some(asker);
                break STOPPED.to_owned();
            }
            None => break STOPPED.to_owned(),
            Some(Wish::Attach(disk, answer)) => {
                let _ = answer.send(sandbox.attach_disk(disk).await.map_err(Error::from));
            }
            Some(Wish::Detach(disk, answer)) => {
                let _ = answer.send(sandbox.detach_disk(disk).await.map_err(Error::from));
            }
        }
    };
    tracing::info!(%reason, "the pod's machine ends");
    // Whoever waits for processes hears of their end before the machine's last files are gone.
    let _ = owner.end.send(Some(reason));
    if let Some(forwarding) = forwarding {
        forwarding.abort();
    }
    // The adaptor of a machine elsewhere may be away: whoever asks hears that, and may ask again.
    while let Err(error) = sandbox.stop().await {
        tracing::warn!(%error, "the pod's machine can't be ended yet");
        if let Some(refuse) = refuse.take() {
            let _ = refuse.send(error.into());
        }
        match owner.wishes.recv().await {
            Some(Wish::Stop(asker)) => refuse = Some(asker),
            // Disks end with their machine.
            Some(Wish::Attach(..) | Wish::Detach(..)) => {}
            None => break,
        }
    }
    drop(sandbox);
    // And whoever stops it hears when they are.
    drop(owner.wishes);
}

/// Why a machine ended that somebody wanted to end.
pub(crate) const STOPPED: &str = "it was stopped";
