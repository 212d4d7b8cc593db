//! The snapshotter as containerd and guests see it: through its sockets, with a registry behind it.

mod pulls;
mod registry_double;
mod snapshots;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::spawn_blocking;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crate::proto::containerd::services::snapshots::v1::{
    Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest, StatSnapshotRequest,
};
use crate::proto::containerd::types::Mount;
use crate::{Config, Daemon};

/// One node with its folders. The snapshotter on it may be killed and started again.
struct Node {
    folder: TempDir,
    /// What the snapshotter runs on. It ends with it, and so does all that it has begun, as with a process.
    daemon: Option<Runtime>,
    containerd: SnapshotsClient<Channel>,
}

impl Node {
    async fn new() -> Self {
        Self::with(100).await
    }

    async fn with(cache_mib: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let daemon = start(folder.path(), cache_mib);
        let containerd = connect(folder.path()).await;
        Self { folder, daemon: Some(daemon), containerd }
    }

    /// Kills the snapshotter, removes all that it has written, and starts it again.
    async fn wipe_and_restart(&mut self) {
        self.kill().await;
        for folder in ["run", "state"] {
            std::fs::remove_dir_all(self.path(folder)).unwrap();
        }
        self.restart().await;
    }

    async fn kill(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            spawn_blocking(|| daemon.shutdown_timeout(LIMIT)).await.unwrap();
        }
    }

    /// Kills the snapshotter if it runs, and starts it again.
    async fn restart(&mut self) {
        self.kill().await;
        self.daemon = Some(start(self.folder.path(), 100));
        self.containerd = connect(self.folder.path()).await;
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn prepare(&self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Result<Vec<Mount>, Status> {
        let labels: HashMap<_, _> =
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let (key, parent, snapshotter) = (key.to_owned(), parent.to_owned(), "cocoon".to_owned());
        let request = PrepareSnapshotRequest { snapshotter, key, parent, labels };
        Ok(self.containerd.clone().prepare(request).await?.into_inner().mounts)
    }

    /// What a pull asks for a layer, and how it makes sure of the answer.
    async fn pull_layer(&self, chain_id: &str, parent: &str, labels: &[(&str, &str)]) -> Info {
        let key = format!("k8s.io/5/extract-77-abcd {chain_id}");
        let labels = [labels, &[("containerd.io/snapshot.ref", chain_id)]].concat();
        let refusal = self.prepare(&key, parent, &labels).await.unwrap_err();
        assert_eq!(refusal.code(), Code::AlreadyExists, "{refusal}");
        let found = self.list().await.into_iter().find(|info| {
            info.labels.get("containerd.io/snapshot.ref").is_some_and(|it| it == chain_id) && info.parent == parent
        });
        found.unwrap_or_else(|| panic!("{chain_id} is not listed"))
    }

    async fn mounts(&self, key: &str) -> Vec<Mount> {
        let request = MountsRequest { key: key.to_owned(), ..Default::default() };
        self.containerd.clone().mounts(request).await.unwrap().into_inner().mounts
    }

    async fn stat(&self, key: &str) -> Info {
        let request = StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        self.containerd.clone().stat(request).await.unwrap().into_inner().info.unwrap()
    }

    async fn list(&self) -> Vec<Info> {
        let mut parts = self.containerd.clone().list(ListSnapshotsRequest::default()).await.unwrap().into_inner();
        let mut all = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            all.extend(part.info);
        }
        all
    }

    /// What a guest gets for a request: the status, and the body.
    async fn ask_as_guest(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
        let mut stream = UnixStream::connect(self.path("run").join(Daemon::GUESTS)).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), answer[end + 4..].to_vec())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.shutdown_background();
        }
    }
}

fn start(folder: &Path, cache_mib: u64) -> Runtime {
    let config = Config {
        run_dir: folder.join("run"),
        state_dir: folder.join("state"),
        cache_mib,
        registries: folder.join("certs.d"),
        credentials: folder.join("config.json"),
        // None is there: what can't be asked is done without.
        containerd: folder.join("none.sock"),
    };
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let daemon = {
        let _sockets_are_of = runtime.enter();
        Daemon::open(config).unwrap()
    };
    runtime.spawn(daemon.serve());
    runtime
}

async fn connect(folder: &Path) -> SnapshotsClient<Channel> {
    let socket = folder.join("run").join(Daemon::CONTAINERD);
    let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display())).unwrap();
    SnapshotsClient::new(endpoint.connect().await.unwrap())
}

fn chain_id(number: u8) -> String {
    format!("sha256:{}", hex::encode([number; 32]))
}

const LIMIT: Duration = Duration::from_secs(10);
