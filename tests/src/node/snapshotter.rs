//! The node's snapshotter and blob cache: the program under test in the node, and what containerd is told of it.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use tonic::Status;

use super::{Containerd, Node, image_spec, processes};
use crate::{Daemon, Lab, run};

/// A snapshotter that runs on a node.
pub struct Snapshotter<'a> {
    node: &'a Node,
    process: Daemon,
}

impl<'a> Snapshotter<'a> {
    /// Starts it with its sockets at their places, and folders of the node's.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(node: &'a Node) -> Self {
        Self { node, process: serve(node) }
    }

    /// Kills it, removes all that it has written, and starts it again.
    ///
    /// # Panics
    /// If it does not start.
    pub fn wipe_and_restart(&mut self) {
        // Ours is nsenter, which passes no signal on.
        run("kill", ["-KILL", &processes::child_of(self.process.pid()).to_string()]);
        self.process.ended(LIMIT);
        fs::remove_dir_all(self.node.folder.join("snapshotter")).unwrap();
        self.process = serve(self.node);
    }

    /// Pulls an image as a kubelet does for a pod of handler `cocoon`, as often as it takes: containerd connects to a
    /// plugin that was away only after a pause.
    ///
    /// # Panics
    /// If it can't be pulled.
    pub async fn pull(&self, image: &str) {
        let mut refused = None;
        let again = async {
            while let Err(status) = self.try_pull(image).await {
                refused = Some(status);
                // The end of that pause is no event that one could wait for.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let pulled = tokio::time::timeout(LIMIT, again).await;
        assert!(pulled.is_ok(), "{image} can't be pulled: {refused:?}");
    }

    async fn try_pull(&self, image: &str) -> Result<(), Status> {
        let handler = "cocoon".to_owned();
        let annotations = [("io.containerd.cri.runtime-handler".to_owned(), handler.clone())].into();
        let sandbox = cri::PodSandboxConfig { annotations, ..Default::default() };
        let image = cri::ImageSpec { runtime_handler: handler, ..image_spec(image) };
        let request = cri::PullImageRequest { image: Some(image), sandbox_config: Some(sandbox), ..Default::default() };
        self.node.images().pull_image(request).await.map(drop)
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        self.process.text()
    }
}

fn serve(node: &Node) -> Daemon {
    let file = node.folder.join("snapshotter.toml");
    let folder = node.folder.display();
    let text = format!("state_dir = \"{folder}/snapshotter\"\nregistries = \"{folder}/registries\"\n");
    fs::write(&file, text).unwrap();
    let mut command: Command = node.command(Lab::program(PROGRAM));
    let process = Daemon::start(command.arg("--config").arg(file));
    process.wait_for("ready", LIMIT);
    process
}

/// A handler's part of containerd's configuration, with the snapshotter.
pub(super) fn with_snapshotter(handler: &str, version: Containerd) -> String {
    let kind = "runtime_type = \"io.containerd.cocoon.v2\"\n";
    let mut text = handler.replace(kind, &format!("{kind}snapshotter = \"cocoon\"\n"));
    let _ = write!(
        text,
        "[proxy_plugins.cocoon]\ntype = \"snapshot\"\naddress = \"/run/cocoon-snapshotter/containerd.sock\"\n"
    );
    if version == Containerd::V2 {
        let _ = write!(
            text,
            "[proxy_plugins.cocoon.exports]\nenable_remote_snapshot_annotations = \"true\"\n\
             [plugins.\"io.containerd.cri.v1.images\"]\ndisable_snapshot_annotations = false\n\
             [plugins.\"io.containerd.cri.v1.images\".runtime_platforms.cocoon]\nplatform = \"linux/amd64\"\n\
             snapshotter = \"cocoon\"\n"
        );
    }
    text
}

const PROGRAM: &str = "cocoon-snapshotter";
const LIMIT: Duration = Duration::from_secs(60);
