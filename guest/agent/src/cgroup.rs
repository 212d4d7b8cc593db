//! A container's control group: killing and removing all that runs in it.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::Interest;

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

    /// Waits until no process is left in the group, then removes it with all groups below.
    pub(crate) async fn remove(&self) -> io::Result<()> {
        if !self.0.is_dir() {
            return Ok(());
        }
        self.emptied().await?;
        remove_below(&self.0)
    }

    async fn emptied(&self) -> io::Result<()> {
        let path = self.0.join("cgroup.events");
        let events = watched(std::fs::File::open(&path)?.into(), Interest::PRIORITY)?;
        loop {
            // The kernel raises an exceptional condition on this file whenever its content changes.
            if std::fs::read_to_string(&path)?.lines().any(|line| line == "populated 0") {
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

const MOUNT_POINT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_group_that_is_not_there_is_gone_already() {
        let group = Cgroup::of(&Id::parse("never-made").unwrap());
        group.kill().unwrap();
        group.remove().await.unwrap();
        assert_eq!(group.0, Path::new("/sys/fs/cgroup/containers/never-made"));
    }
}
