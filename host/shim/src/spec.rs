//! A container's specification as containerd writes it, and as the guest's agent takes it.
//!
//! Only what the agent has a use for is read. Words such as capabilities stay text: what this program doesn't know the
//! guest may. Hooks, seccomp and device rules are for the host and go no further.

use std::collections::{BTreeMap, HashMap};

use protobuf::MessageField;
use serde::Deserialize;
use wire_ttrpc::oci;

use crate::Error;

/// A container's specification.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    pub oci_version: String,
    pub process: Option<Process>,
    pub root: Option<Root>,
    pub hostname: String,
    pub mounts: Vec<Mount>,
    pub annotations: BTreeMap<String, String>,
    pub linux: Linux,
}

impl Spec {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`Error::Spec`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|error| Error::Spec(error.to_string()))
    }

    /// Whether the container shares the processes of its pod.
    pub fn shares_processes(&self) -> bool {
        self.namespace("pid").is_some_and(|path| !path.is_empty())
    }

    /// The path of a namespace: none where the host's is meant, empty for a new one.
    pub fn namespace(&self, kind: &str) -> Option<&str> {
        self.linux.namespaces.iter().find(|it| it.kind == kind).map(|it| it.path.as_str())
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Process {
    pub terminal: bool,
    pub console_size: Option<ConsoleSize>,
    pub user: User,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub capabilities: Option<Capabilities>,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: i64,
}

impl Process {
    /// Reads the process of an `exec`.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let failed = |error| Error::Request(format!("the process can't be read: {error}"));
        serde_json::from_slice(text).map_err(failed)
    }

    /// The form that the guest's agent takes. Profiles of the host's security modules stay behind.
    pub fn into_wire(self) -> oci::Process {
        let user = oci::User {
            UID: self.user.uid,
            GID: self.user.gid,
            AdditionalGids: self.user.additional_gids,
            Username: self.user.username,
            ..Default::default()
        };
        let capabilities = self.capabilities.map(|sets| oci::LinuxCapabilities {
            Bounding: sets.bounding,
            Effective: sets.effective,
            Inheritable: sets.inheritable,
            Permitted: sets.permitted,
            Ambient: sets.ambient,
            ..Default::default()
        });
        let limit = |it: Rlimit| oci::POSIXRlimit { Type: it.kind, Hard: it.hard, Soft: it.soft, ..Default::default() };
        let size = |it: ConsoleSize| oci::Box { Height: it.height, Width: it.width, ..Default::default() };
        oci::Process {
            Terminal: self.terminal,
            ConsoleSize: self.console_size.map(size).into(),
            User: MessageField::some(user),
            Args: self.args,
            Env: self.env,
            Cwd: self.cwd,
            Capabilities: capabilities.into(),
            Rlimits: self.rlimits.into_iter().map(limit).collect(),
            NoNewPrivileges: self.no_new_privileges,
            OOMScoreAdj: self.oom_score_adj,
            ..Default::default()
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConsoleSize {
    pub height: u32,
    pub width: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional_gids: Vec<u32>,
    pub username: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub inheritable: Vec<String>,
    pub permitted: Vec<String>,
    pub ambient: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub hard: u64,
    pub soft: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    pub path: String,
    pub readonly: bool,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Mount {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

impl Mount {
    /// The form that the guest's agent takes.
    pub fn into_wire(self) -> oci::Mount {
        oci::Mount {
            destination: self.destination,
            source: self.source,
            type_: self.kind,
            options: self.options,
            ..Default::default()
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Linux {
    pub sysctl: HashMap<String, String>,
    pub resources: Resources,
    pub cgroups_path: String,
    pub namespaces: Vec<Namespace>,
    pub devices: Vec<Device>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
}

impl Linux {
    /// The form that the guest's agent takes. Network and cgroups of a container are those of its machine, and paths of
    /// namespaces are the host's.
    pub fn into_wire(self) -> oci::Linux {
        let namespace = |it: Namespace| oci::LinuxNamespace { Type: it.kind, ..Default::default() };
        let kept = |it: &Namespace| !matches!(it.kind.as_str(), "network" | "cgroup" | "pid" | "time");
        oci::Linux {
            Sysctl: self.sysctl,
            Resources: MessageField::some(self.resources.into_wire()),
            CgroupsPath: self.cgroups_path,
            Namespaces: self.namespaces.into_iter().filter(kept).map(namespace).collect(),
            Devices: self.devices.into_iter().map(Device::into_wire).collect(),
            MaskedPaths: self.masked_paths,
            ReadonlyPaths: self.readonly_paths,
            ..Default::default()
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub kind: String,
    pub path: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Device {
    pub path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Device {
    fn into_wire(self) -> oci::LinuxDevice {
        oci::LinuxDevice {
            Path: self.path,
            Type: self.kind,
            Major: self.major,
            Minor: self.minor,
            FileMode: self.file_mode,
            UID: self.uid,
            GID: self.gid,
            ..Default::default()
        }
    }
}

/// What a container may use. The host's device rules, process limits and priorities are left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Resources {
    pub memory: Option<Memory>,
    pub cpu: Option<Cpu>,
    pub hugepage_limits: Vec<HugepageLimit>,
}

impl Resources {
    /// Reads the resources of an `update`.
    ///
    /// # Errors
    /// [`Error::Request`].
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|error| Error::Request(format!("the resources can't be read: {error}")))
    }

    /// The form that the guest's agent takes.
    pub fn into_wire(self) -> oci::LinuxResources {
        let memory = self.memory.map(|it| oci::LinuxMemory {
            Limit: it.limit.unwrap_or_default(),
            Reservation: it.reservation.unwrap_or_default(),
            Swap: it.swap.unwrap_or_default(),
            Swappiness: it.swappiness.unwrap_or_default(),
            DisableOOMKiller: it.disable_oom_killer,
            ..Default::default()
        });
        let cpu = self.cpu.map(|it| oci::LinuxCPU {
            Shares: it.shares.unwrap_or_default(),
            Quota: it.quota.unwrap_or_default(),
            Period: it.period.unwrap_or_default(),
            // The host's processors are not the guest's.
            ..Default::default()
        });
        let hugepages = |it: HugepageLimit| oci::LinuxHugepageLimit {
            Pagesize: it.page_size,
            Limit: it.limit,
            ..Default::default()
        };
        oci::LinuxResources {
            Memory: memory.into(),
            CPU: cpu.into(),
            HugepageLimits: self.hugepage_limits.into_iter().map(hugepages).collect(),
            ..Default::default()
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Memory {
    pub limit: Option<i64>,
    pub reservation: Option<i64>,
    pub swap: Option<i64>,
    pub swappiness: Option<u64>,
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Cpu {
    pub shares: Option<u64>,
    pub quota: Option<i64>,
    pub period: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HugepageLimit {
    pub page_size: String,
    pub limit: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "args": ["sh", "-c", "id"], "env": ["A=b"], "cwd": "/w",
            "capabilities": {"bounding": ["CAP_NEW_ONE", "CAP_CHOWN"]}, "noNewPrivileges": true, "oomScoreAdj": -5,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2, "soft": 1}], "apparmorProfile": "host"
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
        "hooks": {"prestart": [{"path": "/bin/x"}]},
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}], "pids": {"limit": 5},
                "memory": {"limit": 1024, "swap": -1}, "cpu": {"shares": 2, "quota": -1, "period": 100000, "cpus": "0-3"}},
            "cgroupsPath": "/kubepods/x",
            "namespaces": [{"type": "pid", "path": "/proc/4/ns/pid"}, {"type": "ipc", "path": "/proc/4/ns/ipc"},
                {"type": "network", "path": "/var/run/netns/x"}, {"type": "mount"}, {"type": "cgroup"}],
            "seccomp": {"defaultAction": "SCMP_ACT_OF_TOMORROW"}, "maskedPaths": ["/proc/kcore"]
        }
    }"#;

    #[test]
    fn what_the_guest_needs_is_kept_and_what_is_the_host_s_is_not() {
        let spec = Spec::parse(CONFIG.as_bytes()).unwrap();
        assert_eq!(spec.namespace("network"), Some("/var/run/netns/x"));
        assert!(spec.shares_processes());

        let process = spec.process.unwrap().into_wire();
        assert_eq!((process.Args.len(), process.User.AdditionalGids.as_slice()), (3, &[9][..]));
        assert_eq!(process.Capabilities.Bounding, ["CAP_NEW_ONE", "CAP_CHOWN"]);
        assert_eq!((process.OOMScoreAdj, process.NoNewPrivileges), (-5, true));
        assert_eq!((process.Rlimits[0].Type.as_str(), process.ApparmorProfile.as_str()), ("RLIMIT_NOFILE", ""));

        let linux = spec.linux.into_wire();
        let namespaces: Vec<_> = linux.Namespaces.iter().map(|it| (it.Type.as_str(), it.Path.as_str())).collect();
        assert_eq!(namespaces, [("ipc", ""), ("mount", "")]);
        let resources = &linux.Resources;
        assert!(resources.Devices.is_empty() && resources.Pids.is_none() && linux.Seccomp.is_none());
        assert_eq!((resources.Memory.Limit, resources.Memory.Swap), (1024, -1));
        assert_eq!((resources.CPU.Quota, resources.CPU.Cpus.as_str()), (-1, ""));
    }

    #[test]
    fn a_specification_says_little_or_nothing() {
        let spec = Spec::parse(b"{}").unwrap();
        assert!(spec.namespace("network").is_none() && !spec.shares_processes());
        assert!(Spec::parse(b"{\"mounts\": 3}").is_err());
    }
}
