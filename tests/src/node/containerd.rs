//! containerd as a plain process with folders of its own: its versions, configuration, start and end.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
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
    process: Daemon,
}

impl Service {
    /// Puts programs and configuration, `handlers` at its end, where a machine has them, and starts it.
    pub(super) fn start(
        namespaces: &Namespaces,
        version: Containerd,
        programs: &Path,
        folder: &Path,
        pause: &str,
        handlers: &str,
    ) -> Self {
        for program in fs::read_dir(programs).unwrap().flatten() {
            let place = namespaces.path(PROGRAMS).join(program.file_name());
            let _ = fs::remove_file(&place);
            symlink(program.path(), place).unwrap();
        }
        let configuration = namespaces.path(CONFIGURATION);
        fs::create_dir_all(configuration.parent().unwrap()).unwrap();
        fs::write(configuration, version.configuration(folder, pause) + handlers).unwrap();
        Self { process: serve(namespaces) }
    }

    /// Ends it by a signal, and starts it again.
    pub(super) fn restart(&mut self, signal: &str, namespaces: &Namespaces) {
        run("kill", ["-s", signal, &self.pid().to_string()]);
        self.process.ended(LIMIT);
        self.process = serve(namespaces);
    }

    /// Its process, as the host numbers it; ours is nsenter, which passes no signal on.
    pub(super) fn pid(&self) -> u32 {
        processes::child_of(self.process.pid())
    }

    /// What its own client says to a question about pods, if it answers.
    pub(super) fn ctr(&self, namespaces: &Namespaces, arguments: &[&str]) -> Option<String> {
        let mut command = namespaces.command(Path::new(PROGRAMS).join("ctr"));
        let output = command.args(["--address", SOCKET, "--namespace", "k8s.io"]).args(arguments).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it said.
    pub(super) fn log(&self) -> String {
        self.process.text()
    }
}

fn serve(namespaces: &Namespaces) -> Daemon {
    let mut command: Command = namespaces.command(Path::new(PROGRAMS).join("containerd"));
    // Proxies of the machine are none of the laboratory's.
    // For the sandbox service containerd does not look at a handler's runtime_path.
    let path = format!("{PROGRAMS}:/opt/cocoon/current/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env_clear().env("PATH", path).env("TMPDIR", "/run/tmp");
    let process = Daemon::start(&mut command);
    process.wait_for("containerd successfully booted", LIMIT);
    process
}

/// Where it listens, in the node.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";
/// Where they are in the node.
const PROGRAMS: &str = "/usr/local/bin";
const CONFIGURATION: &str = "/etc/containerd/config.toml";
const CNI_PLUGINS: &str = "/opt/cni/bin";
const LIMIT: Duration = Duration::from_secs(60);
