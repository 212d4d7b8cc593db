//! What is installed on a node, and what runs from it.

use serde::Serialize;

use crate::containerd::{self, Containerd};
use crate::error::Error;
use crate::journal;
use crate::node::Node;
use crate::state::State;
use crate::versions::Versions;

/// What is installed on a node.
#[derive(Debug, PartialEq, Serialize)]
pub struct Status {
    /// The version that new pods get.
    pub current: Option<String>,
    /// The version that a rollback leads to.
    pub previous: Option<String>,
    /// All versions.
    pub versions: Vec<VersionStatus>,
    /// containerd's version, or why it can't be used.
    pub containerd: String,
    /// What the files have containerd know.
    pub handlers: Handlers,
    /// An operation that was interrupted, and is taken back by the next one.
    pub interrupted: Option<String>,
}

/// A version on the node.
#[derive(Debug, PartialEq, Serialize)]
pub struct VersionStatus {
    /// Its name.
    pub version: String,
    /// The pods that run from it.
    pub pods: Vec<String>,
    /// Other programs that run from it.
    pub programs: Vec<String>,
}

/// Handlers in containerd's configuration.
#[derive(Debug, PartialEq, Serialize)]
pub struct Handlers {
    /// Their names.
    pub names: Vec<String>,
    /// Whether containerd runs with an older configuration.
    pub restart_needed: bool,
}

impl Node {
    /// Looks at the node; changes nothing.
    ///
    /// # Errors
    /// [`Error::File`] for what can't be read.
    pub fn status(&self) -> Result<Status, Error> {
        let versions = Versions(&self.root);
        let users = versions.users();
        let of = |version: String| {
            let users = || users.iter().filter(|user| user.version == version);
            let mut pods: Vec<String> = users().filter_map(|user| user.pod.clone()).collect();
            let others = users().filter(|user| user.pod.is_none());
            let mut programs: Vec<String> = others.map(|user| user.program.clone()).collect();
            for list in [&mut pods, &mut programs] {
                list.sort();
                list.dedup();
            }
            VersionStatus { version, pods, programs }
        };
        let containerd = Containerd::find(&self.root);
        let restart_needed = containerd.as_ref().is_ok_and(|containerd| containerd.is_outdated(&self.root));
        let previous = State::read(&self.root)?.previous;
        Ok(Status {
            current: versions.current(),
            previous: previous.filter(|version| versions.folder(version).exists()),
            versions: versions.names().into_iter().map(of).collect(),
            containerd: containerd.map_or_else(|error| error.to_string(), |containerd| containerd.version),
            handlers: Handlers { names: containerd::handlers(&self.root)?, restart_needed },
            interrupted: journal::interrupted(&self.root)?,
        })
    }
}
