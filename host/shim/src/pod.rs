//! A running pod: its machine, its containers, and what happens to them.
//!
//! No lock is held across a request to the guest: while one container waits for its image, its siblings start, answer and
//! end.

mod watch;
mod whole;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest, KillRequest};
use containerd_shim_protos::events::task::{TaskCreate, TaskExecAdded, TaskIO, TaskPaused, TaskResumed};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use protobuf::{Message as _, MessageField};
use tokio::time::timeout;
use wire_ttrpc::agent::{
    GetMetricsRequest, PauseContainerRequest, ResumeContainerRequest, SignalProcessRequest, StatsContainerRequest,
    TtyWinResizeRequest, UpdateContainerRequest, VolumeStatsRequest, VolumeStatsResponse,
};

use crate::container::Container;
use crate::create::Creation;
use crate::events::Events;
use crate::guest::Guest;
use crate::health::Health;
use crate::io::{ProcessId, Stdio};
use crate::journal::Journal;
use crate::machine::Machine;
use crate::metrics::{Metrics, Usage};
use crate::phase::Phase;
use crate::process::Process;
use crate::spec::Resources;
use crate::volumes::disks::Disks;
use crate::{Error, Kind, Spec, stats, users};

/// A running pod.
pub(crate) struct Pod {
    pub(crate) id: String,
    namespace: String,
    machine: Machine,
    guest: Guest,
    events: Events,
    create_limit: Duration,
    disks: Disks,
    journal: Journal,
    /// Whether the guest's agent went away by itself, which is told once.
    lost: AtomicBool,
    containers: Mutex<BTreeMap<String, Slot>>,
}

/// Where what happens to a pod is told, counted and remembered.
pub(crate) struct Reports {
    pub(crate) events: Events,
    pub(crate) metrics: Metrics,
    pub(crate) journal: Journal,
}

/// A container's place in its pod.
enum Slot {
    /// It is being created, and removed at once if that was given up meanwhile.
    Taken {
        /// Whether it was given up.
        given_up: bool,
    },
    /// It exists.
    Filled(Arc<Container>),
}

impl Pod {
    /// A pod on a machine that has just been booted.
    pub(crate) fn new(
        id: String,
        namespace: String,
        machine: Machine,
        reports: Reports,
        create_limit: Duration,
        disks: Disks,
        health: Option<Health>,
    ) -> Arc<Self> {
        let Reports { events, metrics, journal } = reports;
        let guest = Guest::new(machine.agent(), machine.health(), metrics);
        let (lost, containers) = (AtomicBool::new(false), Mutex::default());
        let pod =
            Arc::new(Self { id, namespace, machine, guest, events, create_limit, disks, journal, lost, containers });
        if let Some(health) = health {
            tokio::spawn(Arc::clone(&pod).watch_health(health));
        }
        tokio::spawn(Arc::clone(&pod).watch_machine());
        tokio::spawn(Arc::clone(&pod).watch_memory());
        pod
    }

    #[cfg(test)]
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Creates a container. Its place is taken from here on, and free again if it fails.
    pub(crate) async fn create(
        self: &Arc<Self>,
        request: &CreateTaskRequest,
        spec: Spec,
        kind: Kind,
    ) -> Result<u32, Error> {
        let reservation = Reservation::of(self, &request.id)?;
        let annotations = spec.annotations.clone();
        let (namespace, disks) = (self.namespace.as_str(), &self.disks);
        let creation = Creation { request, spec, kind, namespace, disks, limit: self.create_limit };
        let container = match creation.run(&self.guest, &self.machine, &self.id).await {
            Ok(container) => Arc::new(container),
            Err(error) => return Err(self.cause_of(error).await),
        };
        if !reservation.fill(&container) {
            if let Err(error) = self.remove(&container).await {
                tracing::warn!(container = %container.id, %error, "what nobody wants any more is not gone yet");
            }
            return Err(Error::State(format!("the creation of container {} was given up", container.id)));
        }
        if container.kind != Kind::Sandbox {
            self.journal.add(&container.id, &container.bundle, &annotations, |id| self.container(id).is_err());
        }
        let stdio = &container.init.stdio;
        let io = TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..TaskIO::default()
        };
        // The same message under two names.
        let rootfs = request.rootfs.iter().filter_map(|mount| mount.write_to_bytes().ok());
        self.events.publish(TaskCreate {
            container_id: container.id.clone(),
            bundle: container.bundle.clone(),
            rootfs: rootfs.filter_map(|mount| protobuf::Message::parse_from_bytes(&mount).ok()).collect(),
            io: MessageField::some(io),
            pid: self.machine.pid(),
            ..TaskCreate::default()
        });
        let init = Arc::clone(&container.init);
        tokio::spawn(Arc::clone(self).watch_process(Arc::clone(&container), init));
        if self.machine.end().is_some() {
            // Whoever told the others of that may not have seen this one.
            self.end_with_machine(&container).await;
        }
        Ok(self.machine.pid())
    }

    /// Adds a process to a container; [`Pod::start`] runs it.
    pub(crate) async fn exec(&self, request: &ExecProcessRequest) -> Result<(), Error> {
        let container = self.container(&request.id)?;
        if container.init.phase().exit().is_some() {
            return Err(Error::State(format!("container {} has ended", container.id)));
        }
        let command = crate::spec::Process::parse(&request.spec.value)?;
        users::expect_known(&command.user, container.user)?;
        let mut command = command.into_wire();
        command.Terminal = request.terminal;
        // What the host would allow a process of its own says nothing about the guest.
        command.Capabilities = MessageField::none();
        let id = ProcessId { container: request.id.clone(), exec: request.exec_id.clone() };
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        container.add(Process::open(id, stdio, Some(command), &self.namespace).await?)?;
        self.events.publish(TaskExecAdded {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            ..TaskExecAdded::default()
        });
        Ok(())
    }

    /// Sends a signal.
    pub(crate) async fn kill(&self, request: &KillRequest) -> Result<(), Error> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let gone = || Error::NotFound(format!("{} has ended: it is", name(&process.id)));
        if process.phase().exit().is_some() {
            return Err(gone());
        }
        let signal = SignalProcessRequest {
            container_id: request.id.clone(),
            exec_id: request.exec_id.clone(),
            signal: request.signal,
            ..SignalProcessRequest::default()
        };
        let Err(error) = self.guest.signal_process(signal).await else { return Ok(()) };
        match error {
            Error::Guest { code: ttrpc::Code::NOT_FOUND, .. } => return Err(gone()),
            Error::Closed { .. } if self.machine.end().is_some() => return Err(gone()),
            _ => {}
        }
        // The guest may be stuck or refuse. Its machine ends all the same: at once where that was meant, and at the second
        // attempt where a container was, since containerd removes no pod before it has killed all of them.
        let mortal = request.signal == KILL && request.exec_id.is_empty();
        if mortal && (container.kind.owns_machine() || container.survives()) {
            tracing::warn!(id = %request.id, %error, "the guest doesn't kill, and its machine is ended");
            return self.machine.stop().await;
        }
        Err(error)
    }

    /// Freezes a container.
    pub(crate) async fn pause(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let request = PauseContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.of_guest(self.guest.pause_container(request).await).await?;
        container.init.enter(Phase::Paused);
        self.events.publish(TaskPaused { container_id: id.to_owned(), ..TaskPaused::default() });
        Ok(())
    }

    /// Lets a frozen container go on.
    pub(crate) async fn resume(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        let request = ResumeContainerRequest { container_id: id.to_owned(), ..Default::default() };
        self.of_guest(self.guest.resume_container(request).await).await?;
        container.init.enter(Phase::Running);
        self.events.publish(TaskResumed { container_id: id.to_owned(), ..TaskResumed::default() });
        Ok(())
    }

    /// Gives a process's terminal a size.
    pub(crate) async fn resize(&self, id: &str, exec: &str, rows: u32, columns: u32) -> Result<(), Error> {
        let (_, process) = self.process(id, exec)?;
        if process.phase() == Phase::Created {
            return Err(Error::State(format!("{} hasn't been started", name(&process.id))));
        }
        let request = TtyWinResizeRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            row: rows,
            column: columns,
            ..TtyWinResizeRequest::default()
        };
        self.of_guest(self.guest.tty_win_resize(request).await).await.map(drop)
    }

    /// Changes what a container may use.
    pub(crate) async fn update(&self, id: &str, resources: &[u8]) -> Result<(), Error> {
        self.container(id)?;
        let resources = MessageField::some(Resources::parse(resources)?.into_wire());
        let request = UpdateContainerRequest { container_id: id.to_owned(), resources, ..Default::default() };
        self.of_guest(self.guest.update_container(request).await).await.map(drop)
    }

    /// What a container has used.
    pub(crate) async fn stats(&self, id: &str) -> Result<Any, Error> {
        self.container(id)?;
        let request = StatsContainerRequest { container_id: id.to_owned(), ..Default::default() };
        Ok(stats::metrics(self.of_guest(self.guest.stats_container(request).await).await?))
    }

    /// What its containers use, if the guest says it of all of them.
    pub(crate) async fn usage(&self) -> Option<Usage> {
        let containers: Vec<_> = self.containers().values().filter_map(Slot::container).collect();
        let mut sum = Usage::default();
        for container in containers.iter().filter(|it| it.kind != Kind::Sandbox && it.init.phase().exit().is_none()) {
            let request = StatsContainerRequest { container_id: container.id.clone(), ..Default::default() };
            let stats = self.guest.stats_container(request).await.ok()?.cgroup_stats.unwrap_or_default();
            sum.memory += stats.memory_stats.unwrap_or_default().usage.unwrap_or_default().usage;
            let nanoseconds = stats.cpu_stats.unwrap_or_default().cpu_usage.unwrap_or_default().total_usage;
            sum.processors += Duration::from_nanos(nanoseconds).as_secs_f64();
        }
        Some(sum)
    }

    /// What a volume of the pod holds, named by its path on the node.
    pub(crate) async fn volume_stats(&self, volume: &Path) -> Result<VolumeStatsResponse, Error> {
        let missing = || Error::NotFound(format!("a disk of this pod for the volume {}", volume.display()));
        let volume_guest_path = self.disks.guest_path(volume).await.ok_or_else(missing)?;
        let request = VolumeStatsRequest { volume_guest_path, ..Default::default() };
        self.of_guest(self.guest.get_volume_stats(request).await).await
    }

    /// Removes what the pod's disks left on the host. Its machine has ended.
    pub(crate) fn clear_disks(&self) {
        self.disks.clear();
    }

    /// The guest's own metrics, where its policy gives them.
    pub(crate) async fn guest_metrics(&self) -> Result<String, Error> {
        Ok(self.guest.get_metrics(GetMetricsRequest::new()).await?.metrics)
    }

    /// A container.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        match self.containers().get(id) {
            Some(Slot::Filled(container)) => Ok(Arc::clone(container)),
            Some(Slot::Taken { .. }) | None => Err(Error::NotFound(format!("container {id}"))),
        }
    }

    /// A container and one of its processes.
    pub(crate) fn process(&self, id: &str, exec: &str) -> Result<(Arc<Container>, Arc<Process>), Error> {
        let container = self.container(id)?;
        let process = container.process(exec)?;
        Ok((container, process))
    }

    /// Whether there is no container.
    pub(crate) fn is_empty(&self) -> bool {
        !self.containers().values().any(|slot| matches!(slot, Slot::Filled(_)))
    }

    async fn of_guest<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(error) => Err(self.cause_of(error).await),
        }
    }

    /// The machine's end, where that is why its guest doesn't answer.
    async fn cause_of(&self, error: Error) -> Error {
        match error {
            Error::Closed { .. } => match timeout(GRACE, self.machine.ended()).await {
                Ok(reason) => Error::Ended(reason),
                Err(_) => error,
            },
            other => other,
        }
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn container(&self) -> Option<Arc<Container>> {
        match self {
            Self::Taken { .. } => None,
            Self::Filled(container) => Some(Arc::clone(container)),
        }
    }
}

/// A place that is taken for a container that is being created, and given back unless it is filled.
struct Reservation<'a> {
    pod: &'a Pod,
    id: &'a str,
    filled: bool,
}

impl<'a> Reservation<'a> {
    fn of(pod: &'a Pod, id: &'a str) -> Result<Self, Error> {
        if let Some(reason) = pod.machine.end() {
            return Err(Error::Ended(reason));
        }
        let mut containers = pod.containers();
        if containers.contains_key(id) {
            return Err(Error::Exists(format!("container {id}")));
        }
        containers.insert(id.to_owned(), Slot::Taken { given_up: false });
        Ok(Self { pod, id, filled: false })
    }

    /// Fills the place, unless the creation was given up.
    fn fill(mut self, container: &Arc<Container>) -> bool {
        let mut containers = self.pod.containers();
        if let Some(slot @ Slot::Taken { given_up: false }) = containers.get_mut(self.id) {
            *slot = Slot::Filled(Arc::clone(container));
            self.filled = true;
        }
        drop(containers);
        self.filled
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            self.pod.containers().remove(self.id);
        }
    }
}

fn name(process: &ProcessId) -> String {
    match process.exec.as_str() {
        "" => format!("container {}", process.container),
        exec => format!("process {exec} of container {}", process.container),
    }
}

const KILL: u32 = 9;
/// Between the end of a machine's connections and its own, and for what a guest says at an end.
const GRACE: Duration = Duration::from_secs(5);
