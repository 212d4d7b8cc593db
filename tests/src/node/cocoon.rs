//! The runtime handler of confidential pods: its configuration as the page about Kubernetes has it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::Containerd;
use super::namespaces::Namespaces;
use super::snapshotter::with_snapshotter;
use crate::{Lab, set};

/// Configuration of the shim, and by it of containerd's handler `cocoon`.
pub struct Cocoon {
    settings: toml::Table,
    snapshotter: bool,
    programs: Option<PathBuf>,
}

impl Cocoon {
    /// The published configuration with the programs under test, and small machines: cases run many on two processors.
    ///
    /// # Panics
    /// If they have not been built.
    #[expect(clippy::new_without_default, reason = "it reads files")]
    pub fn new() -> Self {
        let settings = toml_block(KUBERNETES, "[hypervisor.qemu]").parse().unwrap();
        let published = Self { settings, snapshotter: false, programs: None };
        published.with("hypervisor.qemu.default_memory", 256)
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

    /// Takes the shim from this folder, in place of the one that was built for tests.
    pub fn with_programs(self, folder: &Path) -> Self {
        Self { programs: Some(folder.to_owned()), ..self }
    }

    /// Installs programs, guest image and configuration on a node where the page has them, and returns what containerd's
    /// configuration needs at its end.
    pub(super) fn install(&self, namespaces: &Namespaces, version: Containerd) -> String {
        let (opt, etc) = (namespaces.path("/opt/cocoon/current"), namespaces.path("/etc/cocoon"));
        fs::create_dir_all(opt.join("bin")).unwrap();
        fs::create_dir_all(opt.join("share")).unwrap();
        fs::create_dir_all(&etc).unwrap();
        let shim = self.programs.as_ref().map_or_else(|| Lab::program(SHIM), |folder| folder.join(SHIM));
        symlink(shim, opt.join("bin").join(SHIM)).unwrap();
        symlink(Lab::guest_image(), opt.join("share/guest-image")).unwrap();
        fs::write(etc.join("configuration.toml"), self.settings.to_string()).unwrap();

        let block = toml_block(KUBERNETES, &format!("[{}.containerd.runtimes.cocoon]", version.runtime_table()));
        // A file of its own says its version; here it is part of another file.
        let handler = block.strip_prefix("version = 3\n\n").unwrap_or(&block);
        let handler = match self.snapshotter {
            true => with_snapshotter(handler, version),
            false => handler.to_owned(),
        };
        match version {
            Containerd::V1 => handler,
            Containerd::V2 => format!("{handler}\n{}", with_sandboxer(&handler)),
        }
    }
}

/// The same handler as `cocoon-sandbox`, whose pods the shim makes by containerd's sandbox service and not by a container. It
/// may have no options.
fn with_sandboxer(handler: &str) -> String {
    let table = handler.split("\n\n").next().unwrap();
    format!("{}\nsandboxer = \"shim\"\n", table.replace("runtimes.cocoon]", "runtimes.cocoon-sandbox]"))
}

/// The first block of a page with this line.
fn toml_block(page: &str, line: &str) -> String {
    let found = toml_blocks(page).into_iter().find(|block| block.lines().any(|found| found == line));
    found.unwrap_or_else(|| panic!("docs/{page} has no block with {line}"))
}

/// The blocks of a page that containerd or the shim reads.
pub(super) fn toml_blocks(page: &str) -> Vec<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page)).unwrap();
    page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

const KUBERNETES: &str = "kubernetes.md";
const SHIM: &str = "containerd-shim-cocoon-v2";
