//! An adaptor for peer pods as upstream's cloud-api-adaptor is one, with QEMU of the host in a cloud's place.
//!
//! Its machines run outside of the node's namespaces. They get the addresses of the pod's network, which the adaptor finds in
//! the namespace that it is told, and their agent is served on a socket of the node.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::acceleration::{self, Preference};
use hypervisor::{Confinement, Console, Disk, Network, Tap, Tee, Vm, VmConfig, Vsock};
use pod_network::{Connection, Model, Namespace};
use protobuf::MessageField;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinSet;
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Client, Server, TtrpcContext};
use ttrpc::context::with_duration;
use vsock_backend::{Backend, BackendConfig};
use wire::initdata::InitData;
use wire::milestone::Milestone;
use wire_ttrpc::agent::{Routes, UpdateInterfaceRequest, UpdateRoutesRequest};
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::remote_hypervisor::*;
use wire_ttrpc::remote_hypervisor_ttrpc::{Hypervisor, create_hypervisor};

use crate::node::Node;
use crate::{Lab, run};

/// A running adaptor. Dropping it ends it as a crash does, and its machines with it.
pub struct Adaptor {
    service: Arc<Service>,
    /// Runs the adaptor, apart from the case's own.
    runtime: Option<Runtime>,
}

impl Adaptor {
    /// Starts it on its socket of the node, in the place of one that has ended.
    ///
    /// # Panics
    /// If nothing can listen there.
    pub fn start(lab: &Lab, node: &Node) -> Self {
        let folder = tempfile::tempdir_in(lab.path()).unwrap();
        let root = node.path("/");
        fs::create_dir_all(root.join(PODS)).unwrap();
        let service = Arc::new(Service {
            folder,
            root: root.clone(),
            requests: watch::Sender::default(),
            refusal: Mutex::default(),
            hung: AtomicBool::new(false),
            pods: tokio::sync::Mutex::default(),
        });
        let (serving, socket) = (Arc::clone(&service), root.join(SOCKET));
        // A runtime may not wait for another, so a thread of its own does.
        let runtime = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(serve(serving, &socket));
            runtime
        });
        let runtime = runtime.join().unwrap();
        Self { service, runtime: Some(runtime) }
    }

    /// What it was asked so far: a request's name, and the machine's.
    pub fn requests(&self) -> Vec<(&'static str, String)> {
        self.service.requests.borrow().clone()
    }

    /// Waits until it was asked this, and gives the machine's name.
    ///
    /// # Panics
    /// If it is not within `limit`.
    pub async fn asked(&self, request: &str, limit: Duration) -> String {
        let mut requests = self.service.requests.subscribe();
        let asked = requests.wait_for(|requests| requests.iter().any(|(asked, _)| *asked == request));
        let asked = tokio::time::timeout(limit, asked).await.map(|asked| asked.unwrap().clone());
        let asked = asked.unwrap_or_else(|_| panic!("{request} was not asked within {limit:?}: {:?}", self.requests()));
        asked.into_iter().find(|(asked, _)| *asked == request).unwrap().1
    }

    /// What a machine was asked to be.
    ///
    /// # Panics
    /// If there is none of this name.
    pub async fn annotations(&self, id: &str) -> BTreeMap<String, String> {
        self.service.pods.lock().await[id].annotations.clone()
    }

    /// How many machines it has.
    pub async fn machines(&self) -> usize {
        self.service.pods.lock().await.values().filter(|pod| pod.machine.is_some()).count()
    }

    /// From now on no machine is started, for this reason.
    pub fn refuse(&self, reason: &str) {
        *self.service.refusal.lock().unwrap() = Some(reason.to_owned());
    }

    /// From now on it answers no wish for a start.
    pub fn hang(&self) {
        self.service.hung.store(true, Ordering::Relaxed);
    }

    /// Ends a machine at once, as the failure of its host does.
    ///
    /// # Panics
    /// If there is none of this name.
    pub async fn crash_machine(&self, id: &str) {
        let pid = self.service.pods.lock().await[id].machine.as_ref().unwrap().vm.pid();
        run("kill", ["-KILL", &pid.to_string()]);
    }
}

impl Drop for Adaptor {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            std::thread::spawn(move || drop(runtime)).join().unwrap();
        }
    }
}

struct Service {
    folder: tempfile::TempDir,
    /// The node's root.
    root: PathBuf,
    requests: watch::Sender<Vec<(&'static str, String)>>,
    refusal: Mutex<Option<String>>,
    /// Whether no machine is ever started, nor refused.
    hung: AtomicBool,
    pods: tokio::sync::Mutex<BTreeMap<String, Pod>>,
}

/// A pod whose machine was created, and started perhaps.
struct Pod {
    annotations: BTreeMap<String, String>,
    namespace: Namespace,
    machine: Option<Machine>,
}

struct Machine {
    // In the order in which they must end.
    _proxy: JoinSet<()>,
    vm: Vm,
    _backend: Backend,
}

impl Service {
    fn hear(&self, request: &'static str, id: &str) {
        self.requests.send_modify(|requests| requests.push((request, id.to_owned())));
    }

    fn socket(id: &str) -> PathBuf {
        Path::new(PODS).join(id).join("agent.ttrpc")
    }

    /// Boots the machine, gives it its addresses, and serves its agent.
    async fn boot(&self, id: &str, pod: &Pod) -> Machine {
        let connection = pod.namespace.connect(Model::Redirect).await.unwrap();
        let of = |name: &str| pod.annotations[&format!("{PREFIX}{name}")].clone();
        let at = |name: &str| self.folder.path().join(format!("{}-{name}", &id[..8]));
        let initdata = InitData::parse(of("cc_init_data")).unwrap();
        initdata.write_disk(fs::File::create(at("initdata")).unwrap()).unwrap();
        let backend = Backend::start(BackendConfig { socket: at("vhost"), uds: at("vsock"), guest_cid: 3 }).unwrap();
        let image = Lab::guest_image();
        let taps = connection.links.iter();
        let taps =
            taps.map(|link| Tap { device: link.device.clone(), vhost: None, mac: link.interface.hwAddr.clone() });
        let vm = Vm::launch(VmConfig {
            name: id.to_owned(),
            kernel: image.join("vmlinux"),
            initramfs: image.join("initramfs"),
            command_line: format!("{} cocoon.initdata={}", guest_image::COMMAND_LINE, hex::encode(initdata.digest())),
            memory_mib: of("default_memory").parse().unwrap(),
            vcpus: of("default_vcpus").parse().unwrap(),
            acceleration: acceleration::probe(Preference::Auto).await.unwrap(),
            vsock: Vsock::UserBackend { socket: at("vhost") },
            disks: vec![Disk { path: at("initdata"), serial: "initdata".to_owned(), read_only: true }],
            network: Network::Taps(taps.collect()),
            qmp_socket: at("qmp"),
            bios: hypervisor::qboot(),
            tee: Tee::None,
            initdata_digest: None,
            confinement: Confinement::default(),
            console: Console::new(),
        })
        .await
        .unwrap();
        let deadline = tokio::time::Instant::now() + BOOT_LIMIT;
        let ready = |line: &str| Milestone::parse(line) == Some(Milestone::Ready);
        vm.boot(vm.console().wait_for(ready, deadline), BOOT_LIMIT).await.unwrap().unwrap();
        give_addresses(&at("vsock"), connection).await;
        let listener = bind(&self.root.join(Self::socket(id)));
        let mut proxy = JoinSet::new();
        proxy.spawn(serve_agent(listener, at("vsock")));
        Machine { _proxy: proxy, vm, _backend: backend }
    }
}

#[async_trait]
impl Hypervisor for Service {
    async fn version(&self, _: &TtrpcContext, _: VersionRequest) -> ttrpc::Result<VersionResponse> {
        self.hear("Version", "");
        Ok(VersionResponse { version: "0.0.0".to_owned(), ..VersionResponse::default() })
    }

    async fn create_vm(&self, _: &TtrpcContext, request: CreateVMRequest) -> ttrpc::Result<CreateVMResponse> {
        self.hear("CreateVM", &request.id);
        let annotations: BTreeMap<_, _> = request.annotations.into_iter().collect();
        for needed in ["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace"] {
            if annotations.get(needed).is_none_or(String::is_empty) {
                return Err(refused(&format!("{needed} is missing in annotations")));
            }
        }
        // Which is a link, and seen from outside it would lead to the host's own folder.
        let path = request.networkNamespacePath.replacen("/var/run/", "/run/", 1);
        let namespace = Namespace::open(&self.root.join(path.trim_start_matches('/')));
        let namespace = namespace.map_err(|error| refused(&format!("failed to inspect netns {path}: {error}")))?;
        let socket = Self::socket(&request.id);
        fs::create_dir_all(self.root.join(&socket).parent().unwrap()).unwrap();
        self.pods.lock().await.insert(request.id, Pod { annotations, namespace, machine: None });
        let socket = Path::new("/").join(socket);
        Ok(CreateVMResponse { agentSocketPath: socket.display().to_string(), ..CreateVMResponse::default() })
    }

    async fn start_vm(&self, _: &TtrpcContext, request: StartVMRequest) -> ttrpc::Result<StartVMResponse> {
        self.hear("StartVM", &request.id);
        if let Some(reason) = &*self.refusal.lock().unwrap() {
            return Err(refused(&format!("creating an instance : {reason}")));
        }
        if self.hung.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        let mut pods = self.pods.lock().await;
        let Some(pod) = pods.get_mut(&request.id) else { return Err(unknown(&request.id)) };
        pod.machine = Some(self.boot(&request.id, pod).await);
        Ok(StartVMResponse::new())
    }

    async fn stop_vm(&self, _: &TtrpcContext, request: StopVMRequest) -> ttrpc::Result<StopVMResponse> {
        let pod = self.pods.lock().await.remove(&request.id);
        self.hear("StopVM", &request.id);
        let Some(pod) = pod else { return Err(unknown(&request.id)) };
        if let Some(machine) = pod.machine {
            machine.vm.stop(GRACE).await;
        }
        // The pod's network may be gone before.
        let _ = pod.namespace.disconnect();
        fs::remove_dir_all(self.root.join(PODS).join(&request.id)).unwrap();
        Ok(StopVMResponse::new())
    }
}

/// Serves for as long as the runtime is there.
async fn serve(service: Arc<Service>, socket: &Path) {
    let listener = Listener::try_from(bind(socket).into_std().unwrap()).unwrap();
    let mut server = Server::new().add_listener(listener).register_service(create_hypervisor(service));
    server.start().await.unwrap();
    tokio::spawn(async move {
        let _server = server;
        std::future::pending::<()>().await;
    });
}

fn unknown(id: &str) -> ttrpc::Error {
    refused(&format!("sandbox {id} does not exist"))
}

fn refused(why: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, why))
}

/// Tells the guest the pod's addresses, which a machine of a cloud finds for itself.
async fn give_addresses(vsock: &Path, connection: Connection) {
    let agent = AgentServiceClient::new(Client::new(Socket::from(agent(vsock).await.unwrap())));
    for link in connection.links {
        let request = UpdateInterfaceRequest { interface: MessageField::some(link.interface), ..Default::default() };
        agent.update_interface(with_duration(BOOT_LIMIT), &request).await.unwrap();
    }
    let routes = MessageField::some(Routes { Routes: connection.routes, ..Default::default() });
    let request = UpdateRoutesRequest { routes, ..Default::default() };
    agent.update_routes(with_duration(BOOT_LIMIT), &request).await.unwrap();
}

/// Hands each connection on to the guest's agent.
async fn serve_agent(listener: UnixListener, vsock: PathBuf) {
    // They end with it.
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        let vsock = vsock.clone();
        connections.spawn(async move {
            if let Ok(mut far) = agent(&vsock).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

/// A connection to the guest's agent.
async fn agent(vsock: &Path) -> std::io::Result<UnixStream> {
    let mut stream = UnixStream::connect(vsock).await?;
    stream.write_all(b"CONNECT 1024\n").await?;
    while stream.read_u8().await? != b'\n' {}
    Ok(stream)
}

/// Listens at a path of any length, in the place of whoever has listened there before.
fn bind(path: &Path) -> UnixListener {
    let short = tempfile::tempdir().unwrap();
    let link = short.path().join("folder");
    std::os::unix::fs::symlink(path.parent().unwrap(), &link).unwrap();
    let _ = fs::remove_file(path);
    UnixListener::bind(link.join(path.file_name().unwrap())).unwrap()
}

/// Where upstream's listens and keeps its pods, in the node.
const SOCKET: &str = "run/peerpod/hypervisor.sock";
const PODS: &str = "run/peerpod/pods";
const PREFIX: &str = "io.katacontainers.config.hypervisor.";
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const GRACE: Duration = Duration::from_secs(5);
