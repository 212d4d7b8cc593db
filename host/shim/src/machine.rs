//! A pod's machine as the shim holds it: one task owns it, everybody else asks that task or watches its end.

use async_trait::async_trait;
use sandbox::{AttachedDisk, DiskConfig, Sandbox, SandboxConfig};
use tokio::sync::{mpsc, oneshot, watch};
use wire_ttrpc::agent_ttrpc::AgentServiceClient;

use crate::Error;

/// What makes machines.
#[async_trait]
pub(crate) trait Boot: Send + Sync + 'static {
    async fn boot(&self, config: SandboxConfig) -> Result<Machine, Error>;
}

/// Machines of QEMU.
pub(crate) struct Qemu;

#[async_trait]
impl Boot for Qemu {
    async fn boot(&self, config: SandboxConfig) -> Result<Machine, Error> {
        let sandbox = Sandbox::start(config).await?;
        let (machine, owner) = Machine::new(sandbox.pid(), sandbox.agent().service().clone());
        tokio::spawn(own(sandbox, owner));
        Ok(machine)
    }
}

/// A running machine. Clones are of the same one; when the last is dropped the machine ends.
#[derive(Clone)]
pub(crate) struct Machine {
    pid: u32,
    agent: AgentServiceClient,
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
    /// Its end.
    Stop,
    /// A disk.
    Attach(DiskConfig, oneshot::Sender<Result<AttachedDisk, Error>>),
    /// A disk's end.
    Detach(AttachedDisk, oneshot::Sender<Result<(), Error>>),
}

impl Machine {
    pub(crate) fn new(pid: u32, agent: AgentServiceClient) -> (Self, Owner) {
        let (wish, wishes) = mpsc::channel(1);
        let (tell, end) = watch::channel(None);
        (Self { pid, agent, wishes: wish, end }, Owner { wishes, end: tell })
    }

    /// The process id of the machine, which stands for those of all processes in it.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The agent in its guest.
    pub(crate) fn agent(&self) -> AgentServiceClient {
        self.agent.clone()
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
    pub(crate) async fn stop(&self) {
        let _ = self.wishes.send(Wish::Stop).await;
        self.wishes.closed().await;
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

async fn own(sandbox: Sandbox, mut owner: Owner) {
    let reason = loop {
        let wish = tokio::select! {
            reason = sandbox.exited() => break reason.to_string(),
            wish = owner.wishes.recv() => wish,
        };
        match wish {
            Some(Wish::Stop) | None => break "it was stopped".to_owned(),
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
    sandbox.stop().await;
    drop(sandbox);
    // And whoever stops it hears when they are.
    drop(owner.wishes);
}
