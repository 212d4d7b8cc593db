//! The machine as attesters see it: its files under a root folder, and its environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that attesters touch goes through here, so that a test can be a machine.
#[derive(Debug)]
pub(crate) struct Machine {
    /// `None` is a machine without files.
    root: Option<PathBuf>,
    variables: BTreeMap<&'static str, String>,
    event_log: Option<PathBuf>,
}

impl Machine {
    /// A machine without files and environment.
    pub(crate) const NONE: Self = Self { root: None, variables: BTreeMap::new(), event_log: None };

    /// The machine that this process runs on, with `root` as its root folder.
    pub(crate) fn new(root: &Path) -> Self {
        let variables = VARIABLES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect();
        Self { root: Some(root.to_owned()), variables, event_log: None }
    }

    /// A variable of the environment, out of [`VARIABLES`].
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    pub(crate) fn set_event_log(&mut self, path: PathBuf) {
        self.event_log = Some(path);
    }
}

/// What is read of the environment, once.
const VARIABLES: &[&str] = &["ENABLE_SAMPLE_DEVICE"];
