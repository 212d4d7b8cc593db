//! A sandbox's life: from QEMU's command line to an agent with a network, and to nothing left behind.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hypervisor::acceleration::{self, Acceleration};
use hypervisor::{AttachedDisk, Confinement, Disk, DiskConfig, Network, Tap, Tee, Vm, VmConfig};
use pod_network::{Connection, Link, Model, Namespace};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use wire::milestone::Milestone;
use wire_ttrpc::agent::DestroySandboxRequest;

use crate::cgroup::{Cgroup, Lifted};
use crate::channel::Channel;
use crate::footprint::Footprint;
use crate::guest::{self, GuestNetwork};
use crate::machine::Machine;
use crate::{Agent, Directory, End, Error, Event, PodNetwork, SandboxConfig, Timeline, user};

/// A running pod VM. Dropping it kills the machine and removes everything that belongs to it.
pub struct Sandbox {
    agent: Agent,
    timeline: Timeline,
    // In the order in which they must end: the machine, then what it leaves on the host.
    machine: Machine,
    footprint: Footprint,
}

impl Sandbox {
    /// Boots the machine and sets up its network and sandbox.
    ///
    /// # Errors
    /// Any of [`Error`]; nothing is left behind.
    pub async fn start(mut config: SandboxConfig) -> Result<Self, Error> {
        if let Some(machine) = config.remote.take() {
            return Self::start_elsewhere(config, machine).await;
        }
        let timeline = config.timeline.clone();
        timeline.note(Event::Asked, Instant::now());
        let command_line = config.command_line()?;
        if matches!(config.tee, Tee::Sev { .. } | Tee::Snp { .. } | Tee::Tdx { .. }) && config.firmware.is_none() {
            return Err(Error::Firmware);
        }
        let mut footprint = Footprint::of(Directory::create(&config.name)?);
        if let Some(opened) = config.opened.take() {
            opened(footprint.directory.path());
        }
        let acceleration = acceleration::probe_once(config.acceleration, &Directory::known_acceleration()).await?;
        let mut disks = Vec::new();
        if let Some(initdata) = &config.initdata {
            let path = footprint.directory.write("initdata.image", |file| initdata.document.write_disk(file))?;
            disks.push(Disk { path, serial: "initdata".to_owned(), read_only: true });
        }
        let mut confinement = Confinement { user: user::of_vmm(&config, acceleration), ..Confinement::default() };
        let (network, setup) = match &config.network {
            PodNetwork::User => (Network::User, GuestNetwork::user()),
            PodNetwork::Namespace(path) | PodNetwork::Macvtap(path) | PodNetwork::Isolated(path) => {
                let model = match config.network {
                    PodNetwork::Macvtap(_) => Some(Model::Macvtap),
                    PodNetwork::Isolated(_) => None,
                    _ => Some(Model::Redirect),
                };
                let namespace = Namespace::open(path)?;
                footprint.enter(&namespace)?;
                confinement.network_namespace = Some(namespace.descriptor());
                let connection = match model {
                    Some(model) => namespace.connect(model).await?,
                    None => Connection::default(),
                };
                let tap = |link: &Link| Tap {
                    device: link.device.clone(),
                    vhost: vhost_net(acceleration),
                    mac: link.interface.hwAddr.clone(),
                };
                (Network::Taps(connection.links.iter().map(tap).collect()), GuestNetwork::of(connection))
            }
        };
        let mut lifted = None;
        if let Some(path) = &config.cgroup {
            let cgroup = Cgroup::at(path)?;
            let quotas = cgroup.quotas();
            footprint.confine(cgroup.clone(), quotas.clone())?;
            confinement.cgroups = cgroup.create()?;
            lifted = Some(Lifted::new(quotas));
        }
        let (channel, vsock, backend) = Channel::open(&footprint.directory)?;

        timeline.note(Event::VmmStart, Instant::now());
        let vm = Vm::launch(VmConfig {
            name: config.name.to_string(),
            kernel: config.guest.kernel.clone(),
            initramfs: config.guest.initramfs.clone(),
            command_line,
            memory_mib: config.memory_mib,
            vcpus: config.vcpus,
            acceleration,
            vsock,
            disks,
            network,
            qmp_socket: footprint.directory.path().join("qmp.sock"),
            bios: config.firmware.clone().or_else(|| hypervisor::qboot().filter(|_| config.tee == Tee::None)),
            tee: config.tee.clone(),
            initdata_digest: config.initdata.as_ref().map(|initdata| initdata.digest.clone()),
            confinement,
            console: config.console.clone(),
        })
        .await
        .map_err(|error| starved(error.into(), &footprint))?;
        timeline.note(Event::Launched, Instant::now());
        footprint.launched(vm.pid())?;
        let watcher = watch_console(&vm, timeline.clone());

        let agent = first_answer(&vm, &channel, &timeline).await.map_err(|error| starved(error, &footprint))?;
        drop(lifted);
        let machine = Machine::Here { vm: Box::new(vm), _backend: backend, watcher };
        let sandbox = Self::new(agent, timeline, machine, footprint);
        match guest::set_up(&sandbox.agent, &config, setup).await {
            Ok(()) => Ok(sandbox),
            Err(error) => Err(sandbox.cause_of(error).await),
        }
    }

    pub(crate) fn new(agent: Agent, timeline: Timeline, machine: Machine, footprint: Footprint) -> Self {
        Self { agent, timeline, machine, footprint }
    }

    /// The guest's agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// When the pod reached what.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// QEMU's process id; none if the machine is elsewhere.
    pub fn pid(&self) -> Option<u32> {
        self.machine.pid()
    }

    /// How the machine ended, once it has. May be asked any number of times, and the future may be dropped.
    pub async fn exited(&self) -> End {
        match self.machine.ended().await {
            End::Exited(reason) if self.footprint.is_starved() => End::Starved(reason),
            end => end,
        }
    }

    /// The sandbox's folder on the host.
    pub fn directory(&self) -> &Path {
        self.footprint.directory.path()
    }

    /// Gives the guest a further disk.
    ///
    /// # Errors
    /// [`Error::Disk`], or [`Error::DiskElsewhere`]; nothing of the disk is left behind then.
    pub async fn attach_disk(&self, disk: DiskConfig) -> Result<AttachedDisk, Error> {
        self.machine.attach_disk(disk).await
    }

    /// Takes a disk away from the guest, which has to let go of it first.
    ///
    /// # Errors
    /// [`Error::Disk`]; the disk is then still the guest's.
    pub async fn detach_disk(&self, disk: AttachedDisk) -> Result<(), Error> {
        self.machine.detach_disk(disk).await
    }

    /// The end of the machine, where that is why its agent is gone: the connection ends a moment before QEMU does.
    pub async fn cause_of(&self, error: Error) -> Error {
        match error {
            Error::Closed => match timeout(GRACE, self.exited()).await {
                Ok(reason) => Error::Exited(reason),
                Err(_) => Error::Closed,
            },
            other => other,
        }
    }

    /// Ends the guest's sandbox and the machine. Takes at most twice two seconds, whatever the guest does, and as long as
    /// the adaptor takes for a machine elsewhere; what is on the host goes when this value is dropped.
    ///
    /// # Errors
    /// [`Error::Remote`] if the adaptor could not be told. It can be tried again.
    pub async fn stop(&self) -> Result<(), Error> {
        match timeout(GRACE, self.agent.destroy_sandbox(DestroySandboxRequest::new())).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the guest did not end its sandbox"),
            Err(_) => tracing::debug!("the guest did not end its sandbox in time"),
        }
        match &self.machine {
            Machine::Here { vm, watcher, .. } => {
                watcher.abort();
                vm.stop(GRACE).await;
            }
            Machine::Elsewhere(remote) => {
                remote.stop().await?;
                self.footprint.fulfilled();
            }
        }
        Ok(())
    }
}

/// The want of memory, where that is why a machine ended before its guest answered.
fn starved(error: Error, footprint: &Footprint) -> Error {
    use hypervisor::Error::{GuestEnded, Refused};
    match error {
        Error::Hypervisor(GuestEnded(reason) | Refused(reason)) if footprint.is_starved() => {
            Error::Exited(End::Starved(*reason))
        }
        other => other,
    }
}

/// The host kernel's own handling of a tap, where it has one: it works with KVM alone, and is faster.
fn vhost_net(acceleration: Acceleration) -> Option<Arc<OwnedFd>> {
    let open = || File::options().read(true).write(true).open("/dev/vhost-net").ok();
    let device = (acceleration == Acceleration::Kvm).then(open).flatten()?;
    Some(Arc::new(device.into()))
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

/// Software emulation on a loaded machine takes several seconds.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
const GRACE: Duration = Duration::from_secs(2);
