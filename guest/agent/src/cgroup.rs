//! A container's control group: limits, freezing, killing and removing all that runs in it.

use std::io;
use std::path::{Path, PathBuf};

use libcgroups::common::{CgroupManager as _, ControllerOpt};
use libcgroups::v2::manager::Manager;
use libcontainer::oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};
use tokio::io::Interest;
use wire_ttrpc::oci;

use crate::id::Id;
use crate::spec::CGROUP_PARENT;
use crate::watched::watched;

/// The control group of one container, whether or not it exists.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    /// The group of the container, below the hierarchy's mount point.
    pub(crate) fn of(container: &Id) -> Self {
        Self(Path::new(MOUNT_POINT).join(CGROUP_PARENT.trim_start_matches('/')).join(container))
    }

    /// Kills every process of the group at once. None are left behind by forking meanwhile.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match std::fs::write(self.0.join("cgroup.kill"), "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The folder of the group.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Changes limits. Those that are not named stay as they are, and a negative one stands for none.
    pub(crate) fn limit(&self, requested: &oci::LinuxResources) -> io::Result<()> {
        let (Some(parent), Some(name)) = (self.0.parent(), self.0.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut resources = LinuxResourcesBuilder::default();
        let memory = requested.Memory.get_or_default().Limit;
        if memory != 0 {
            let memory = LinuxMemoryBuilder::default().limit(memory.max(-1)).build();
            resources = resources.memory(memory.map_err(io::Error::other)?);
        }
        let requested_cpu = requested.CPU.get_or_default();
        let mut cpu = LinuxCpuBuilder::default();
        if requested_cpu.Shares > 0 {
            cpu = cpu.shares(requested_cpu.Shares);
        }
        if requested_cpu.Quota != 0 && requested_cpu.Period > 0 {
            cpu = cpu.quota(requested_cpu.Quota.max(-1)).period(requested_cpu.Period);
        }
        let pids = requested.Pids.get_or_default().Limit;
        if pids != 0 {
            let pids = LinuxPidsBuilder::default().limit(pids.max(-1)).build();
            resources = resources.pids(pids.map_err(io::Error::other)?);
        }
        let resources = resources.cpu(cpu.build().map_err(io::Error::other)?).build().map_err(io::Error::other)?;
        let manager = Manager::new(parent.to_owned(), name.into()).map_err(io::Error::other)?;
        let options = ControllerOpt {
            resources: &resources,
            disable_oom_killer: false,
            oom_score_adj: None,
            freezer_state: None,
        };
        manager.apply(&options).map_err(io::Error::other)
    }

    /// Stops or continues every process of the group, and waits until they have.
    pub(crate) async fn freeze(&self, freeze: bool) -> io::Result<()> {
        std::fs::write(self.0.join("cgroup.freeze"), if freeze { "1" } else { "0" })?;
        self.has(if freeze { "frozen 1" } else { "frozen 0" }).await
    }

    /// Whether its processes are stopped, or about to be.
    pub(crate) fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.0.join("cgroup.freeze")).is_ok_and(|state| state.trim() == "1")
    }

    /// Waits until no process is left in the group, then removes it with all groups below.
    pub(crate) async fn remove(&self) -> io::Result<()> {
        if !self.0.is_dir() {
            return Ok(());
        }
        self.has("populated 0").await?;
        remove_below(&self.0)
    }

    /// Waits until the group's events have this line.
    async fn has(&self, wanted: &str) -> io::Result<()> {
        let path = self.0.join("cgroup.events");
        let events = watched(std::fs::File::open(&path)?.into(), Interest::PRIORITY)?;
        loop {
            // The kernel raises an exceptional condition on this file whenever its content changes.
            if std::fs::read_to_string(&path)?.lines().any(|line| line == wanted) {
                return Ok(());
            }
            events.ready(Interest::PRIORITY).await?.clear_ready();
        }
    }
}

fn remove_below(group: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    std::fs::remove_dir(group)
}

/// Where the hierarchy of control groups is.
pub(crate) const MOUNT_POINT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_group_that_is_not_there_is_gone_already() {
        let group = Cgroup::of(&Id::parse("never-made").unwrap());
        group.kill().unwrap();
        group.remove().await.unwrap();
        assert_eq!(group.0, Path::new("/sys/fs/cgroup/containers/never-made"));
        assert!(group.freeze(true).await.is_err());
    }

    #[test]
    fn limits_that_are_named_change() {
        let folder = tempfile::tempdir().unwrap();
        let group = Cgroup(folder.path().join("c1"));
        std::fs::create_dir(group.path()).unwrap();
        std::fs::write(folder.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        // Files here keep what is longer than what is written over it.
        let reset = || {
            for file in ["memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"] {
                std::fs::write(group.path().join(file), "").unwrap();
            }
        };
        reset();
        let limits = |memory: i64, quota: i64| {
            let mut limits = oci::LinuxResources::new();
            limits.Memory.mut_or_insert_default().Limit = memory;
            let cpu = limits.CPU.mut_or_insert_default();
            (cpu.Quota, cpu.Period) = (quota, 100_000);
            limits
        };
        group.limit(&limits(64 << 20, 50_000)).unwrap();
        let read = |file: &str| std::fs::read_to_string(group.path().join(file)).unwrap();
        assert_eq!((read("memory.max"), read("cpu.max")), ("67108864".into(), "50000 100000".into()));
        assert_eq!((read("cpu.weight"), read("pids.max")), (String::new(), String::new()));

        reset();
        group.limit(&limits(-7, -1)).unwrap();
        assert_eq!((read("memory.max"), read("cpu.max")), ("max".into(), "max 100000".into()));
    }
}
