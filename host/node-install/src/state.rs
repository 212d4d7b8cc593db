//! What an installation remembers: the version before it, and which of containerd's settings it has changed.

use std::io;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::journal::{Change, Entry};
use crate::root::{Root, STATE};

/// The content of `state.json`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct State {
    /// The version that was current before.
    pub(crate) previous: Option<String>,
    /// The distribution of Kubernetes whose containerd was configured; nothing for the machine's own containerd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) distribution: Option<String>,
    /// What an uninstallation has to take back in containerd's configuration beside our own tables.
    pub(crate) edits: Edits,
}

/// Settings of containerd's that are not ours alone.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Edits {
    /// The file was made.
    pub(crate) created: bool,
    /// An import was added.
    pub(crate) import: bool,
    /// Annotations for snapshotters were switched on.
    pub(crate) annotations: Option<Annotations>,
}

/// What `disable_snapshot_annotations` was.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Annotations {
    /// Not there, nor a heading for it.
    WithoutTable,
    Absent,
    Disabled,
}

impl State {
    pub(crate) fn read(root: &Root) -> Result<Self, Error> {
        match Entry::at(&root.at(STATE))? {
            Some(Entry::File { text, .. }) => {
                serde_json::from_str(&text).map_err(io::Error::from).map_err(Error::file("state", root.at(STATE)))
            }
            _ => Ok(Self::default()),
        }
    }

    pub(crate) fn change(&self, root: &Root) -> Result<Change, Error> {
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from);
        Change::file(root, STATE, text.map_err(Error::file("state", STATE))? + "\n")
    }
}
