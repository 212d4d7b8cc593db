//! A shim as containerd sees it, with a guest made for tests: its agent speaks the real protocol on a real socket.

mod ends;
mod fake;
mod lives;
mod management;
mod volumes;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::management::Failures;
use containerd_shim_protos::api::*;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::asynchronous::{Client, Server};
use ttrpc::context::Context;

use self::fake::{Containerd, FakeAgent, FakeBoot};
use crate::events::Events;
use crate::shim::Shim;
use crate::{sandbox_api, task};

/// A shim, the guest it talks to, and the containerd that it tells.
pub(crate) struct Lab {
    folder: TempDir,
    agent: Arc<FakeAgent>,
    boot: FakeBoot,
    containerd: Containerd,
    shim: Arc<Shim>,
    client: Client,
    task: TaskClient,
    _server: Server,
}

impl Lab {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agent = FakeAgent::serve(&folder.path().join("agent")).await;
        let containerd = Containerd::serve(&folder.path().join("events")).await;
        let boot = FakeBoot::new(folder.path().join("agent"));

        let events = Events::start(folder.path().join("events").display().to_string(), "k8s.io".into());
        let shim =
            Arc::new(Shim::new(POD, "k8s.io", events, boot.clone(), Failures::at(&folder.path().join("failures"))));
        let address = folder.path().join("shim");
        let mut server = Server::new()
            .bind(&format!("unix://{}", address.display()))
            .unwrap()
            .register_service(task::services(&shim))
            .register_service(sandbox_api::service(&shim));
        server.start().await.unwrap();
        let client = Client::new(Socket::from(UnixStream::connect(&address).await.unwrap()));
        let task = TaskClient::new(client.clone());
        Self { folder, agent, boot, containerd, shim, client, task, _server: server }
    }

    /// A lab whose pod is up.
    async fn with_pod() -> Self {
        let mut lab = Self::new().await;
        lab.create(lab.sandbox(POD)).await.unwrap();
        lab.start(POD, "").await.unwrap();
        assert_eq!(lab.containerd.next().await, format!("/tasks/create {POD}"));
        assert_eq!(lab.containerd.next().await, format!("/tasks/start {POD}"));
        lab
    }

    /// Writes a bundle, as containerd does.
    fn bundle(&self, id: &str, config: serde_json::Value) -> String {
        let path = self.path(&format!("bundle-{id}"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), config.to_string()).unwrap();
        path.display().to_string()
    }

    fn sandbox(&self, id: &str) -> CreateTaskRequest {
        let config = json!({
            "ociVersion": "1.1.0",
            "annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id},
            "linux": {"namespaces": [{"type": "network", "path": "/run/netns/pod"}, {"type": "pid"}, {"type": "ipc"}]},
        });
        self.request(id, config)
    }

    fn container(&self, id: &str, mounts: serde_json::Value) -> CreateTaskRequest {
        let config = json!({
            "ociVersion": "1.1.0",
            "process": {"args": ["sh"], "cwd": "/"},
            "annotations": {
                "io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": POD,
                "io.kubernetes.cri.image-name": "registry/busybox", "io.kubernetes.cri.container-name": "app",
                "io.kubernetes.container.terminationMessagePolicy": "File",
                "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            },
            "mounts": mounts,
            "linux": {"namespaces": [{"type": "pid"}]},
        });
        self.request(id, config)
    }

    fn request(&self, id: &str, config: serde_json::Value) -> CreateTaskRequest {
        CreateTaskRequest {
            id: id.into(),
            bundle: self.bundle(id, config),
            options: Some(self.options()).into(),
            ..Default::default()
        }
    }

    /// Runtime options that name a configuration.
    fn options(&self) -> Any {
        let path = self.path("configuration.toml");
        if !path.exists() {
            fs::write(&path, "[agent.kata]\ncreate_container_timeout = 60\n").unwrap();
        }
        let path = path.display().to_string();
        let value = [b"\x12", &[path.len() as u8][..], path.as_bytes()].concat();
        Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A fifo, as containerd makes them.
    fn fifo(&self, name: &str) -> String {
        let path = self.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    async fn create(&self, request: CreateTaskRequest) -> ttrpc::Result<u32> {
        Ok(soon(self.task.create(Context::default(), &request)).await?.pid)
    }

    /// Waits until the guest was asked for a container.
    async fn asked_for(&self, id: &str) {
        soon(async {
            while self.agent.created.lock().unwrap().iter().all(|it| it.container_id != id) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn start(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(soon(self.task.start(Context::default(), &request)).await?.pid)
    }

    async fn exec(&self, id: &str, exec: &str) -> ttrpc::Result<()> {
        let spec = Any {
            value: br#"{"args": ["id"], "cwd": "/", "capabilities": {"bounding": ["CAP_X"]}}"#.to_vec(),
            ..Default::default()
        };
        let request =
            ExecProcessRequest { id: id.into(), exec_id: exec.into(), spec: Some(spec).into(), ..Default::default() };
        soon(self.task.exec(Context::default(), &request)).await.map(drop)
    }

    async fn kill(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = KillRequest { id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        soon(self.task.kill(Context::default(), &request)).await.map(drop)
    }

    async fn delete(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(soon(self.task.delete(Context::default(), &request)).await?.exit_status)
    }

    async fn wait(&self, id: &str, exec: &str) -> ttrpc::Result<u32> {
        let request = WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        Ok(soon(self.task.wait(Context::default(), &request)).await?.exit_status)
    }

    async fn state(&self, id: &str) -> ttrpc::Result<Status> {
        let request = StateRequest { id: id.into(), ..Default::default() };
        Ok(soon(self.task.state(Context::default(), &request)).await?.status.enum_value_or_default())
    }
}

/// What must happen at once, or at least long before anybody has lost patience.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), work).await.expect("it takes for ever")
}

/// All that comes out of a fifo until its last writer is gone.
async fn read_to_end(path: &str) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut text = String::new();
    let mut fifo = pipe::OpenOptions::new().open_receiver(path).unwrap();
    soon(fifo.read_to_string(&mut text)).await.unwrap();
    text
}

fn code(error: ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

fn bind(source: &Path, destination: &str) -> serde_json::Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "ro"]})
}

const POD: &str = "pod-1";
