//! Why a node could not be changed or looked at.

use std::io;
use std::path::{Path, PathBuf};

/// Every error names the stage, the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read or written.
    #[error("{stage}: {path}: {source}; next: check that it is what it should be, and that you are root")]
    File {
        /// What was being done.
        stage: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The folder is no release.
    #[error(
        "release: {path} {reason}; next: name a folder that \"cargo xtask release\" has made by --from, see docs/node.md"
    )]
    Release {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The release's guest image is not whole.
    #[error(transparent)]
    GuestImage(#[from] guest_image::Error),
    /// There are signs of two distributions of Kubernetes.
    #[error(
        "containerd: this node has files of {0} and of {1}; nothing was changed; next: uninstall the one that is not used"
    )]
    Ambiguous(&'static str, &'static str),
    /// It was installed for another containerd than the node has now.
    #[error(
        "containerd: cocoon was installed for {was}, and the node has {is} now; nothing was changed; next: run \"cocoon node \
         uninstall\", then install again"
    )]
    Moved {
        /// What the node had.
        was: &'static str,
        /// What it has.
        is: &'static str,
    },
    /// There is no containerd.
    #[error("containerd: it is in none of {0}; next: install containerd 1.7 or newer from the distribution's packages")]
    NoContainerd(String),
    /// containerd is too old.
    #[error(
        "containerd: its version is {0}, and 1.7 is the first with a snapshotter for each runtime; next: upgrade it"
    )]
    OldContainerd(String),
    /// containerd can't be asked, or can't read its own configuration as it is.
    #[error(
        "containerd: {program} says: {reason}; nothing was changed; next: have it read its configuration without an error"
    )]
    Containerd {
        /// The program.
        program: PathBuf,
        /// What it said.
        reason: String,
    },
    /// containerd's configuration is not one that can be added to.
    #[error("configuration: {path}: {reason}; nothing was changed; next: {next}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        next: &'static str,
    },
    /// containerd would not read what was going to be written as it was meant.
    #[error(
        "configuration: with what was going to be written containerd would have {0}; nothing was changed; next: write \
         containerd's configuration in tables as \"containerd config default\" does, or report it as a defect"
    )]
    Rehearsal(String),
    /// Another installer's handler has the name.
    #[error(
        "configuration: the handler {handler} belongs to {owner:?}; nothing was changed; next: uninstall what offers it, or \
         remove it from containerd's configuration"
    )]
    Taken {
        /// The handler.
        handler: String,
        /// The program that it runs.
        owner: String,
    },
    /// Somebody else wrote to a file between an interrupted operation and now.
    #[error(
        "recovery: {path} is neither as it was before the interrupted \"{operation}\" nor as that was to leave it; next: put \
         it right by hand, and remove {journal}"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What was interrupted.
        operation: String,
        /// Where the contents before are.
        journal: PathBuf,
    },
    /// Another operation is under way.
    #[error("lock: another operation is under way on this node; next: wait for its end")]
    Busy,
    /// Pods are on the node.
    #[error("uninstall: {0}; next: remove these pods, then uninstall")]
    InUse(String),
    /// There is nothing to go back to.
    #[error("rollback: no version is kept from before this one; next: install the one that you want by --from")]
    NoPrevious,
    /// systemctl failed.
    #[error("systemd: systemctl {command}: {reason}; next: see \"journalctl -xe\", then run the command yourself")]
    Systemctl {
        /// Its arguments.
        command: String,
        /// What it said.
        reason: String,
    },
    /// There is no systemctl that could restart containerd.
    #[error("systemd: there is none here that could restart containerd; next: restart it as this node does")]
    NoSystemd,
}

impl Error {
    /// For `map_err` around work on a file.
    pub(crate) fn file(stage: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { stage, path: path.as_ref().to_owned(), source }
    }
}
