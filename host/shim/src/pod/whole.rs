//! What goes on although its caller doesn't wait: starts and removals. containerd has deadlines, and what is half done must
//! not stay so.

use std::sync::Arc;

use containerd_shim_protos::events::task::{TaskDelete, TaskExecStarted, TaskStart};
use protobuf::MessageField;
use wire_ttrpc::agent::{ExecProcessRequest, RemoveContainerRequest, StartContainerRequest};

use super::{Pod, Slot, name};
use crate::Error;
use crate::container::Container;
use crate::phase::{Exit, Phase};
use crate::process::Process;
use crate::task::timestamp;

impl Pod {
    /// Runs a container's first process, or an exec.
    pub(crate) async fn start(self: &Arc<Self>, id: &str, exec: &str) -> Result<u32, Error> {
        let (container, process) = self.process(id, exec)?;
        let pod = Arc::clone(self);
        let start = async move {
            match process.id.exec.is_empty() {
                true => pod.start_container(&process).await,
                false => pod.start_exec(container, process).await,
            }
        };
        tokio::spawn(start).await?
    }

    async fn start_container(&self, process: &Process) -> Result<u32, Error> {
        let _starting = process.starting.lock().await;
        expect_new(process)?;
        let (id, pid) = (&process.id.container, self.machine.pid());
        let request = StartContainerRequest { container_id: id.clone(), ..Default::default() };
        self.of_guest(self.guest.start_container(request).await).await?;
        process.enter(Phase::Running);
        process.carry(&self.guest, self.journal.output(id));
        self.events.publish(TaskStart { container_id: id.clone(), pid, ..TaskStart::default() });
        Ok(pid)
    }

    /// An exec that can't be started is over: containerd waits for the end of each that it has added.
    async fn start_exec(self: &Arc<Self>, container: Arc<Container>, process: Arc<Process>) -> Result<u32, Error> {
        let starting = process.starting.lock().await;
        expect_new(&process)?;
        let (id, exec, pid) = (&process.id.container, &process.id.exec, self.machine.pid());
        let request = ExecProcessRequest {
            container_id: id.clone(),
            exec_id: exec.clone(),
            process: process.command.clone().into(),
            ..ExecProcessRequest::default()
        };
        if let Err(error) = self.of_guest(self.guest.exec_process(request).await).await {
            process.end(Exit::now(NEVER_RAN));
            return Err(error);
        }
        process.enter(Phase::Running);
        process.carry(&self.guest, None);
        self.events.publish(TaskExecStarted {
            container_id: id.clone(),
            exec_id: exec.clone(),
            pid,
            ..TaskExecStarted::default()
        });
        drop(starting);
        tokio::spawn(Arc::clone(self).watch_process(container, process));
        Ok(pid)
    }

    /// Removes a container that has ended or was never started, or an exec.
    pub(crate) async fn delete(self: &Arc<Self>, id: &str, exec: &str) -> Result<Exit, Error> {
        if let Some(Slot::Taken { given_up }) = self.containers().get_mut(id) {
            *given_up = true;
        }
        let (container, process) = self.process(id, exec)?;
        let pod = Arc::clone(self);
        let delete = async move {
            match process.id.exec.is_empty() {
                true => pod.delete_container(&container).await,
                false => delete_exec(&container, &process).await,
            }
        };
        tokio::spawn(delete).await?
    }

    async fn delete_container(&self, container: &Arc<Container>) -> Result<Exit, Error> {
        let exit = exit_of(&container.init)?;
        self.remove(container).await?;
        for process in container.processes() {
            process.end(exit);
            process.close().await;
        }
        if self.forget(container) {
            self.events.publish(TaskDelete {
                container_id: container.id.clone(),
                pid: self.machine.pid(),
                exit_status: exit.status,
                exited_at: MessageField::some(timestamp(exit.at)),
                ..TaskDelete::default()
            });
        }
        Ok(exit)
    }

    /// Takes a container from the guest, and gives back what it holds on the host.
    pub(super) async fn remove(&self, container: &Container) -> Result<(), Error> {
        let id = &container.id;
        if container.kind.owns_machine() {
            self.machine.stop().await?;
        } else if self.machine.end().is_none() {
            let request = RemoveContainerRequest { container_id: id.clone(), timeout: REMOVAL, ..Default::default() };
            if let Err(error) = self.guest.remove_container(request).await {
                tracing::warn!(container = %id, %error, "the guest didn't remove a container");
            }
        }
        for disk in container.release() {
            if let Err(error) = self.machine.detach(disk).await {
                tracing::warn!(container = %id, %error, "a disk stays with the machine");
            }
        }
        Ok(())
    }

    /// Gives a container's place back, unless another request did, after which somebody else may have it.
    fn forget(&self, container: &Arc<Container>) -> bool {
        let mut containers = self.containers();
        let there = matches!(containers.get(&container.id), Some(Slot::Filled(it)) if Arc::ptr_eq(it, container));
        if there {
            containers.remove(&container.id);
        }
        there
    }
}

/// Forgets an exec, but whoever waits for it hears of its end.
async fn delete_exec(container: &Container, process: &Process) -> Result<Exit, Error> {
    let starting = process.starting.lock().await;
    let exit = exit_of(process)?;
    process.end(exit);
    drop(starting);
    container.forget(&process.id.exec);
    process.close().await;
    Ok(exit)
}

fn expect_new(process: &Process) -> Result<(), Error> {
    match process.phase() {
        Phase::Created => Ok(()),
        _ => Err(Error::State(format!("{} has been started already", name(&process.id)))),
    }
}

/// The end of a process that may be removed.
fn exit_of(process: &Process) -> Result<Exit, Error> {
    match process.phase() {
        Phase::Ended(exit) => Ok(exit),
        Phase::Created => Ok(Exit::now(0)),
        Phase::Running | Phase::Paused => Err(Error::State(format!("{} runs; next: end it first", name(&process.id)))),
    }
}

/// Seconds that a guest waits for the last processes of a container.
const REMOVAL: u32 = 10;
/// The status of an exec whose start failed.
const NEVER_RAN: u32 = 255;
