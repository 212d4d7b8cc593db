//! The runtime handler of confidential pods: its configuration as the page about Kubernetes has it.

use std::fs;
use std::path::Path;

use super::Containerd;
use super::snapshotter::with_snapshotter;
use crate::{Lab, set};

/// Configuration of the shim, and by it of containerd's handler `cocoon`.
pub struct Cocoon {
    settings: toml::Table,
    snapshotter: bool,
}

impl Cocoon {
    /// The published configuration with the programs under test.
    ///
    /// # Panics
    /// If they have not been built.
    #[expect(clippy::new_without_default, reason = "it reads files")]
    pub fn new() -> Self {
        let block = toml_block(&page(), "[hypervisor.qemu]");
        let guest = Lab::guest_image();
        let settings = block.replace("/opt/cocoon/guest-image", guest.to_str().unwrap());
        Self { settings: settings.parse().unwrap(), snapshotter: false }
    }

    /// Changes a key, by its path with dots.
    pub fn with(mut self, path: &str, value: impl Into<toml::Value>) -> Self {
        set(&mut self.settings, path, value);
        self
    }

    /// Leaves images to the node's [`super::Snapshotter`], which has to be started.
    pub fn with_snapshotter(self) -> Self {
        Self { snapshotter: true, ..self }
    }

    /// Writes the shim's configuration into a folder, and returns what containerd's configuration needs at its end.
    pub(super) fn install(&self, folder: &Path, version: Containerd) -> String {
        let configuration = folder.join("cocoon.toml");
        fs::write(&configuration, self.settings.to_string()).unwrap();
        let handler = toml_block(&page(), &format!("[{}.containerd.runtimes.cocoon]", version.runtime_table()));
        let (_, handler) = handler.split_once("\n\n").unwrap();
        let shim = Lab::program(SHIM);
        let handler = match self.snapshotter {
            true => with_snapshotter(handler, version),
            false => handler.to_owned(),
        };
        let handler = handler
            .replace("/opt/cocoon/bin/containerd-shim-cocoon-v2", shim.to_str().unwrap())
            .replace("/etc/cocoon/configuration.toml", configuration.to_str().unwrap());
        match version {
            Containerd::V1 => handler,
            Containerd::V2 => format!("{handler}\n{}", with_sandboxer(&handler)),
        }
    }
}

/// The same handler as `cocoon-sandbox`, whose pods the shim makes by containerd's sandbox service and not by a container.
fn with_sandboxer(handler: &str) -> String {
    let pods = handler.split("[proxy_plugins").next().unwrap();
    let named = pods.replace("runtimes.cocoon", "runtimes.cocoon-sandbox");
    named.replacen("runtime_path", "sandboxer = \"shim\"\nruntime_path", 1)
}

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/kubernetes.md")).unwrap()
}

/// The block of a page with this line.
fn toml_block(page: &str, line: &str) -> String {
    let mut blocks = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let block = blocks.find(|block| block.lines().any(|found| found == line));
    block.unwrap_or_else(|| panic!("docs/kubernetes.md has no block with {line}")).to_owned()
}

const SHIM: &str = "containerd-shim-cocoon-v2";
