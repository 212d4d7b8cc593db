//! The last failures on a node, kept when their pods are gone.
//!
//! A file for each, so that owners who fail at the same time don't meet. There are errors, times and the last lines of
//! consoles in them: no secrets, no specification, no environment, no output of containers.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use sandbox::{Console, Directory};
use serde::{Deserialize, Serialize};

use crate::{Identity, Moment, Trouble};

/// A pod or container that did not come up, or ended when it should not.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Failure {
    /// Whose pod.
    pub pod: Identity,
    /// What failed.
    pub trouble: Trouble,
    /// When the pod reached what.
    pub timeline: Vec<Moment>,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
}

impl Failure {
    /// A failure with the end of this console.
    pub fn new(pod: Identity, trouble: Trouble, timeline: Vec<Moment>, console: &Console) -> Self {
        let console = console.tail(LINES).into_iter().map(|line| line.text.to_string()).collect();
        Self { pod, trouble, timeline, console }
    }
}

/// Where failures are kept.
#[derive(Clone, Debug)]
pub struct Failures(PathBuf);

impl Failures {
    /// The node's. No pod has this name.
    pub fn of_node() -> Self {
        Self::at(&Directory::of_all().join(".failures"))
    }

    /// Those in a folder.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Records a failure, and forgets the oldest beyond 32.
    ///
    /// # Errors
    /// Those of the files.
    pub fn record(&self, failure: &Failure) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // By name in the order of time.
        let name = format!("{:020}-{}", since.as_nanos(), std::process::id());
        let (new, path) = (self.0.join(format!("{name}.new")), self.0.join(format!("{name}{ENDING}")));
        let text = serde_json::to_vec(failure).map_err(io::Error::from)?;
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?.write_all(&text)?;
        fs::rename(new, path)?;
        let paths = self.paths()?;
        for old in &paths[..paths.len().saturating_sub(MOST)] {
            // Another owner may have been faster.
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// All that are kept, oldest first.
    ///
    /// # Errors
    /// Those of the folder; that it is not there means that nothing has failed.
    pub fn all(&self) -> io::Result<Vec<Failure>> {
        let readable = |path: &PathBuf| serde_json::from_slice(&fs::read(path).ok()?).ok();
        Ok(self.paths()?.iter().filter_map(readable).collect())
    }

    fn paths(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.to_string_lossy().ends_with(ENDING));
        paths.sort();
        Ok(paths)
    }
}

const MOST: usize = 32;
const LINES: usize = 20;
const ENDING: &str = ".json";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_failures_are_kept_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let failures = Failures::at(&folder.path().join("failures"));
        assert_eq!(failures.all().unwrap(), []);
        let console = Console::new();
        console.capture("line\n".repeat(100).as_bytes()).await;
        for number in 0..40 {
            let trouble = Trouble { error: format!("boot: {number}"), ..Trouble::default() };
            failures.record(&Failure::new(Identity::default(), trouble, Vec::new(), &console)).unwrap();
        }
        fs::write(folder.path().join("failures/9.json"), "no JSON").unwrap();

        let all = failures.all().unwrap();

        assert_eq!(all.len(), MOST);
        assert_eq!((all[0].trouble.error.as_str(), all[31].trouble.error.as_str()), ("boot: 8", "boot: 39"));
        assert_eq!(all[0].console.len(), LINES);
    }
}
