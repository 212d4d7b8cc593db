//! A node's file system, wherever it is mounted, and the places in it.

use std::path::{Path, PathBuf};

/// The folder that is `/` on the node.
#[derive(Clone, Debug)]
pub(crate) struct Root(PathBuf);

impl Root {
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self(folder)
    }

    /// Where a path of the node is here.
    pub(crate) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Whether it is this machine's own, so that its services can be spoken to.
    pub(crate) fn is_own(&self) -> bool {
        self.0 == Path::new("/")
    }
}

pub(crate) const HOME: &str = "/opt/cocoon";
pub(crate) const VERSIONS: &str = "/opt/cocoon/versions";
pub(crate) const CURRENT: &str = "/opt/cocoon/current";
pub(crate) const STATE: &str = "/opt/cocoon/state.json";
pub(crate) const JOURNAL: &str = "/opt/cocoon/journal.json";
pub(crate) const UNIT: &str = "/etc/systemd/system/cocoon-snapshotter.service";
/// The snapshotter's socket for containerd.
pub(crate) const SNAPSHOTTER: &str = "/run/cocoon-snapshotter/containerd.sock";
