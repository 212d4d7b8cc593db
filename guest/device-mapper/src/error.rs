//! Why a mapping could not be made, asked about or removed.

use std::io;
use std::path::PathBuf;

/// Names the stage, the cause and what to do next. Never holds a table, since tables hold keys.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is empty, longer than 127 bytes or has characters that a file name or the kernel would take for more.
    #[error(
        "device mapper: {0:?} is no name for a mapping; next: use 1 to 127 letters, digits and any of \"_.+-\", not in front a dot"
    )]
    Name(String),
    /// There is already a mapping of this name.
    #[error("device mapper: a mapping {0} exists already; next: remove it or choose another name")]
    Exists(String),
    /// The driver's own device can't be opened.
    #[error("device mapper: {path} can't be opened: {cause}; next: load the module dm-mod, and run as root", path = path.display())]
    Control {
        /// The driver's device.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// What a table refers to is no block device.
    #[error("device mapper: {path} is no block device{cause}; next: check the path", path = path.display(), cause = cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default())]
    Device {
        /// The path as given.
        path: PathBuf,
        /// The system's answer, if there is nothing at all.
        cause: Option<io::Error>,
    },
    /// A target has a value that the kernel would not take.
    #[error("device mapper: a {target} target can't have {reason}; next: correct the table")]
    Target {
        /// The kind of target.
        target: &'static str,
        /// The value and why not.
        reason: String,
    },
    /// The kernel refused a step.
    #[error("device mapper: mapping {name} can't be {done}: {cause}; next: see the kernel's log for its reason")]
    Refused {
        /// The mapping.
        name: String,
        /// What was attempted, as a participle.
        done: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The mapping is open, usually because it is mounted.
    #[error("device mapper: mapping {0} is in use; next: unmount it and close it first")]
    Busy(String),
    /// The mapping's name can't be made to appear in `/dev/mapper`.
    #[error("device mapper: {path} can't be made: {cause}; next: mount a devtmpfs on /dev", path = path.display())]
    Node {
        /// The mapping's path.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
}
