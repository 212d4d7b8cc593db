//! An agent with one image, its client, and what there is to check at the end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{Agent, AgentConfig, AgentEvent, ImageError, ImageProcess, Images, Policy, PulledImage, ResolvedImage};
use async_trait::async_trait;
use protobuf::MessageField;
use tokio::sync::Notify;
use ttrpc::{Code, context};
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::oci;

use crate::PROGRAM;

/// An image with this program in it. The pull for the container `slow` waits until it is told to proceed.
#[derive(Default)]
pub(crate) struct SelfImage {
    pub(crate) pulling: Notify,
    pub(crate) proceed: Notify,
}

#[async_trait]
impl Images for SelfImage {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let process = ImageProcess {
            args: ["/app", PROGRAM, "show"].map(str::to_owned).to_vec(),
            env: vec!["MODE=image".into()],
            cwd: "/srv".into(),
            user: "12:34".into(),
        };
        Ok(ResolvedImage { reference: reference.into(), digest: DIGEST.into(), process })
    }

    async fn pull(&self, image: &ResolvedImage, bundle: &Path) -> Result<PulledImage, ImageError> {
        if bundle.ends_with("slow") {
            self.pulling.notify_one();
            self.proceed.notified().await;
        }
        let rootfs = bundle.join("rootfs");
        std::fs::create_dir_all(rootfs.join("srv")).unwrap();
        std::fs::copy("/proc/self/exe", rootfs.join("app")).unwrap();
        Ok(PulledImage { digest: image.digest.clone(), rootfs })
    }

    async fn release(&self, bundle: &Path) {
        let _ = std::fs::remove_dir_all(bundle.join("rootfs"));
    }
}

/// An agent and its client.
pub(crate) struct Lab {
    _folder: tempfile::TempDir,
    pub(crate) root: PathBuf,
    pub(crate) images: Arc<SelfImage>,
    pub(crate) agent: AgentServiceClient,
    events: tokio::sync::broadcast::Receiver<AgentEvent>,
}

impl Lab {
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_with(name, |_, _| {}).await
    }

    pub(crate) async fn start_with(name: &str, change: impl FnOnce(&Path, &mut CreateSandboxRequest)) -> Self {
        println!("containers: story {name}");
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let images = Arc::new(SelfImage::default());
        let rules = [
            "CreateSandbox",
            "DestroySandbox",
            "CreateContainer",
            "StartContainer",
            "RemoveContainer",
            "ExecProcess",
            "SignalProcess",
            "WaitProcess",
            "ReadStream",
            "WriteStream",
            "CloseStdin",
            "TtyWinResize",
            "CopyFile",
            "StatsContainer",
            "PauseContainer",
            "ResumeContainer",
            "GetDiagnosticData",
        ]
        .map(|rule| format!("{rule}Request := true\n"));
        let agent = Arc::new(
            Agent::new(AgentConfig {
                policy: Policy::parse(&format!("package agent_policy\n{}", rules.concat())).unwrap(),
                images: images.clone(),
                secrets: None,
                disks: None,
                helper: "/proc/self/exe".into(),
                root: root.clone(),
                resolv_conf: None,
                drivers: tokio::sync::watch::channel(agent::Drivers::All).1,
                version: "test".into(),
            })
            .unwrap(),
        );
        let mut events = agent.events();
        let address = format!("unix://{}/agent.sock", folder.path().display());
        tokio::spawn({
            let address = address.clone();
            async move { agent.serve(&address).await.unwrap() }
        });
        assert_eq!(events.recv().await.unwrap(), AgentEvent::Listening);
        let agent = AgentServiceClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap());
        let mut sandbox =
            CreateSandboxRequest { hostname: "pod-1".into(), dns: vec!["10.0.0.10".into()], ..Default::default() };
        change(&root, &mut sandbox);
        agent.create_sandbox(context::with_timeout(0), &sandbox).await.unwrap();
        Self { _folder: folder, root, images, agent, events }
    }

    pub(crate) async fn expect(&mut self, event: AgentEvent) {
        while self.events.recv().await.unwrap() != event {}
    }

    pub(crate) fn request(&self, id: &str, args: &[&str]) -> CreateContainerRequest {
        let process = oci::Process { Args: args.iter().map(ToString::to_string).collect(), ..Default::default() };
        CreateContainerRequest {
            container_id: id.into(),
            exec_id: id.into(),
            storages: vec![Storage {
                driver: "image_guest_pull".into(),
                source: "registry/self:1".into(),
                mount_point: self.root.join(id).join("rootfs").to_str().unwrap().into(),
                ..Default::default()
            }],
            OCI: MessageField::some(oci::Spec { Process: MessageField::some(process), ..Default::default() }),
            ..Default::default()
        }
    }

    pub(crate) async fn create(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut CreateContainerRequest),
    ) -> ttrpc::Result<()> {
        let mut request = self.request(id, args);
        change(&mut request);
        self.agent.create_container(context::with_timeout(0), &request).await.map(drop)
    }

    pub(crate) async fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.start_container(context::with_timeout(0), &request).await.map(drop)
    }

    pub(crate) async fn exec(&self, id: &str, exec: &str, args: &[&str], terminal: bool) -> ttrpc::Result<()> {
        let args = args.iter().map(ToString::to_string).collect();
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: MessageField::some(oci::Process { Args: args, Terminal: terminal, ..Default::default() }),
            ..Default::default()
        };
        self.agent.exec_process(context::with_timeout(0), &request).await.map(drop)
    }

    pub(crate) async fn signal(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request =
            SignalProcessRequest { container_id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        self.agent.signal_process(context::with_timeout(0), &request).await.map(drop)
    }

    pub(crate) async fn wait(&self, id: &str, exec: &str) -> i32 {
        let request = WaitProcessRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.agent.wait_process(context::with_timeout(0), &request).await.unwrap().status
    }

    pub(crate) async fn copy(&self, path: &str, mode: u32, data: &[u8]) {
        self.part(path, mode, data.len(), 0, data).await;
    }

    pub(crate) async fn part(&self, path: &str, mode: u32, size: usize, offset: usize, data: &[u8]) {
        let request = CopyFileRequest {
            path: self.root.join("shared/containers").join(path).to_str().unwrap().into(),
            file_mode: mode,
            dir_mode: 0o755,
            file_size: size.try_into().unwrap(),
            offset: offset.try_into().unwrap(),
            data: data.into(),
            ..Default::default()
        };
        self.agent.copy_file(context::with_timeout(0), &request).await.unwrap();
    }

    pub(crate) async fn write(&self, id: &str, exec: &str, data: &[u8]) {
        let request = WriteStreamRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            data: data.into(),
            ..Default::default()
        };
        assert_eq!(self.agent.write_stdin(context::with_timeout(0), &request).await.unwrap().len as usize, data.len());
    }

    pub(crate) async fn read(&self, id: &str, exec: &str) -> String {
        let request =
            ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len: 4096, ..Default::default() };
        String::from_utf8(self.agent.read_stdout(context::with_timeout(0), &request).await.unwrap().data).unwrap()
    }

    pub(crate) async fn read_all(&self, id: &str, exec: &str) -> String {
        let mut text = String::new();
        loop {
            match self.read(id, exec).await {
                part if part.is_empty() => return text,
                part => text.push_str(&part),
            }
        }
    }

    pub(crate) async fn remove(&self, id: &str, timeout: u32) -> ttrpc::Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), timeout, ..Default::default() };
        self.agent.remove_container(context::with_timeout(0), &request).await.map(drop)
    }

    #[track_caller]
    pub(crate) fn assert_clean(&self, id: &str) {
        for path in
            [self.root.join(id), self.root.join(".state").join(id), Path::new("/sys/fs/cgroup/containers").join(id)]
        {
            assert!(!path.exists(), "{} is left", path.display());
        }
    }

    /// Ends the pod, after which nothing may be left.
    pub(crate) async fn end(mut self) {
        self.agent.destroy_sandbox(context::with_timeout(0), &DestroySandboxRequest::new()).await.unwrap();
        self.expect(AgentEvent::SandboxDestroyed).await;
        let left: Vec<_> = std::fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == ".state"), "{left:?}");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.root.to_str().unwrap()), "{mounts}");
    }
}

#[track_caller]
pub(crate) fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other:?}"),
    }
}

pub(crate) const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
