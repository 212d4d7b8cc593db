//! The node's snapshotter and blob cache: the program under test in the node, and what containerd is told of it.

use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use super::cocoon::toml_blocks;
use super::{Containerd, Node, PAUSE_BETWEEN_CALLS, processes};
use crate::{Daemon, Lab, run};

/// A snapshotter that runs on a node.
pub struct Snapshotter<'a> {
    node: &'a Node,
    process: Mutex<Daemon>,
}

impl<'a> Snapshotter<'a> {
    /// Starts it with its sockets at their places, and folders of the node's.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start(node: &'a Node) -> Self {
        Self { node, process: Mutex::new(serve(node, "")) }
    }

    /// Kills it, removes all that it has written, and starts it again.
    ///
    /// # Panics
    /// If it does not start.
    pub fn wipe_and_restart(&self) {
        self.kill();
        fs::remove_dir_all(self.node.folder.join("snapshotter")).unwrap();
        self.start_again();
    }

    /// Ends it at once, as a crash does, and starts it again.
    ///
    /// # Panics
    /// If it does not start.
    pub fn crash_and_restart(&self) {
        self.kill();
        self.start_again();
    }

    /// Ends it at once.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        // Ours is nsenter, which passes no signal on.
        run("kill", ["-KILL", &processes::child_of(process.pid()).to_string()]);
        process.ended(LIMIT);
    }

    /// Starts it after [`Self::kill`].
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&self) {
        *self.process.lock().unwrap() = serve(self.node, "");
    }

    /// Kills it and starts it again with these lines in its configuration.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart_with(&self, lines: &str) {
        self.kill();
        *self.process.lock().unwrap() = serve(self.node, lines);
    }

    /// Its process, as the host numbers it.
    pub fn pid(&self) -> u32 {
        processes::child_of(self.process.lock().unwrap().pid())
    }

    /// Pulls an image as a kubelet does for a pod of handler `cocoon`, as often as it takes: containerd connects to a
    /// plugin that was away only after a pause.
    ///
    /// # Panics
    /// If it can't be pulled.
    pub async fn pull(&self, image: &str) {
        let mut refused = None;
        let again = async {
            while let Err(status) = self.node.try_pull(image, "cocoon", None).await {
                refused = Some(status);
                // The end of that pause is no event that one could wait for.
                tokio::time::sleep(PAUSE_BETWEEN_CALLS).await;
            }
        };
        let pulled = tokio::time::timeout(LIMIT, again).await;
        assert!(pulled.is_ok(), "{image} can't be pulled: {refused:?}");
    }

    /// What it said so far.
    pub fn log(&self) -> String {
        self.process.lock().unwrap().text()
    }
}

fn serve(node: &Node, more: &str) -> Daemon {
    let file = node.folder.join("snapshotter.toml");
    let folder = node.folder.display();
    let text = format!("state_dir = \"{folder}/snapshotter\"\nregistries = \"{folder}/registries\"\n{more}");
    fs::write(&file, text).unwrap();
    let mut command: Command = node.command(Lab::program(PROGRAM));
    let process = Daemon::start(command.arg("--config").arg(file));
    process.wait_for("ready", LIMIT);
    process
}

/// A handler's part of containerd's configuration, with the snapshotter as the page about it has it.
pub(super) fn with_snapshotter(handler: &str, version: Containerd) -> String {
    let kind = "runtime_type = \"io.containerd.cocoon.v2\"\n";
    let handler = handler.replace(kind, &format!("{kind}snapshotter = \"cocoon\"\n"));
    let blocks: [String; 2] = toml_blocks("snapshotter.md").try_into().unwrap();
    let [own_file, main_file] = blocks;
    let block = match version {
        Containerd::V1 => main_file,
        Containerd::V2 => own_file,
    };
    format!("{handler}\n{block}")
}

const PROGRAM: &str = "cocoon-snapshotter";
const LIMIT: Duration = Duration::from_secs(60);
