//! The task services of containerd, versions 2 and 3, which differ in their names alone.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim_async::{Task, create_task};
use protobuf::MessageField;
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::Error;
use crate::phase::Exit;
use crate::shim::Shim;

/// Both versions of the service.
pub(crate) fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let named = |name: &str| {
        let services = create_task(Arc::new(TaskService(Arc::clone(shim))));
        services.into_values().map(|service| (name.to_owned(), service)).collect::<Vec<_>>()
    };
    [named("containerd.task.v2.Task"), named("containerd.task.v3.Task")].into_iter().flatten().collect()
}

pub(crate) fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: since.subsec_nanos() as i32, ..Timestamp::default() }
}

struct TaskService(Arc<Shim>);

type Answer<T> = ttrpc::Result<T>;

impl TaskService {
    /// Counts how long an answer took, and gives its error the form that containerd reads.
    async fn answer<T>(
        &self,
        action: &'static str,
        container: &str,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Answer<T> {
        let begun = Instant::now();
        let answer = work.await;
        self.0.metrics.answered(action, begun.elapsed());
        self.told(action, container, "", answer)
    }

    fn told<T>(&self, action: &'static str, container: &str, exec: &str, answer: Result<T, Error>) -> Answer<T> {
        answer.map_err(|error| {
            // Everybody asks for what is gone already.
            match error {
                Error::NotFound(_) => tracing::debug!(action, %error, "refused"),
                _ => {
                    tracing::warn!(action, container, %error, "failed");
                    match exec {
                        "" => self.0.failed(action, container, &error),
                        // It keeps no container from running, and probes come by the minute.
                        _ => drop(self.0.note(action, container, &error)),
                    }
                }
            }
            error.into()
        })
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let id = request.id.clone();
        let work = async {
            let pid = self.0.create(request).await?;
            Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
        };
        self.answer("create", &id, work).await
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let begun = Instant::now();
        let start = async { self.0.pod()?.start(&request.id, &request.exec_id).await };
        let answer = start.await.map(|pid| StartResponse { pid, ..StartResponse::default() });
        self.0.metrics.answered("start", begun.elapsed());
        self.told("start", &request.id, &request.exec_id, answer)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let work = async {
            let pod = self.0.pod()?;
            let (container, process) = pod.process(&request.id, &request.exec_id)?;
            let (phase, stdio) = (process.phase(), &process.stdio);
            let mut state = StateResponse {
                id: request.id.clone(),
                exec_id: request.exec_id.clone(),
                bundle: container.bundle.clone(),
                pid: pod.machine().pid(),
                status: phase.status().into(),
                stdin: stdio.stdin.clone(),
                stdout: stdio.stdout.clone(),
                stderr: stdio.stderr.clone(),
                terminal: stdio.terminal,
                ..StateResponse::default()
            };
            if let Some(exit) = phase.exit() {
                state.exit_status = exit.status;
                state.exited_at = MessageField::some(timestamp(exit.at));
            }
            Ok(state)
        };
        self.answer("state", &request.id, work).await
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let work = async {
            let pod = self.0.pod()?;
            let Exit { status, at } = pod.delete(&request.id, &request.exec_id).await?;
            Ok(DeleteResponse {
                pid: pod.machine().pid(),
                exit_status: status,
                exited_at: MessageField::some(timestamp(at)),
                ..DeleteResponse::default()
            })
        };
        self.answer("delete", &request.id, work).await
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        let work = async {
            let pod = self.0.pod()?;
            pod.container(&request.id)?;
            // The guest's own numbers mean nothing on the host.
            let process = ProcessInfo { pid: pod.machine().pid(), ..ProcessInfo::default() };
            Ok(PidsResponse { processes: vec![process], ..PidsResponse::default() })
        };
        self.answer("pids", &request.id, work).await
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        let work = async { self.0.pod()?.pause(&request.id).await.map(|()| Empty::new()) };
        self.answer("pause", &request.id, work).await
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        let work = async { self.0.pod()?.resume(&request.id).await.map(|()| Empty::new()) };
        self.answer("resume", &request.id, work).await
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> Answer<Empty> {
        self.answer("checkpoint", "", async { Err(Error::Unsupported("a checkpoint")) }).await
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let work = async { self.0.pod()?.kill(&request).await.map(|()| Empty::new()) };
        self.answer("kill", &request.id, work).await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let work = async { self.0.pod()?.exec(&request).await.map(|()| Empty::new()) };
        self.answer("exec", &request.id, work).await
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let work = async {
            let pod = self.0.pod()?;
            pod.resize(&request.id, &request.exec_id, request.height, request.width).await.map(|()| Empty::new())
        };
        self.answer("resize_pty", &request.id, work).await
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let work = async {
            let (_, process) = self.0.pod()?.process(&request.id, &request.exec_id)?;
            if request.stdin {
                process.close_input();
            }
            Ok(Empty::new())
        };
        self.answer("close_io", &request.id, work).await
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let work = async { self.0.pod()?.update(&request.id, &request.resources.value).await.map(|()| Empty::new()) };
        self.answer("update", &request.id, work).await
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let work = async {
            let (_, process) = self.0.pod()?.process(&request.id, &request.exec_id)?;
            let Exit { status, at } = process.ended().await;
            Ok(WaitResponse {
                exit_status: status,
                exited_at: MessageField::some(timestamp(at)),
                ..WaitResponse::default()
            })
        };
        self.answer("wait", &request.id, work).await
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let work = async {
            let stats = MessageField::some(self.0.pod()?.stats(&request.id).await?);
            Ok(StatsResponse { stats, ..StatsResponse::default() })
        };
        self.answer("stats", &request.id, work).await
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> Answer<ConnectResponse> {
        let work = async {
            Ok(ConnectResponse {
                shim_pid: std::process::id(),
                task_pid: self.0.pod().map(|pod| pod.machine().pid()).unwrap_or_default(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..ConnectResponse::default()
            })
        };
        self.answer("connect", "", work).await
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> Answer<Empty> {
        let work = async {
            self.0.shut_down(request.now).await;
            Ok(Empty::new())
        };
        self.answer("shutdown", "", work).await
    }
}
