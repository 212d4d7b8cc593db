//! containerd as a plain process with folders of its own: its versions, configuration, start and end.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use newer_debian::NewerDebian;

use super::namespaces::Namespaces;
use super::processes;
use crate::{Daemon, run};

/// A line of containerd's releases.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Containerd {
    /// 1.7, as Debian 13 has it.
    V1,
    /// 2.x, as Debian's unstable has it.
    V2,
}

impl Containerd {
    /// The folder with its programs.
    ///
    /// # Errors
    /// Why they can't be had, such as that there is no network.
    pub(super) fn programs(self) -> Result<PathBuf, String> {
        let suite = match self {
            Self::V1 => "trixie",
            Self::V2 => "sid",
        };
        NewerDebian::unpack(suite, &["containerd"]).map(|debian| debian.path().join("usr/bin"))
    }

    /// What the tables of its CRI plugin's runtime are called in a configuration.
    pub(super) fn runtime_table(self) -> &'static str {
        match self {
            Self::V1 => "plugins.\"io.containerd.grpc.v1.cri\"",
            Self::V2 => "plugins.\"io.containerd.cri.v1.runtime\"",
        }
    }

    fn configuration(self, folder: &Path, pause: &str) -> String {
        let root = folder.display();
        let runtime = self.runtime_table();
        let (version, images) = match self {
            Self::V1 => (2, runtime),
            Self::V2 => (3, "plugins.\"io.containerd.cri.v1.images\""),
        };
        let mut text = format!(
            "version = {version}\nroot = \"{root}/root\"\nstate = \"/run/containerd\"\n[grpc]\naddress = \"{SOCKET}\"\n"
        );
        match self {
            Self::V1 => _ = writeln!(text, "[{runtime}]\nsandbox_image = \"{pause}\""),
            Self::V2 => _ = writeln!(text, "[{images}.pinned_images]\nsandbox = \"{pause}\"\n[{runtime}]"),
        }
        // Not every machine lets root raise a process's score.
        let _ = write!(
            text,
            "restrict_oom_score_adj = true\ndisable_apparmor = true\n\
             [{images}.registry]\nconfig_path = \"{root}/registries\"\n\
             [{runtime}.cni]\nconf_dir = \"{root}/cni\"\n{cni}\n\
             [{runtime}.containerd]\ndefault_runtime_name = \"runc\"\n{annotations}\
             [{runtime}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{runtime}.containerd.runtimes.runc.options]\nSystemdCgroup = false\n",
            // What a snapshotter must know to fetch layers itself.
            annotations = match self {
                Self::V1 => "disable_snapshot_annotations = false\n",
                Self::V2 => "",
            },
            cni = match self {
                Self::V1 => format!("bin_dir = \"{CNI_PLUGINS}\""),
                Self::V2 => format!("bin_dirs = [\"{CNI_PLUGINS}\"]"),
            }
        );
        text
    }
}

/// A running containerd.
pub(super) struct Service {
    programs: PathBuf,
    configuration: PathBuf,
    process: Daemon,
}

impl Service {
    /// Writes the configuration, `handlers` at its end, and starts it.
    pub(super) fn start(
        namespaces: &Namespaces,
        version: Containerd,
        programs: PathBuf,
        folder: &Path,
        pause: &str,
        handlers: &str,
    ) -> Self {
        let configuration = folder.join("containerd.toml");
        fs::write(&configuration, version.configuration(folder, pause) + handlers).unwrap();
        let process = serve(namespaces, &programs, &configuration);
        Self { programs, configuration, process }
    }

    /// Ends it by a signal, and starts it again.
    pub(super) fn restart(&mut self, signal: &str, namespaces: &Namespaces) {
        run("kill", ["-s", signal, &self.pid().to_string()]);
        self.process.ended(LIMIT);
        self.process = serve(namespaces, &self.programs, &self.configuration);
    }

    /// Its process, as the host numbers it; ours is nsenter, which passes no signal on.
    pub(super) fn pid(&self) -> u32 {
        processes::child_of(self.process.pid())
    }

    /// What its own client says to a question about pods, if it answers.
    pub(super) fn ctr(&self, namespaces: &Namespaces, arguments: &[&str]) -> Option<String> {
        let mut command = namespaces.command(self.programs.join("ctr"));
        let output = command.args(["--address", SOCKET, "--namespace", "k8s.io"]).args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it said.
    pub(super) fn log(&self) -> String {
        self.process.text()
    }
}

fn serve(namespaces: &Namespaces, programs: &Path, configuration: &Path) -> Daemon {
    let mut command: Command = namespaces.command(programs.join("containerd"));
    // Proxies of the machine are none of the laboratory's.
    // For the sandbox service containerd does not look at a handler's runtime_path.
    let path = format!("{}:/opt/cocoon/bin:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    command.env_clear().env("PATH", path).env("TMPDIR", "/run/tmp");
    let process = Daemon::start(command.arg("--config").arg(configuration));
    process.wait_for("containerd successfully booted", LIMIT);
    process
}

/// Where it listens, in the node.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
const CNI_PLUGINS: &str = "/usr/lib/cni";
const LIMIT: Duration = Duration::from_secs(60);
