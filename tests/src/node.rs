//! A node for pods: a real containerd with a real network and a CRI client that plays the kubelet, in namespaces of its own.

mod cocoon;
mod container;
mod containerd;
mod events;
mod namespaces;
mod pod;
mod processes;
mod snapshotter;
mod streams;
mod traces;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cri::{ImageServiceClient, RuntimeServiceClient};
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

pub use self::cocoon::Cocoon;
pub use self::container::{Container, ContainerSpec, Executed, LogLine};
pub use self::containerd::Containerd;
use self::containerd::{SOCKET, Service};
use self::namespaces::Namespaces;
pub use self::pod::{Pod, PodSpec};
pub use self::processes::Process;
pub use self::snapshotter::Snapshotter;
pub use self::streams::Session;
use crate::{Image, Lab, Registry, run};

/// A node that runs. Dropping it ends every process of it, and nothing of it is left.
pub struct Node {
    name: String,
    folder: PathBuf,
    version: Containerd,
    // Dropped in this order: with the first the second has ended already.
    namespaces: Namespaces,
    /// What was mounted before there was any pod.
    mounts: Vec<String>,
    containerd: Mutex<Service>,
    channel: Channel,
    /// Changes with each event of a container.
    events: Arc<watch::Sender<()>>,
    pods: AtomicU32,
}

impl Node {
    /// A node with this containerd, whose pods' images lie in this registry. Beside runc its handlers are those of
    /// `cocoon`.
    ///
    /// # Errors
    /// Why there can't be one, such as that there is no network to fetch containerd from.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(
        lab: &Lab,
        registry: &Registry,
        version: Containerd,
        cocoon: Option<&Cocoon>,
    ) -> Result<Self, String> {
        static NODES: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            return Err("namespaces take root".to_owned());
        }
        remove_groups(is_orphan);
        let programs = version.programs()?;
        let name = format!("node-{}-{}", std::process::id(), NODES.fetch_add(1, Ordering::Relaxed));
        let folder = lab.path().join(&name);
        fs::create_dir_all(folder.join("cni")).unwrap();
        fs::write(folder.join("cni/10-lab.conflist"), network(&folder)).unwrap();
        trust(registry, &folder);
        let pause = registry.push(Image::busybox(lab, &format!("{name}-pause"), PAUSE).layout(), "pause");

        let namespaces = Namespaces::new(&name);
        namespaces.relay(registry.port());
        let handlers = cocoon.map(|cocoon| cocoon.install(&namespaces, version)).unwrap_or_default();
        let mounts = namespaces.mounts();
        let containerd = Service::start(&namespaces, version, &programs, &folder, &pause, &handlers);
        let channel = connect(&namespaces).await;
        let (containerd, events, pods) = (Mutex::new(containerd), Arc::new(watch::Sender::new(())), AtomicU32::new(0));
        let node = Self { name, folder, version, namespaces, mounts, containerd, channel, events, pods };
        node.listen();
        node.pull(&pause).await;
        Ok(node)
    }

    /// Its containerd's version.
    pub fn version(&self) -> Containerd {
        self.version
    }

    /// A pod, to be described further.
    pub fn pod(&self, name: &str) -> PodSpec<'_> {
        PodSpec::new(self, name, self.pods.fetch_add(1, Ordering::Relaxed))
    }

    /// Pulls an image, as a kubelet does before it creates a container.
    ///
    /// # Panics
    /// If it can't be pulled.
    pub async fn pull(&self, image: &str) {
        self.try_pull(image, "", None).await.unwrap_or_else(|status| panic!("{image} can't be pulled: {status}"));
    }

    /// Pulls an image for pods of a handler, as a kubelet does that knows an account (`user:password`) for its registry.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn try_pull(&self, image: &str, handler: &str, account: Option<&str>) -> Result<(), Status> {
        let annotations = [("io.containerd.cri.runtime-handler".to_owned(), handler.to_owned())].into();
        let sandbox = cri::PodSandboxConfig { annotations, ..Default::default() };
        let image = cri::ImageSpec { runtime_handler: handler.to_owned(), ..image_spec(image) };
        let account = account
            .and_then(|account| account.split_once(':'))
            .map(|(user, password)| cri::AuthConfig { username: user.to_owned(), password: password.to_owned() });
        let request = cri::PullImageRequest {
            image: Some(image),
            auth: account,
            sandbox_config: (!handler.is_empty()).then_some(sandbox),
        };
        self.images().pull_image(request).await.map(drop)
    }

    /// What containerd's own client says to a question about pods.
    ///
    /// # Panics
    /// If it fails.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let said = self.containerd().ctr(&self.namespaces, arguments);
        said.unwrap_or_else(|| panic!("ctr {arguments:?} fails"))
    }

    /// Whether containerd has an image.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn has_image(&self, image: &str) -> bool {
        self.image(image_spec(image)).await.is_some()
    }

    /// What containerd knows of an image.
    async fn image(&self, image: cri::ImageSpec) -> Option<cri::Image> {
        let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
        self.images().image_status(request).await.unwrap().into_inner().image
    }

    /// The conditions under which containerd says it is ready, with their state.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn conditions(&self) -> Vec<(String, bool)> {
        let answer = self.runtime().status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
        answer.status.unwrap().conditions.into_iter().map(|condition| (condition.r#type, condition.status)).collect()
    }

    /// The ids of all pods that containerd knows.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn pods(&self) -> Vec<String> {
        self.try_pods().await.unwrap()
    }

    /// The ids of all pods that containerd knows.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn try_pods(&self) -> Result<Vec<String>, Status> {
        let answer = self.runtime().list_pod_sandbox(cri::ListPodSandboxRequest {}).await?;
        Ok(answer.into_inner().items.into_iter().map(|pod| pod.id).collect())
    }

    /// Stops a pod, as often as one likes.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().stop_pod_sandbox(request).await.map(drop)
    }

    /// Removes a pod with its containers, running or not.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime().remove_pod_sandbox(request).await.map(drop)
    }

    /// The ids of all containers that containerd knows but those of pods themselves, sorted.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn containers(&self) -> Vec<String> {
        let answer = self.runtime().list_containers(cri::ListContainersRequest::default()).await.unwrap();
        let mut ids: Vec<_> = answer.into_inner().containers.into_iter().map(|container| container.id).collect();
        ids.sort();
        ids
    }

    /// Ends containerd in the orderly way and starts it again; pods go on meanwhile.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn restart_containerd(&self) {
        self.containerd().restart("TERM", &self.namespaces);
        self.reconnect().await;
    }

    /// Ends containerd at once, as a crash does, and starts it again; pods go on meanwhile.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn crash_containerd(&self) {
        self.containerd().restart("KILL", &self.namespaces);
        self.reconnect().await;
    }

    /// Makes a port of the host's loopback reachable for pods, at 10.0.2.2 as in the network of `cocoon run`.
    pub fn relay(&self, port: u16) {
        self.namespaces.relay(port);
    }

    /// Connects to an address as the node itself would.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        self.namespaces.connect(address)
    }

    /// Runs a shell script in the node's namespaces.
    ///
    /// # Panics
    /// If it fails.
    pub fn shell(&self, script: &str) {
        let status = self.command("sh").args(["-ec", script]).status().unwrap();
        assert!(status.success(), "{script}");
    }

    /// Its folder on the host, with what containerd and the snapshotter keep.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command that runs in the node's namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.namespaces.command(program)
    }

    /// The processes of pods, shims included, whose command line contains `text`.
    pub fn processes(&self, text: &str) -> Vec<Process> {
        let all = Process::descendants(&[self.namespaces.init(), self.containerd_pid()]);
        all.into_iter().filter(|process| process.command.contains(text)).collect()
    }

    /// containerd's process, as the host numbers it.
    pub fn containerd_pid(&self) -> u32 {
        self.containerd().pid()
    }

    /// Ends a process of the node at once, as a crash does, and waits for its end.
    pub async fn kill(&self, process: &Process) {
        run("kill", ["-KILL", &process.pid.to_string()]);
        process.ended(END_LIMIT).await;
    }

    /// Stops a process of the node where it is, as if it hung.
    pub fn freeze(&self, process: &Process) {
        run("kill", ["-STOP", &process.pid.to_string()]);
    }

    /// A path of the node as the host sees it: `/run` is the node's own.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.namespaces.path(inside)
    }

    /// What containerd said so far.
    pub fn log(&self) -> String {
        self.containerd().log()
    }

    /// Looks after each of containerd's events until `look` finds something or `limit` has passed.
    async fn until<T>(&self, limit: Duration, look: impl AsyncFn() -> Option<T>) -> Option<T> {
        let mut events = self.events.subscribe();
        let found = async {
            loop {
                if let Some(found) = look().await {
                    return found;
                }
                events.changed().await.expect("containerd tells its events");
            }
        };
        tokio::time::timeout(limit, found).await.ok()
    }

    /// Waits until containerd, which has just started, answers, and listens to its events again.
    async fn reconnect(&self) {
        let answers = async {
            // The old connection is given up at the first attempt.
            while self.runtime().status(cri::StatusRequest::default()).await.is_err() {
                tokio::time::sleep(PAUSE_BETWEEN_CALLS).await;
            }
        };
        tokio::time::timeout(END_LIMIT, answers).await.expect("containerd answers");
        self.listen();
    }

    /// Takes note of containerd's events until it ends.
    fn listen(&self) {
        let (mut client, events) = (self.runtime(), Arc::clone(&self.events));
        // For all who wait: of two streams each would get only some.
        tokio::spawn(async move {
            // Its answer begins with the first event.
            let Ok(stream) = client.get_container_events(cri::GetEventsRequest {}).await else { return };
            let mut stream = stream.into_inner();
            while let Ok(Some(_)) = stream.message().await {
                events.send_replace(());
            }
        });
    }

    /// Of a case that has failed meanwhile, too.
    fn containerd(&self) -> MutexGuard<'_, Service> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE)
    }

    fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.namespaces.end();
        remove_groups(|name| name == self.name);
        if std::thread::panicking() {
            eprintln!("containerd of {}:\n{}", self.name, self.log());
        }
    }
}

/// The control groups in one, the inner ones first.
fn groups_in(group: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(groups_in(&entry.path()));
            found.push(entry.path());
        }
    }
    found
}

/// Removes the control groups of nodes with such names.
fn remove_groups(is_meant: impl Fn(&str) -> bool) {
    for tree in hierarchies() {
        for group in groups_in(&tree).into_iter().filter(|group| {
            let inside = group.strip_prefix(&tree).unwrap();
            inside.iter().next().and_then(|name| name.to_str()).is_some_and(&is_meant)
        }) {
            let _ = fs::remove_dir(group);
        }
    }
}

/// Whether a name is that of a node whose case was killed, so that it could not clean up.
fn is_orphan(name: &str) -> bool {
    let case = name.strip_prefix("node-").and_then(|rest| rest.split('-').next());
    case.is_some_and(|case| case.parse::<u32>().is_ok() && !Path::new("/proc").join(case).exists())
}

fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// Where control groups are mounted: one tree, or one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from("/sys/fs/cgroup");
    let mut found: Vec<PathBuf> = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.join("cgroup.procs").exists());
    if root.join("cgroup.controllers").exists() {
        found = vec![root];
    }
    found
}

async fn connect(namespaces: &Namespaces) -> Channel {
    let endpoint = Endpoint::from_shared(format!("unix:{}", namespaces.path(SOCKET).display())).unwrap();
    endpoint.timeout(CALL_LIMIT).connect().await.unwrap()
}

/// A bridge for the pods, with addresses of both kinds and ports mapped from the node.
fn network(folder: &Path) -> String {
    let data = folder.join("addresses");
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": data,
                    "ranges": [[{"subnet": "10.88.0.0/24"}], [{"subnet": "fd00:88::/64"}]],
                    "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

/// Tells containerd whose certificate the registry has.
fn trust(registry: &Registry, folder: &Path) {
    let host = registry.host();
    let place = folder.join("registries").join(&host);
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("ca.crt"), registry.certificate()).unwrap();
    let text = format!(
        "server = \"https://{host}\"\nca = \"{ca}\"\n[host.\"https://{host}\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = \"{ca}\"\n",
        ca = place.join("ca.crt").display()
    );
    fs::write(place.join("hosts.toml"), text).unwrap();
}

const BRIDGE: &str = "cni0";
/// The sandbox container of ordinary handlers.
const PAUSE: &str = "trap 'exit 0' TERM INT; sleep 2147483647 & wait";
const MESSAGE: usize = 32 << 20;
const PAUSE_BETWEEN_CALLS: Duration = Duration::from_millis(50);
/// For processes of a pod that was removed.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Longest of all: a pod's boot and an image's pull under software emulation.
const CALL_LIMIT: Duration = Duration::from_secs(240);
