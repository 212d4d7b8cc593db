//! A sandbox's life: from QEMU's command line to an agent with a network, and to nothing left behind.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hypervisor::acceleration::{self, Preference};
use hypervisor::{Disk, Network, Vm, VmConfig};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vsock_backend::Backend;
use wire::initdata::InitData;
use wire::milestone::Milestone;
use wire_ttrpc::agent::{
    CreateSandboxRequest, DestroySandboxRequest, Routes, UpdateInterfaceRequest, UpdateRoutesRequest,
};
use wire_ttrpc::types::{IPAddress, Interface, Route};

use crate::channel::Channel;
use crate::{Agent, Directory, Error, Event, SandboxName, Timeline};

/// What a sandbox is made of.
pub struct SandboxConfig {
    /// Its name.
    pub name: SandboxName,
    /// Kernel and initramfs.
    pub guest: GuestFiles,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
    /// Processors of the guest.
    pub vcpus: u32,
    /// Whether the host's virtualisation is used.
    pub acceleration: Preference,
    /// The owner's configuration and policy.
    pub initdata: Option<InitDataDisk>,
}

/// What the guest boots.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The kernel, an ELF file with a PVH entry or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs with guestd.
    pub initramfs: PathBuf,
    /// The kernel's command line, without what is added for one sandbox.
    pub command_line: String,
}

/// The initdata disk, and the digest that binds it.
pub struct InitDataDisk {
    /// The document on the disk.
    pub document: InitData,
    /// What the TEE, on coco-dev the command line, is told: the document's digest, unless the host attacks.
    pub digest: Vec<u8>,
}

impl From<InitData> for InitDataDisk {
    fn from(document: InitData) -> Self {
        let digest = document.digest();
        Self { document, digest }
    }
}

/// A running pod VM. Dropping it kills the machine and removes everything that belongs to it.
pub struct Sandbox {
    agent: Agent,
    timeline: Timeline,
    watcher: JoinHandle<()>,
    // In the order in which they must end: the machine, then what it is connected to, then the folder.
    vm: Vm,
    _backend: Option<Backend>,
    _directory: Directory,
}

impl Sandbox {
    /// Boots the machine and sets up its network and sandbox.
    ///
    /// # Errors
    /// Any of [`Error`]; nothing is left behind.
    pub async fn start(config: SandboxConfig) -> Result<Self, Error> {
        let directory = Directory::create(&config.name)?;
        let acceleration = acceleration::probe(config.acceleration).await?;
        let mut command_line = config.guest.command_line;
        let mut disks = Vec::new();
        if let Some(initdata) = &config.initdata {
            let path = directory.write("initdata.image", |file| initdata.document.write_disk(file))?;
            disks.push(Disk { path, serial: "initdata".to_owned(), read_only: true });
            command_line = format!("{command_line} cocoon.initdata={}", hex::encode(&initdata.digest));
        }
        let (channel, vsock, backend) = Channel::open(&directory)?;

        let timeline = Timeline::default();
        timeline.note(Event::VmmStart, Instant::now());
        let vm = Vm::launch(VmConfig {
            name: config.name.to_string(),
            kernel: config.guest.kernel,
            initramfs: config.guest.initramfs,
            command_line,
            memory_mib: config.memory_mib,
            vcpus: config.vcpus,
            acceleration,
            vsock,
            disks,
            network: Network::User,
            qmp_socket: directory.path().join("qmp.sock"),
            bios: hypervisor::qboot(),
        })
        .await?;
        let watcher = watch_console(&vm, timeline.clone());

        let agent = first_answer(&vm, &channel, &timeline).await?;
        let sandbox = Self { agent, timeline, watcher, vm, _backend: backend, _directory: directory };
        match sandbox.set_up(&config.name).await {
            Ok(()) => Ok(sandbox),
            Err(error) => Err(sandbox.cause_of(error).await),
        }
    }

    /// The guest's agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// When the pod reached what.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The machine.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// The end of the machine, where that is why its agent is gone: the connection ends a moment before QEMU does.
    pub async fn cause_of(&self, error: Error) -> Error {
        match error {
            Error::Closed => match timeout(GRACE, self.vm.exited()).await {
                Ok(reason) => Error::Exited(reason),
                Err(_) => Error::Closed,
            },
            other => other,
        }
    }

    /// Ends the sandbox in order: agent, machine, folder. Takes at most twice two seconds, whatever the guest does.
    pub async fn stop(self) {
        match timeout(GRACE, self.agent.destroy_sandbox(DestroySandboxRequest::new())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the guest did not end its sandbox"),
            Err(_) => tracing::debug!("the guest did not end its sandbox in time"),
        }
        self.watcher.abort();
        self.vm.stop(GRACE).await;
    }

    /// Gives the guest its addresses and its sandbox.
    async fn set_up(&self, name: &SandboxName) -> Result<(), Error> {
        let address = IPAddress { address: ADDRESS.to_owned(), mask: PREFIX.to_owned(), ..IPAddress::default() };
        let interface = Interface {
            device: "eth0".to_owned(),
            name: "eth0".to_owned(),
            IPAddresses: vec![address],
            mtu: 1500,
            hwAddr: hypervisor::USER_MAC.to_owned(),
            ..Interface::default()
        };
        let request = UpdateInterfaceRequest { interface: Some(interface).into(), ..UpdateInterfaceRequest::default() };
        self.agent.update_interface(request).await?;

        let route = Route { device: "eth0".to_owned(), gateway: GATEWAY.to_owned(), ..Route::default() };
        let routes = Routes { Routes: vec![route], ..Routes::default() };
        let request = UpdateRoutesRequest { routes: Some(routes).into(), ..UpdateRoutesRequest::default() };
        self.agent.update_routes(request).await?;

        let request = CreateSandboxRequest {
            hostname: name.to_string(),
            sandbox_id: name.to_string(),
            dns: vec![format!("nameserver {RESOLVER}")],
            ..CreateSandboxRequest::default()
        };
        self.agent.create_sandbox(request).await?;
        Ok(())
    }
}

/// Waits until the guest says that it is ready, connects, and gets an answer.
async fn first_answer(vm: &Vm, channel: &Channel, timeline: &Timeline) -> Result<Agent, Error> {
    let decisive = |line: &str| matches!(Milestone::parse(line), Some(Milestone::Ready | Milestone::Refused(_)));
    let deadline = tokio::time::Instant::now() + BOOT_LIMIT;
    let said = async {
        match vm.console().wait_for(decisive, deadline).await {
            Ok(line) => line,
            // What happened instead is what the machine itself knows.
            Err(_) => std::future::pending().await,
        }
    };
    let line = vm.boot(said, BOOT_LIMIT).await?;
    if let Some(Milestone::Refused(reason)) = Milestone::parse(&line.text) {
        return Err(Error::Refused(reason));
    }
    let agent = Agent::connect(channel).await?;
    agent.check().await?;
    timeline.note(Event::FirstAnswer, Instant::now());
    Ok(agent)
}

/// Notes the guest's milestones with the times at which their lines arrived.
fn watch_console(vm: &Vm, timeline: Timeline) -> JoinHandle<()> {
    let mut lines = vm.console().subscribe();
    tokio::spawn(async move {
        loop {
            let line = match lines.recv().await {
                Ok(line) => line,
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => break,
            };
            tracing::debug!(target: "console", "{}", line.text);
            let event = match Milestone::parse(&line.text) {
                Some(Milestone::Init) => Event::Kernel,
                Some(Milestone::Ready) => Event::GuestReady,
                Some(Milestone::Attested) => Event::Attested,
                Some(Milestone::Image(_)) => Event::ImageReady,
                Some(Milestone::Refused(_)) | None => continue,
            };
            timeline.note(event, line.at.into_std());
        }
    })
}

/// QEMU's user network always has these addresses.
const ADDRESS: &str = "10.0.2.15";
const PREFIX: &str = "24";
const GATEWAY: &str = "10.0.2.2";
const RESOLVER: &str = "10.0.2.3";
/// Software emulation on a loaded machine takes several seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(2);
