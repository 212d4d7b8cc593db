//! The configuration of a pod: files, drop-ins beside them, and what a pod's annotations may change.

use std::path::{Path, PathBuf};
use std::{fs, io};

use hypervisor::acceleration::Preference;
use hypervisor::{QuoteService, Tee};
use sandbox::PodNetwork;
use serde::Deserialize;
use toml::{Table, Value};

use crate::{Error, Remote};

/// The configuration of a pod, in tables and keys named like Kata's where they mean the same.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[hypervisor.qemu]`: the machine.
    pub hypervisor: Hypervisor,
    /// `[agent.kata]`: the guest's agent.
    pub agent: Agent,
    /// `[runtime]`: the pod.
    pub runtime: Runtime,
}

/// `[hypervisor]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Hypervisor {
    /// A machine of this host.
    pub qemu: Machine,
    /// A machine elsewhere in its place.
    pub remote: Option<Remote>,
}

impl Hypervisor {
    /// The processors of a pod without limits, wherever its machine is.
    pub(crate) fn default_vcpus(&mut self) -> &mut u32 {
        self.remote.as_mut().map_or(&mut self.qemu.default_vcpus, |remote| &mut remote.default_vcpus)
    }

    /// The memory of a pod without limits, wherever its machine is.
    pub(crate) fn default_memory(&mut self) -> &mut u32 {
        self.remote.as_mut().map_or(&mut self.qemu.default_memory, |remote| &mut remote.default_memory)
    }
}

/// `[hypervisor.qemu]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// The guest's kernel. Default `/opt/cocoon/current/share/guest-image/vmlinux`.
    pub kernel: PathBuf,
    /// The guest's initramfs. Default `/opt/cocoon/current/share/guest-image/initramfs`.
    pub initrd: PathBuf,
    /// What is added to the kernel's command line. Default empty.
    pub kernel_params: String,
    /// Processors of a pod without limits. Default 1.
    pub default_vcpus: u32,
    /// Memory in MiB of a pod without limits. Default 2048.
    pub default_memory: u32,
    /// Processors that a pod with limits has beyond them. Default 0.4.
    pub overhead_vcpus: f64,
    /// Memory in MiB that a pod with limits has beyond them, for the guest itself. Default 128.
    pub overhead_memory: u32,
    /// Names of the annotations `io.katacontainers.config.hypervisor.*` that are followed, or `.*` for all that there are.
    /// Default `cc_init_data`, `default_memory`, `default_vcpus`.
    pub enable_annotations: Vec<String>,
    /// What keeps the host out of the guest's memory: `none`, `snp`, `tdx`, `sev` or `se`. Default `none`.
    pub tee: TeeName,
    /// Firmware made for the TEE. Default none.
    pub firmware: Option<PathBuf>,
    /// The policy of guests on SEV-SNP. Default 196608: no debugging, threads.
    pub snp_guest_policy: u64,
    /// The host's vsock port of TDX's quote generation; 0 for its unix socket. Default 0.
    pub tdx_quote_generation_service_socket_port: u32,
    /// `auto` takes KVM only where it runs a guest, `kvm` demands it, `tcg` emulates. Default `auto`.
    pub acceleration: Acceleration,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            kernel: "/opt/cocoon/current/share/guest-image/vmlinux".into(),
            initrd: "/opt/cocoon/current/share/guest-image/initramfs".into(),
            kernel_params: String::new(),
            default_vcpus: 1,
            default_memory: 2048,
            overhead_vcpus: 0.4,
            overhead_memory: 128,
            enable_annotations: ["cc_init_data", "default_memory", "default_vcpus"].map(str::to_owned).to_vec(),
            tee: TeeName::None,
            firmware: None,
            snp_guest_policy: 0x30000,
            tdx_quote_generation_service_socket_port: 0,
            acceleration: Acceleration::Auto,
        }
    }
}

/// The name of a TEE.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum TeeName {
    /// An ordinary machine.
    #[default]
    None,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// AMD SEV.
    Sev,
    /// IBM Secure Execution.
    Se,
}

impl TeeName {
    pub(crate) fn with(self, snp_policy: u64, quote_port: u32) -> Tee {
        match self {
            Self::None => Tee::None,
            Self::Snp => Tee::Snp { policy: snp_policy, c_bit: Tee::c_bit() },
            Self::Tdx => Tee::Tdx {
                quotes: Some(match quote_port {
                    0 => QuoteService::Unix("/var/run/tdx-qgs/qgs.socket".into()),
                    port => QuoteService::Vsock(port),
                }),
            },
            // No debugging.
            Self::Sev => Tee::Sev { policy: 1, c_bit: Tee::c_bit() },
            Self::Se => Tee::Se,
        }
    }
}

/// The host's virtualisation.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// KVM where it runs a guest.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation.
    Tcg,
}

impl From<Acceleration> for Preference {
    fn from(acceleration: Acceleration) -> Self {
        match acceleration {
            Acceleration::Auto => Self::Auto,
            Acceleration::Kvm => Self::Kvm,
            Acceleration::Tcg => Self::Tcg,
        }
    }
}

/// `[agent]`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Agent {
    /// The only one there is.
    pub kata: GuestAgent,
}

/// `[agent.kata]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct GuestAgent {
    /// Seconds that creating a container may take, with the pull of its image. Default 300.
    pub create_container_timeout: u64,
    /// Milliseconds that the guest may take to say that it is there; it is asked every 30 s, and a machine whose guest
    /// hangs is ended. 0 asks nothing. Default 90000.
    pub health_check_request_timeout_ms: u64,
}

impl Default for GuestAgent {
    fn default() -> Self {
        Self { create_container_timeout: 300, health_check_request_timeout_ms: 90_000 }
    }
}

/// `[runtime]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Runtime {
    /// Whether the machine runs in the pod's cgroup, so that the pod's limits hold for it. Default true.
    pub sandbox_cgroup_only: bool,
    /// How the pod's interfaces become the guest's: `tcfilter`, `macvtap` or `none`. Default `tcfilter`.
    pub internetworking_model: NetworkModel,
    /// Whether no network namespace is made; taken for upstream's sake, since none is made ever. Default false.
    pub disable_new_netns: bool,
    /// Where emptyDirs are: `block-encrypted`, `block-plain` or `shared-fs`. Default `block-encrypted`.
    pub emptydir_mode: EmptyDirMode,
}

/// How a pod's interfaces become the guest's.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum NetworkModel {
    /// By tap devices, and redirections between them and the interfaces. Works with every kind of interface.
    #[default]
    Tcfilter,
    /// By macvtap links on the interfaces.
    Macvtap,
    /// Not at all: the guest has no interface.
    None,
}

impl NetworkModel {
    /// What becomes of a pod's network.
    pub(crate) fn of(self, network: PodNetwork) -> PodNetwork {
        match (self, network) {
            (Self::Macvtap, PodNetwork::Namespace(path)) => PodNetwork::Macvtap(path),
            (Self::None, PodNetwork::Namespace(path)) => PodNetwork::Isolated(path),
            (_, network) => network,
        }
    }
}

/// Where emptyDirs are that are not of medium `Memory`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum EmptyDirMode {
    /// On a disk of the node, under a key that only the guest has.
    #[default]
    BlockEncrypted,
    /// On a disk of the node, for all of it to read.
    BlockPlain,
    /// In the guest's memory: a guest shares no file system with its node.
    SharedFs,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            emptydir_mode: EmptyDirMode::default(),
            disable_new_netns: false,
            internetworking_model: NetworkModel::default(),
            sandbox_cgroup_only: true,
        }
    }
}

impl Config {
    /// Reads the file that containerd's runtime options name, else `/etc/cocoon/configuration.toml` if it is there, and
    /// over it every `config.d/*.toml` beside it, in order of their names.
    ///
    /// # Errors
    /// [`Error::Config`] naming the file and the key.
    pub fn load(named: Option<&Path>) -> Result<Self, Error> {
        let path = named.unwrap_or(Path::new(DEFAULT));
        // Drop-ins lie beside the file that a link names.
        let path = match fs::canonicalize(path) {
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            real => real.map_err(|error| refused(path, error))?,
        };
        let mut table = read(&path)?;
        let mut last = path.clone();
        for drop_in in drop_ins(&path).map_err(|error| refused(&path, error))? {
            merge(&mut table, read(&drop_in)?);
            last = drop_in;
        }
        let config: Self =
            Value::Table(table).try_into().map_err(|error: toml::de::Error| refused(&last, error.message()))?;
        config.checked(&last)
    }

    /// Reads the text that containerd's runtime options carry.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let path = Path::new("the runtime's options");
        let config: Self = toml::from_str(text).map_err(|error| refused(path, error.message()))?;
        config.checked(path)
    }

    /// Names of annotations must be such: a pattern that matches nothing would go unseen.
    fn checked(self, path: &Path) -> Result<Self, Error> {
        let plain =
            |name: &&String| *name != ALL && !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match self.enabled_annotations().iter().find(plain) {
            Some(name) => Err(refused(
                path,
                format!("enable_annotations: {name:?} is no name; next: list names, or {ALL:?} for all"),
            )),
            None => Ok(self),
        }
    }

    /// Whether the annotation `io.katacontainers.config.hypervisor.` with this name may be followed.
    pub(crate) fn allows(&self, name: &str) -> bool {
        self.enabled_annotations().iter().any(|enabled| enabled == name || enabled == ALL)
    }

    fn enabled_annotations(&self) -> &[String] {
        match &self.hypervisor.remote {
            Some(remote) => &remote.enable_annotations,
            None => &self.hypervisor.qemu.enable_annotations,
        }
    }
}

fn read(path: &Path) -> Result<Table, Error> {
    let text = fs::read_to_string(path).map_err(|error| refused(path, error))?;
    text.parse().map_err(|error: toml::de::Error| refused(path, error.to_string().trim_end()))
}

fn drop_ins(path: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = path.with_file_name("config.d");
    let mut found = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        entries => entries?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?,
    };
    found.retain(|path| path.extension().is_some_and(|it| it == "toml"));
    found.sort();
    Ok(found)
}

/// Lays one table over another: tables are merged, everything else is replaced.
fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}

fn refused(path: &Path, reason: impl ToString) -> Error {
    Error::Config { path: path.to_owned(), reason: reason.to_string() }
}

/// In the place of a name: all annotations that there are. Kata reads regular expressions there, and this is the one in use.
const ALL: &str = ".*";
const DEFAULT: &str = "/etc/cocoon/configuration.toml";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_ins_are_laid_over_the_file_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("configuration.toml");
        fs::write(&path, "[hypervisor.qemu]\ndefault_memory = 512\ndefault_vcpus = 2\n").unwrap();
        fs::create_dir(folder.path().join("config.d")).unwrap();
        for (name, text) in [
            ("20-b.toml", "[hypervisor.qemu]\ndefault_memory = 768\n"),
            ("10-a.toml", "[hypervisor.qemu]\ndefault_memory = 640\n[agent.kata]\ncreate_container_timeout = 7\n"),
            ("note.txt", "not TOML"),
        ] {
            fs::write(folder.path().join("config.d").join(name), text).unwrap();
        }
        let link = folder.path().join("elsewhere");
        fs::create_dir(&link).unwrap();
        let link = link.join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();

        for path in [&path, &link] {
            let config = Config::load(Some(path)).unwrap();
            let machine = &config.hypervisor.qemu;
            assert_eq!((machine.default_memory, machine.default_vcpus, machine.overhead_memory), (768, 2, 128));
            assert_eq!(config.agent.kata.create_container_timeout, 7);
        }
    }

    #[test]
    fn the_page_about_the_shim_has_every_key_with_its_default() {
        let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/shim.md")).unwrap();
        // serde names the keys that it knows when it refuses one.
        for table in ["hypervisor.qemu", "hypervisor.remote", "agent.kata", "runtime"] {
            let error = Config::parse(&format!("[{table}]\nnone = 1\n")).unwrap_err().to_string();
            let keys: Vec<_> = error.split('`').skip(3).step_by(2).collect();
            assert!(!keys.is_empty(), "{error}");
            for key in keys {
                assert!(
                    page.lines().any(|line| line.starts_with('|') && line.contains(&format!("| `{key}` |"))),
                    "{key}"
                );
            }
        }
        let Config { hypervisor: Hypervisor { qemu, .. }, agent, runtime } = Config::default();
        let remote = Remote::default();
        for (key, value) in [
            ("kernel", format!("`{}`", qemu.kernel.display())),
            ("initrd", format!("`{}`", qemu.initrd.display())),
            ("default_vcpus", qemu.default_vcpus.to_string()),
            ("default_memory", qemu.default_memory.to_string()),
            ("overhead_vcpus", qemu.overhead_vcpus.to_string()),
            ("overhead_memory", qemu.overhead_memory.to_string()),
            ("enable_annotations", format!("`{}`", qemu.enable_annotations.join("`, `"))),
            ("snp_guest_policy", qemu.snp_guest_policy.to_string()),
            ("remote_hypervisor_socket", format!("`{}`", remote.remote_hypervisor_socket.display())),
            ("remote_hypervisor_timeout", remote.remote_hypervisor_timeout.to_string()),
            ("enable_annotations", format!("`{}`", remote.enable_annotations.join("`, `"))),
            ("create_container_timeout", agent.kata.create_container_timeout.to_string()),
            ("health_check_request_timeout_ms", agent.kata.health_check_request_timeout_ms.to_string()),
            ("sandbox_cgroup_only", runtime.sandbox_cgroup_only.to_string()),
        ] {
            assert!(page.contains(&format!("| `{key}` | {value} |")), "{key} is {value}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        for (text, reason) in [
            ("[hypervisor.qemu]\ndefault_memroy = 1\n", "default_memroy"),
            ("[hypervisor.qemu]\ndefault_memory = \"a\"\n", "expected u32"),
            ("[hypervisor.qemu\n", "c.toml"),
            ("[hypervisor.qemu]\nenable_annotations = [\"default_.*\"]\n", "list names"),
            ("[runtime]\ninternetworking_model = \"l3forwarding\"\n", "`tcfilter`, `macvtap`, `none`"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Config::load(Some(&path)).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?} gave {error:?}");
        }
        assert!(Config::load(Some(&folder.path().join("absent.toml"))).is_err());
        assert!(Config::parse("[runtime]\nsandbox_cgroup_only = false\n").is_ok());
        // As Kata's own configurations have it.
        for names in ["\".*\"", "\"enable_iommu\", \"kernel_params\", \"virtio_fs_extra_args\""] {
            Config::parse(&format!("[hypervisor.qemu]\nenable_annotations = [{names}]\n")).unwrap();
        }
    }
}
