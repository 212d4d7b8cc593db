//! The other sides of a shim under test: a guest's agent, a machine that is none, and containerd's ear for events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim_protos::events::task::*;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{self, create_events};
use protobuf::Message as _;
use protobuf::well_known_types::empty::Empty;
use sandbox::{Console, SandboxConfig};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::{Code, get_status};
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::{AgentService, AgentServiceClient, create_agent_service};
use wire_ttrpc::health::{CheckRequest, HealthCheckResponse};
use wire_ttrpc::health_ttrpc::{Health, HealthClient, create_health};

use crate::Error;
use crate::machine::{Boot, Machine, Wish};

/// A guest's agent that does what the test says.
pub(crate) struct FakeAgent {
    pub(crate) created: Mutex<Vec<CreateContainerRequest>>,
    pub(crate) removed: Mutex<Vec<String>>,
    pub(crate) executed: Mutex<Vec<ExecProcessRequest>>,
    pub(crate) files: watch::Sender<BTreeMap<String, Vec<u8>>>,
    pub(crate) pieces: Mutex<Vec<(String, i64, usize)>>,
    pub(crate) stdin: watch::Sender<(Vec<u8>, bool)>,
    /// Requests that are refused, by name.
    pub(crate) denied: Mutex<BTreeSet<&'static str>>,
    /// Containers whose creation and start wait, and removals that do.
    pub(crate) stuck: watch::Sender<BTreeSet<String>>,
    /// Whether it says that it is there.
    pub(crate) silent: watch::Sender<bool>,
    pub(crate) oom: (mpsc::Sender<String>, tokio::sync::Mutex<mpsc::Receiver<String>>),
    processes: watch::Sender<BTreeMap<(String, String), FakeProcess>>,
    _server: Mutex<Option<Server>>,
}

#[derive(Clone, Default)]
struct FakeProcess {
    output: Vec<u8>,
    status: Option<i32>,
}

impl FakeAgent {
    pub(crate) async fn serve(path: &Path) -> Arc<Self> {
        let (oom, short) = mpsc::channel(4);
        let agent = Arc::new(Self {
            created: Mutex::default(),
            removed: Mutex::default(),
            executed: Mutex::default(),
            files: watch::Sender::default(),
            pieces: Mutex::default(),
            stdin: watch::Sender::default(),
            denied: Mutex::default(),
            stuck: watch::Sender::default(),
            silent: watch::Sender::default(),
            oom: (oom, tokio::sync::Mutex::new(short)),
            processes: watch::Sender::default(),
            _server: Mutex::default(),
        });
        let address = format!("unix://{}", path.display());
        let service = create_agent_service(Arc::new(Service(Arc::clone(&agent))));
        let health = create_health(Arc::new(Service(Arc::clone(&agent))));
        let mut server = Server::new().bind(&address).unwrap().register_service(service).register_service(health);
        server.start().await.unwrap();
        *agent._server.lock().unwrap() = Some(server);
        agent
    }

    /// A process says something.
    pub(crate) fn say(&self, container: &str, exec: &str, text: &str) {
        self.change(container, exec, |process| process.output.extend(text.as_bytes()));
    }

    /// A process ends.
    pub(crate) fn exit(&self, container: &str, exec: &str, status: i32) {
        self.change(container, exec, |process| process.status = process.status.or(Some(status)));
    }

    /// What is to become of a container waits until it is let go.
    pub(crate) fn hold_up(&self, container: &str) {
        self.stuck.send_modify(|stuck| _ = stuck.insert(container.to_owned()));
    }

    pub(crate) fn let_go(&self, container: &str) {
        self.stuck.send_modify(|stuck| _ = stuck.remove(container));
    }

    pub(crate) fn deny(&self, request: &'static str) {
        self.denied.lock().unwrap().insert(request);
    }

    pub(crate) fn allow(&self, request: &'static str) {
        self.denied.lock().unwrap().remove(request);
    }

    async fn held_up(&self, container: &str) {
        let _ = self.stuck.subscribe().wait_for(|stuck| !stuck.contains(container)).await;
    }

    /// Waits until no more is left to be heard of a container than that.
    pub(crate) async fn has_kept(&self, container: &str, length: usize) {
        let key = (container.to_owned(), String::new());
        let few = |it: &BTreeMap<_, FakeProcess>| it.get(&key).is_some_and(|it| it.output.len() <= length);
        drop(self.processes.subscribe().wait_for(few).await.unwrap());
    }

    fn change(&self, container: &str, exec: &str, change: impl FnOnce(&mut FakeProcess)) {
        self.processes.send_modify(|processes| {
            change(processes.entry((container.to_owned(), exec.to_owned())).or_default());
        });
    }

    fn check(&self, request: &'static str) -> ttrpc::Result<()> {
        if self.denied.lock().unwrap().contains(request) {
            let message = format!("{request} is blocked by policy");
            return Err(ttrpc::Error::RpcStatus(get_status(Code::PERMISSION_DENIED, message)));
        }
        Ok(())
    }
}

struct Service(Arc<FakeAgent>);

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl AgentService for Service {
    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> Answer<Empty> {
        self.0.created.lock().unwrap().push(request.clone());
        self.0.held_up(&request.container_id).await;
        self.0.check("CreateContainer")?;
        self.0.processes.send_modify(|processes| {
            processes.insert((request.container_id.clone(), String::new()), FakeProcess::default());
        });
        Ok(Empty::new())
    }

    async fn start_container(&self, _: &TtrpcContext, request: StartContainerRequest) -> Answer<Empty> {
        self.0.held_up(&request.container_id).await;
        self.0.check("StartContainer")?;
        Ok(Empty::new())
    }

    async fn remove_container(&self, _: &TtrpcContext, request: RemoveContainerRequest) -> Answer<Empty> {
        self.0.held_up(&format!("removal of {}", request.container_id)).await;
        self.0.removed.lock().unwrap().push(request.container_id);
        Ok(Empty::new())
    }

    async fn exec_process(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        self.0.check("ExecProcess")?;
        self.0.change(&request.container_id, &request.exec_id, |_| {});
        self.0.executed.lock().unwrap().push(request);
        Ok(Empty::new())
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> Answer<Empty> {
        self.0.check("SignalProcess")?;
        self.0.exit(&request.container_id, &request.exec_id, 128 + request.signal as i32);
        Ok(Empty::new())
    }

    async fn wait_process(&self, _: &TtrpcContext, request: WaitProcessRequest) -> Answer<WaitProcessResponse> {
        let key = (request.container_id, request.exec_id);
        let mut processes = self.0.processes.subscribe();
        let ended = processes.wait_for(|it| it.get(&key).is_some_and(|it| it.status.is_some())).await;
        let status = ended.unwrap()[&key].status.unwrap();
        Ok(WaitProcessResponse { status, ..Default::default() })
    }

    async fn read_stdout(&self, _: &TtrpcContext, request: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        let key = (request.container_id, request.exec_id);
        let mut processes = self.0.processes.subscribe();
        let ready = |it: &FakeProcess| !it.output.is_empty() || it.status.is_some();
        drop(processes.wait_for(|it| it.get(&key).is_some_and(ready)).await.unwrap());
        let mut data = Vec::new();
        self.0.change(&key.0, &key.1, |process| {
            let length = process.output.len().min(request.len as usize);
            data = process.output.drain(..length).collect();
        });
        Ok(ReadStreamResponse { data, ..Default::default() })
    }

    async fn read_stderr(&self, _: &TtrpcContext, _: ReadStreamRequest) -> Answer<ReadStreamResponse> {
        Ok(ReadStreamResponse::new())
    }

    async fn write_stdin(&self, _: &TtrpcContext, request: WriteStreamRequest) -> Answer<WriteStreamResponse> {
        self.0.stdin.send_modify(|stdin| stdin.0.extend(&request.data));
        Ok(WriteStreamResponse { len: request.data.len() as u32, ..Default::default() })
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: CloseStdinRequest) -> Answer<Empty> {
        if request.container_id != super::POD {
            self.0.stdin.send_modify(|stdin| stdin.1 = true);
        }
        Ok(Empty::new())
    }

    async fn stats_container(&self, _: &TtrpcContext, _: StatsContainerRequest) -> Answer<StatsContainerResponse> {
        let mut stats = StatsContainerResponse::new();
        stats
            .cgroup_stats
            .mut_or_insert_default()
            .memory_stats
            .mut_or_insert_default()
            .usage
            .mut_or_insert_default()
            .usage = 1;
        Ok(stats)
    }

    async fn pause_container(&self, _: &TtrpcContext, _: PauseContainerRequest) -> Answer<Empty> {
        Ok(Empty::new())
    }

    async fn resume_container(&self, _: &TtrpcContext, _: ResumeContainerRequest) -> Answer<Empty> {
        Ok(Empty::new())
    }

    async fn copy_file(&self, _: &TtrpcContext, request: CopyFileRequest) -> Answer<Empty> {
        self.0.check("CopyFile")?;
        self.0.pieces.lock().unwrap().push((request.path.clone(), request.offset, request.data.len()));
        self.0.files.send_modify(|files| {
            let file = files.entry(request.path).or_default();
            file.truncate(request.offset as usize);
            assert_eq!(file.len() as i64, request.offset, "a piece is missing");
            file.extend(request.data);
        });
        Ok(Empty::new())
    }

    async fn get_diagnostic_data(
        &self,
        _: &TtrpcContext,
        request: GetDiagnosticDataRequest,
    ) -> Answer<GetDiagnosticDataResponse> {
        let data = format!("last words of {}", request.container_id);
        Ok(GetDiagnosticDataResponse { data, ..Default::default() })
    }

    async fn get_metrics(&self, _: &TtrpcContext, _: GetMetricsRequest) -> Answer<Metrics> {
        let metrics = "# TYPE kata_shim_threads gauge\nkata_shim_threads 99\nkata_guest_load 7\n".to_owned();
        Ok(Metrics { metrics, ..Default::default() })
    }

    async fn get_oom_event(&self, _: &TtrpcContext, _: GetOOMEventRequest) -> Answer<OOMEvent> {
        match self.0.oom.1.lock().await.recv().await {
            Some(container_id) => Ok(OOMEvent { container_id, ..Default::default() }),
            None => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Health for Service {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> Answer<HealthCheckResponse> {
        let _ = self.0.silent.subscribe().wait_for(|silent| !silent).await;
        Ok(HealthCheckResponse::new())
    }
}

/// Boots machines that consist of a fake agent alone.
#[derive(Clone)]
pub(crate) struct FakeBoot {
    agent: PathBuf,
    /// Why the machine ends of itself.
    crash: watch::Sender<Option<&'static str>>,
    /// The last machine's connection with its agent.
    pub(crate) line: watch::Sender<Option<std::os::unix::net::UnixStream>>,
    /// Whether machines boot, or wait.
    pub(crate) held: watch::Sender<bool>,
    /// MiB of the last machine.
    pub(crate) memory: watch::Sender<u32>,
    /// The console of the last machine.
    pub(crate) console: watch::Sender<Console>,
    /// How many machines were booted, and how many of them have ended.
    pub(crate) machines: watch::Sender<(usize, usize)>,
}

impl FakeBoot {
    pub(crate) fn new(agent: PathBuf) -> Self {
        Self {
            agent,
            crash: watch::Sender::new(None),
            line: watch::Sender::default(),
            held: watch::Sender::new(false),
            memory: watch::Sender::new(0),
            console: watch::Sender::default(),
            machines: watch::Sender::new((0, 0)),
        }
    }

    pub(crate) fn crash(&self, reason: &'static str) {
        self.crash.send_replace(Some(reason));
    }
}

#[async_trait]
impl Boot for FakeBoot {
    async fn boot(&self, mut config: SandboxConfig) -> Result<Machine, Error> {
        if let Some(opened) = config.opened.take() {
            opened(self.agent.parent().unwrap());
        }
        self.console.send_replace(config.console.clone());
        self.memory.send_replace(config.memory_mib);
        drop(self.held.subscribe().wait_for(|held| !held).await.unwrap());
        let stream = UnixStream::connect(&self.agent).await.unwrap().into_std().unwrap();
        self.line.send_replace(Some(stream.try_clone().unwrap()));
        let client = Client::new(Socket::from(UnixStream::from_std(stream).unwrap()));
        let (agent, health) = (AgentServiceClient::new(client.clone()), HealthClient::new(client));
        let (machine, mut owner) = Machine::new(Some(PID), agent, health);
        self.machines.send_modify(|machines| machines.0 += 1);
        let (mut crash, machines) = (self.crash.subscribe(), self.machines.clone());
        tokio::spawn(async move {
            let crashed = async { crash.wait_for(Option::is_some).await.unwrap().unwrap() };
            tokio::select! {
                reason = crashed => drop(owner.end.send(Some(reason.to_owned()))),
                wish = owner.wishes.recv() => match wish {
                    Some(Wish::Stop(_)) | None => drop(owner.end.send(Some("it was stopped".to_owned()))),
                    Some(_) => panic!("no disks here"),
                },
            }
            machines.send_modify(|machines| machines.1 += 1);
        });
        Ok(machine)
    }
}

/// Hears events as containerd does.
pub(crate) struct Containerd {
    events: mpsc::UnboundedReceiver<Envelope>,
    _server: Server,
}

impl Containerd {
    pub(crate) async fn serve(path: &Path) -> Self {
        let (heard, events) = mpsc::unbounded_channel();
        let address = format!("unix://{}", path.display());
        let service = create_events(Arc::new(Ear(heard)));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        Self { events, _server: server }
    }

    /// The next event in short.
    pub(crate) async fn next(&mut self) -> String {
        let event = tokio::time::timeout(Duration::from_secs(30), self.events.recv()).await;
        let envelope = event.expect("no event comes").unwrap();
        let value = &envelope.event.value;
        let about = match envelope.topic.as_str() {
            "/tasks/create" => TaskCreate::parse_from_bytes(value).unwrap().container_id,
            "/tasks/start" => TaskStart::parse_from_bytes(value).unwrap().container_id,
            "/tasks/exec-added" => TaskExecAdded::parse_from_bytes(value).unwrap().exec_id,
            "/tasks/exec-started" => TaskExecStarted::parse_from_bytes(value).unwrap().exec_id,
            "/tasks/exit" => {
                let exit = TaskExit::parse_from_bytes(value).unwrap();
                format!("{} {}", exit.id, exit.exit_status)
            }
            "/tasks/delete" => TaskDelete::parse_from_bytes(value).unwrap().container_id,
            "/tasks/oom" => TaskOOM::parse_from_bytes(value).unwrap().container_id,
            "/tasks/paused" => TaskPaused::parse_from_bytes(value).unwrap().container_id,
            "/tasks/resumed" => TaskResumed::parse_from_bytes(value).unwrap().container_id,
            other => panic!("{other} is no event of a task"),
        };
        format!("{} {about}", envelope.topic)
    }
}

struct Ear(mpsc::UnboundedSender<Envelope>);

#[async_trait]
impl shim_async::Events for Ear {
    async fn forward(
        &self,
        _: &TtrpcContext,
        request: ForwardRequest,
    ) -> ttrpc::Result<containerd_shim_protos::api::Empty> {
        let _ = self.0.send(request.envelope.unwrap());
        Ok(containerd_shim_protos::api::Empty::new())
    }
}

pub(crate) const PID: u32 = 4242;
