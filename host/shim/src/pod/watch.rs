//! What happens to a pod by itself: processes and machines end, memory gets short, guests hang. All of it is told.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use protobuf::MessageField;
use tokio::time::timeout;
use wire_ttrpc::agent::{GetDiagnosticDataRequest, GetOOMEventRequest, WaitProcessRequest};

use super::{GRACE, Pod, Slot};
use crate::container::Container;
use crate::health::Health;
use crate::machine::STOPPED;
use crate::phase::Exit;
use crate::process::Process;
use crate::task::timestamp;
use crate::{Error, Kind};

impl Pod {
    /// Waits for the end of a process, and tells it.
    pub(super) async fn watch_process(self: Arc<Self>, container: Arc<Container>, process: Arc<Process>) {
        let request = WaitProcessRequest {
            container_id: process.id.container.clone(),
            exec_id: process.id.exec.clone(),
            ..WaitProcessRequest::default()
        };
        let status = loop {
            let error = match self.guest.wait_process(request.clone()).await {
                Ok(answer) => break answer.status as u32,
                Err(error) => error,
            };
            if self.guest.outlives(&error).await {
                continue;
            }
            // The connection ends a moment before the machine, whose end is told for all processes.
            if timeout(GRACE, self.machine.ended()).await.is_ok() {
                return;
            }
            if matches!(error, Error::Closed { .. }) {
                return self.lose(error).await;
            }
            tracing::warn!(container = %container.id, %error, "the end of a process can't be known");
            break UNKNOWN;
        };
        self.end(&container, &process, Exit::now(status)).await;
    }

    /// Ends a machine whose guest's agent is gone, and puts that on record.
    async fn lose(&self, error: Error) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the guest's agent is gone, and its machine is ended");
            self.journal.record(self.journal.note("run", "", &error));
        }
        // Whoever removes the pod hears of it if that fails.
        let _ = self.machine.stop().await;
    }

    /// Tells the end of a process once.
    async fn end(&self, container: &Container, process: &Process, exit: Exit) {
        let _started = process.starting.lock().await;
        let first = process.id.exec.is_empty();
        if first && let Some(path) = &container.termination_log {
            self.fetch_last_words(&container.id, path).await;
        }
        if first && container.kind == Kind::Sandbox && process.phase().exit().is_none() {
            // Kubernetes takes the network away as soon as it hears of the end. Whoever removes the pod hears of it if this
            // fails.
            let _ = self.machine.stop().await;
        }
        if !process.end(exit) {
            return;
        }
        if first {
            self.journal.ended(&container.id, exit.status);
        }
        let id = if first { &process.id.container } else { &process.id.exec };
        self.events.publish(TaskExit {
            container_id: process.id.container.clone(),
            id: id.clone(),
            pid: self.machine.pid(),
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..TaskExit::default()
        });
    }

    /// Writes a container's last words to where Kubernetes reads them, if the guest's policy lets them out.
    async fn fetch_last_words(&self, id: &str, path: &Path) {
        if self.machine.end().is_some() {
            return;
        }
        let request = GetDiagnosticDataRequest {
            log_type: "termination_log".to_owned(),
            container_id: id.to_owned(),
            ..GetDiagnosticDataRequest::default()
        };
        match timeout(GRACE, self.guest.get_diagnostic_data(request)).await {
            Ok(Ok(answer)) => {
                let words = answer.data.as_bytes();
                let words = &words[..words.len().min(LAST_WORDS)];
                if let Err(error) = tokio::fs::write(path, words).await {
                    tracing::warn!(container = %id, %error, "the termination log can't be written");
                }
            }
            Ok(Err(error)) => tracing::debug!(container = %id, %error, "no termination log"),
            Err(_) => tracing::warn!(container = %id, "the guest gave no termination log in time"),
        }
    }

    /// Ends a machine whose guest hangs, and with it what waits for it.
    pub(super) async fn watch_health(self: Arc<Self>, health: Health) {
        let error = tokio::select! {
            error = health.watch(&self.guest, self.machine.vmm()) => error,
            _ = self.machine.ended() => return,
        };
        tracing::error!(%error, "the machine is ended");
        self.journal.record(self.journal.note("check", "", &error));
        let _ = self.machine.stop().await;
    }

    /// When the machine has ended, so have all processes in it.
    pub(super) async fn watch_machine(self: Arc<Self>) {
        let reason = self.machine.ended().await;
        tracing::debug!(%reason, "all processes of the pod have ended");
        self.disks.clear();
        if reason != STOPPED {
            self.journal.record(self.journal.note("run", "", &Error::Ended(reason)));
        }
        let containers: Vec<_> = self.containers().values().filter_map(Slot::container).collect();
        // The pod's own container last: its end is the pod's.
        let (last, first): (Vec<_>, Vec<_>) = containers.into_iter().partition(|it| it.kind.owns_machine());
        for container in first.into_iter().chain(last) {
            self.end_with_machine(&container).await;
        }
    }

    /// Tells the end of a container's processes, execs first.
    pub(super) async fn end_with_machine(&self, container: &Container) {
        for process in container.processes() {
            self.end(container, &process, Exit::now(KILLED)).await;
        }
    }

    /// Tells when a container was short of memory. A guest that says so all the time is asked no more often than containerd
    /// hears it, or once a second.
    pub(super) async fn watch_memory(self: Arc<Self>) {
        loop {
            let id = match self.guest.get_oom_event(GetOOMEventRequest::new()).await {
                Ok(event) => event.container_id,
                Err(error) if self.guest.outlives(&error).await => continue,
                Err(error) => return tracing::debug!(%error, "no news of short memory"),
            };
            if self.container(&id).is_ok() {
                self.events.publish(TaskOOM { container_id: id, ..TaskOOM::default() });
            }
            self.events.flush(GRACE).await;
            tokio::time::sleep(BETWEEN_SHORTAGES).await;
        }
    }
}

/// 128 and SIGKILL.
const KILLED: u32 = 137;
/// Where the guest can't say how a process ended.
const UNKNOWN: u32 = 255;
const BETWEEN_SHORTAGES: Duration = Duration::from_secs(1);
/// As much as Kubernetes reads.
const LAST_WORDS: usize = 4096;
