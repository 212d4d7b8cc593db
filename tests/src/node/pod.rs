//! Pods: what a kubelet asks of containerd for a pod's sandbox.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use cri::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStatusRequest, PortMapping,
    RunPodSandboxRequest,
};
use tonic::Status;

use super::container::ContainerSpec;
use super::streams::{self, Session};
use super::{Node, hierarchies};

/// A pod that is being described.
#[derive(Clone)]
pub struct PodSpec<'a> {
    node: &'a Node,
    handler: String,
    config: PodSandboxConfig,
}

impl<'a> PodSpec<'a> {
    pub(super) fn new(node: &'a Node, name: &str, number: u32) -> Self {
        let uid = format!("{name}-{number}");
        let log_directory = node.folder.join("logs").join(&uid);
        fs::create_dir_all(&log_directory).unwrap();
        // As a kubelet does by default: a process namespace for each container, everything else is the pod's.
        let namespaces = NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
        let security = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: log_directory.to_str().unwrap().to_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/{uid}", node.name),
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        };
        Self { node, handler: "runc".to_owned(), config }
    }

    /// The runtime handler; runc by default.
    pub fn handler(mut self, handler: &str) -> Self {
        self.handler = handler.to_owned();
        self
    }

    /// How often this pod was run before.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.as_mut().unwrap().attempt = attempt;
        self
    }

    /// An annotation.
    pub fn annotation(mut self, name: &str, value: impl Into<String>) -> Self {
        self.config.annotations.insert(name.to_owned(), value.into());
        self
    }

    /// Name servers and search domains, in place of the node's own.
    pub fn dns(mut self, servers: &[&str], searches: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let dns = DnsConfig { servers: owned(servers), searches: owned(searches), options: Vec::new() };
        self.config.dns_config = Some(dns);
        self
    }

    /// Makes a port of the pod reachable at a port of the node.
    pub fn port(mut self, container_port: u16, host_port: u16) -> Self {
        self.config.port_mappings.push(PortMapping {
            container_port: container_port.into(),
            host_port: host_port.into(),
            ..Default::default()
        });
        self
    }

    /// Lets all containers see each other's processes.
    pub fn shared_processes(mut self) -> Self {
        let security = self.config.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
        let namespaces = security.and_then(|security| security.namespace_options.as_mut()).unwrap();
        namespaces.pid = NamespaceMode::Pod.into();
        self
    }

    /// The sum of its containers' limits, in bytes of memory and thousandths of a processor.
    pub fn limits(mut self, memory: i64, milli_cpu: i64) -> Self {
        let resources = LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_period: 100_000,
            cpu_quota: milli_cpu * 100,
            ..Default::default()
        };
        self.config.linux.as_mut().unwrap().resources = Some(resources);
        self
    }

    /// Bounds the memory of all of its processes on the node, as a kubelet does for a pod with limits.
    ///
    /// # Panics
    /// If it can't be bounded.
    pub fn bounded(self, bytes: u64) -> Self {
        let group = &self.config.linux.as_ref().unwrap().cgroup_parent[1..];
        let mut bounded = false;
        // A group in the one for processors would be one that nobody can enter.
        for tree in hierarchies().into_iter().filter(|tree| !tree.join("cpuset.cpus").exists()) {
            fs::create_dir_all(tree.join(group)).unwrap();
            for limit in ["memory.limit_in_bytes", "memory.max"].map(|file| tree.join(group).join(file)) {
                bounded |= limit.exists() && fs::write(limit, bytes.to_string()).is_ok();
            }
        }
        assert!(bounded, "no hierarchy bounds memory");
        self
    }

    /// Runs it.
    ///
    /// # Panics
    /// If it does not come up.
    pub async fn run(self) -> Pod<'a> {
        let name = self.config.hostname.clone();
        self.try_run().await.unwrap_or_else(|status| panic!("pod {name} does not run: {status}"))
    }

    /// Runs it.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn try_run(self) -> Result<Pod<'a>, Status> {
        let Self { node, handler, config } = self;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler };
        match node.runtime().run_pod_sandbox(request).await {
            Ok(answer) => Ok(Pod { node, id: answer.into_inner().pod_sandbox_id, config }),
            Err(status) => {
                remove_group(&config);
                Err(status)
            }
        }
    }
}

/// A pod of a node. It stays when this value is dropped, until the node is.
pub struct Pod<'a> {
    pub(super) node: &'a Node,
    id: String,
    pub(super) config: PodSandboxConfig,
}

impl<'a> Pod<'a> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its folder on the host, as a kubelet has one for each pod.
    pub fn folder(&self) -> PathBuf {
        self.node.folder.join("kubelet/pods").join(&self.config.metadata.as_ref().unwrap().uid)
    }

    /// The folder of a volume on the host. A kubelet names it by its kind, by which a shim tells it from others.
    ///
    /// # Panics
    /// If it can't be made.
    pub fn volume(&self, kind: &str, name: &str) -> PathBuf {
        let path = self.folder().join("volumes").join(kind).join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A container of it, to be described further.
    pub fn container(&self, name: &str, image: &str) -> ContainerSpec<'_> {
        ContainerSpec::new(self, name, image)
    }

    /// Its addresses.
    ///
    /// # Panics
    /// If containerd knows none.
    pub async fn addresses(&self) -> Vec<IpAddr> {
        let network = self.status().await.unwrap().network.unwrap();
        let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|address| address.ip));
        all.map(|address| address.parse().unwrap()).collect()
    }

    /// Connects to a port of it from the node.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn connect(&self, port: u16) -> std::io::Result<TcpStream> {
        self.node.connect((self.addresses().await[0], port).into())
    }

    /// Its status.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn status(&self) -> Result<cri::PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        Ok(self.node.runtime().pod_sandbox_status(request).await?.into_inner().status.unwrap())
    }

    /// Whether containerd takes it for ready.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn is_ready(&self) -> bool {
        self.status().await.unwrap().state() == PodSandboxState::SandboxReady
    }

    /// Waits until containerd does not take it for ready any more.
    ///
    /// # Panics
    /// If it still does after `limit`.
    pub async fn ended(&self, limit: Duration) {
        let ended = self.node.until(limit, async || (!self.is_ready().await).then_some(()));
        assert!(ended.await.is_some(), "the pod did not end within {limit:?}");
    }

    /// A connection to a port of it, through containerd's streaming server.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn forward(&self, port: u16) -> Result<Session, String> {
        let request = cri::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()] };
        let answer = self.node.runtime().port_forward(request).await.map_err(|status| status.to_string())?;
        Session::open(self.node, &answer.into_inner().url, streams::PORTS).await
    }

    /// Stops it, as often as one likes.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn stop(&self) -> Result<(), Status> {
        self.node.stop_pod(&self.id).await
    }

    /// Stops it and removes it with its containers, and the control group that a kubelet removes.
    ///
    /// # Panics
    /// If it can't be removed.
    pub async fn remove(self) {
        self.stop().await.unwrap();
        self.node.remove_pod(&self.id).await.unwrap();
        remove_group(&self.config);
    }
}

/// As a kubelet does in the end. A group that is not empty stays, and is seen among what is left.
fn remove_group(config: &PodSandboxConfig) {
    for tree in hierarchies() {
        let _ = fs::remove_dir(tree.join(&config.linux.as_ref().unwrap().cgroup_parent[1..]));
    }
}
