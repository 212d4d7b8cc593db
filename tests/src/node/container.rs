//! Containers: what a kubelet asks of containerd for them, their logs and commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri::{
    ContainerConfig, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, Device, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, NamespaceMode, NamespaceOption,
};
use tonic::Status;

use super::pod::Pod;
use super::streams::{self, Session};
use super::{Node, events, image_spec};

/// A container that is being described.
pub struct ContainerSpec<'a> {
    pod: &'a Pod<'a>,
    config: ContainerConfig,
}

impl<'a> ContainerSpec<'a> {
    pub(super) fn new(pod: &'a Pod<'a>, name: &str, image: &str) -> Self {
        let of_pod = pod.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()).unwrap();
        let pid = of_pod.namespace_options.as_ref().map_or(NamespaceMode::Container.into(), |options| options.pid);
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(NamespaceOption { pid, ..Default::default() }),
            ..Default::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(image_spec(image)),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig { resources: None, security_context: Some(security) }),
            ..Default::default()
        };
        Self { pod, config }
    }

    /// What it runs in place of the image's own entry point.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.config.command = owned(command);
        self
    }

    /// A shell script that it runs.
    pub fn script(self, script: &str) -> Self {
        self.command(&["/bin/sh", "-c", script])
    }

    /// Arguments in place of the image's own.
    pub fn args(mut self, args: &[&str]) -> Self {
        self.config.args = owned(args);
        self
    }

    /// An environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    /// The user, the group and the supplementary groups of its process.
    pub fn user(mut self, user: i64, group: i64, more: &[i64]) -> Self {
        let security = self.security();
        security.run_as_user = Some(Int64Value { value: user });
        security.run_as_group = Some(Int64Value { value: group });
        security.supplemental_groups = more.to_vec();
        self
    }

    /// A file or folder of the host at a path of its own.
    pub fn mount(mut self, host: &Path, container: &str, readonly: bool) -> Self {
        self.config.mounts.push(Mount {
            container_path: container.to_owned(),
            host_path: host.to_str().unwrap().to_owned(),
            readonly,
            ..Default::default()
        });
        self
    }

    /// A device of the host at a path of its own, to be read and written.
    pub fn device(mut self, host: &str, container: &str) -> Self {
        self.config.devices.push(Device {
            container_path: container.to_owned(),
            host_path: host.to_owned(),
            permissions: "rw".to_owned(),
        });
        self
    }

    /// The memory that it may use, in bytes.
    pub fn memory(mut self, bytes: i64) -> Self {
        let resources = LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        self.config.linux.as_mut().unwrap().resources = Some(resources);
        self
    }

    /// An annotation.
    pub fn annotation(mut self, name: &str, value: &str) -> Self {
        self.config.annotations.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Gives it a terminal and a standard input that stays open.
    pub fn terminal(mut self) -> Self {
        self.config.tty = true;
        self.stdin()
    }

    /// Gives it a standard input that stays open.
    pub fn stdin(mut self) -> Self {
        self.config.stdin = true;
        self
    }

    /// How often a container of this name was made before.
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.as_mut().unwrap().attempt = attempt;
        self
    }

    /// Creates it.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn create(mut self) -> Result<Container<'a>, Status> {
        self.run_as_the_image_says().await;
        let Self { pod, config } = self;
        let node = pod.node;
        let log = Path::new(&pod.config.log_directory).join(&config.log_path);
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id().to_owned(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = node.runtime().create_container(request).await?.into_inner().container_id;
        Ok(Container { node, id, log })
    }

    /// Creates it and starts it.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(self) -> Container<'a> {
        let name = self.config.metadata.as_ref().unwrap().name.clone();
        let container = self.create().await.unwrap_or_else(|status| panic!("{name} can't be created: {status}"));
        container.start().await.unwrap_or_else(|status| panic!("{name} can't be started: {status}"));
        container
    }

    /// Where the pod says nothing of the user, a kubelet says what it is told of the image's: a number or a name, and of no group.
    async fn run_as_the_image_says(&mut self) {
        let (node, image) = (self.pod.node, self.config.image.clone().unwrap_or_default());
        if self.security().run_as_user.is_some() {
            return;
        }
        let Some(image) = node.image(image).await else { return };
        let security = self.security();
        match (image.uid, image.username) {
            (Some(user), _) => security.run_as_user = Some(user),
            (None, name) if !name.is_empty() => security.run_as_username = name,
            (None, _) => security.run_as_user = Some(Int64Value { value: 0 }),
        }
    }

    fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap()
    }
}

/// A container of a pod. It stays when this value is dropped.
pub struct Container<'a> {
    node: &'a Node,
    id: String,
    log: PathBuf,
}

/// What a command in a container left.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Executed {
    /// Its exit status.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A line of a container's log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogLine {
    /// When it came, in RFC 3339.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The line.
    pub text: String,
}

impl<'a> Container<'a> {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn start(&self) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: self.id.clone() };
        self.node.runtime().start_container(request).await.map(drop)
    }

    /// Stops it by its stop signal, and by force when `grace` has passed.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn stop(&self, grace: Duration) -> Result<(), Status> {
        let timeout = i64::try_from(grace.as_secs()).unwrap();
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout };
        self.node.runtime().stop_container(request).await.map(drop)
    }

    /// Removes it, running or not.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn remove(self) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: self.id };
        self.node.runtime().remove_container(request).await.map(drop)
    }

    /// Its status.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn status(&self) -> ContainerStatus {
        let request = ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        self.node.runtime().container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// Whether it runs.
    ///
    /// # Panics
    /// If containerd does not answer.
    pub async fn is_running(&self) -> bool {
        self.status().await.state() == ContainerState::ContainerRunning
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it has not within `limit`.
    pub async fn ended(&self, limit: Duration) -> ContainerStatus {
        let look = async || {
            let status = self.status().await;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        };
        match self.node.until(limit, look).await {
            Some(status) => status,
            None => panic!("the container did not end within {limit:?}: {:?}\n{}", self.status().await, self.raw_log()),
        }
    }

    /// Runs a command in it to its end.
    ///
    /// # Panics
    /// If it can't be run.
    pub async fn exec(&self, command: &[&str]) -> Executed {
        self.try_exec(command).await.unwrap_or_else(|status| panic!("{command:?} can't be run: {status}"))
    }

    /// Runs a command in it to its end.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn try_exec(&self, command: &[&str]) -> Result<Executed, Status> {
        self.exec_within(command, Duration::from_secs(60)).await
    }

    /// Runs a command in it, as a probe, which is ended when `limit` has passed.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn exec_within(&self, command: &[&str], limit: Duration) -> Result<Executed, Status> {
        let timeout = i64::try_from(limit.as_secs()).unwrap();
        let request = cri::ExecSyncRequest { container_id: self.id.clone(), cmd: owned(command), timeout };
        let answer = self.node.runtime().exec_sync(request).await?.into_inner();
        Ok(Executed {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// A command in it whose streams are open, with or without a terminal, through containerd's streaming server.
    ///
    /// # Errors
    /// Why it can't be run.
    pub async fn exec_interactively(&self, command: &[&str], tty: bool) -> Result<Session, String> {
        let request = cri::ExecRequest {
            container_id: self.id.clone(),
            cmd: owned(command),
            tty,
            stdin: true,
            stdout: true,
            stderr: !tty,
        };
        let answer = self.node.runtime().exec(request).await.map_err(|status| status.to_string())?;
        Session::open(self.node, &answer.into_inner().url, streams::COMMANDS).await
    }

    /// Its own streams, through containerd's streaming server.
    ///
    /// # Errors
    /// Why they can't be had.
    pub async fn attach(&self, tty: bool) -> Result<Session, String> {
        let request =
            cri::AttachRequest { container_id: self.id.clone(), stdin: true, tty, stdout: true, stderr: !tty };
        let answer = self.node.runtime().attach(request).await.map_err(|status| status.to_string())?;
        Session::open(self.node, &answer.into_inner().url, streams::COMMANDS).await
    }

    /// Gives it another limit of memory.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn update_memory(&self, bytes: i64) -> Result<(), Status> {
        let linux = LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
        let request = cri::UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(linux) };
        self.node.runtime().update_container_resources(request).await.map(drop)
    }

    /// What it has used.
    ///
    /// # Errors
    /// What the kubelet would be told.
    pub async fn stats(&self) -> Result<cri::ContainerStats, Status> {
        let request = cri::ContainerStatsRequest { container_id: self.id.clone() };
        Ok(self.node.runtime().container_stats(request).await?.into_inner().stats.unwrap_or_default())
    }

    /// Moves its log away, as a kubelet does when it is long, and has a new one begun. Returns the old one's text.
    ///
    /// # Panics
    /// If that fails.
    pub async fn rotate_log(&self) -> String {
        let old = self.log.with_extension("log.1");
        fs::rename(&self.log, &old).unwrap();
        let request = cri::ReopenContainerLogRequest { container_id: self.id.clone() };
        self.node.runtime().reopen_container_log(request).await.unwrap();
        fs::read_to_string(old).unwrap()
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<LogLine> {
        self.raw_log().lines().filter_map(LogLine::parse).collect()
    }

    /// Waits for a line of its log that contains `text`.
    ///
    /// # Panics
    /// If none came within `limit`.
    pub async fn said(&self, text: &str, limit: Duration) -> LogLine {
        let line = || self.log().into_iter().find(|line| line.text.contains(text));
        let found = events::found(self.log.parent().unwrap(), limit, line).await;
        found.unwrap_or_else(|()| panic!("no {text:?} within {limit:?} in the log:\n{}", self.raw_log()))
    }

    fn raw_log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl LogLine {
    /// The form that the interface prescribes: time, stream, whether the line is whole, and the line.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ').map(str::to_owned);
        let (time, stream, _, text) = (words.next()?, words.next()?, words.next()?, words.next()?);
        Some(Self { time, stream, text })
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
