//! The snapshotter's configuration, `/etc/cocoon/snapshotter.toml`.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The document. Unknown keys are errors; a missing file means the defaults.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder with the sockets: `containerd.sock` for containerd and `blobs.sock` for guests. Sandboxes look for the
    /// second at its default place, and the host kernel's vsock is served from there alone. Default
    /// `/run/cocoon-snapshotter`.
    pub run_dir: PathBuf,
    /// Folder with the cache. It may be removed at any time. Default `/var/lib/cocoon/snapshotter`.
    pub state_dir: PathBuf,
    /// The most that the cache holds, in MiB; what was used longest ago goes first. With 0 every guest downloads its
    /// images itself. Default 20480.
    pub cache_mib: u64,
    /// containerd's folder with a `hosts.toml` for each registry. Default `/etc/containerd/certs.d`.
    pub registries: PathBuf,
    /// The node's own accounts for registries, in the form of Docker's `config.json`. Without that file, registries are
    /// asked as anybody may. Default `/var/lib/kubelet/config.json`.
    pub credentials: PathBuf,
    /// containerd's own socket, where it is asked which users its images name. Default `/run/containerd/containerd.sock`.
    pub containerd: PathBuf,
}

impl Config {
    /// Where the configuration is unless another place is given.
    pub const PATH: &str = "/etc/cocoon/snapshotter.toml";

    /// Reads a configuration.
    ///
    /// # Errors
    /// [`Error`]; a file that is missing is none.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
        };
        toml::from_str(&text).map_err(|e| Error::Document { path: path.to_owned(), cause: e.message().to_owned() })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            run_dir: "/run/cocoon-snapshotter".into(),
            state_dir: "/var/lib/cocoon/snapshotter".into(),
            cache_mib: 20 << 10,
            registries: "/etc/containerd/certs.d".into(),
            credentials: "/var/lib/kubelet/config.json".into(),
            containerd: "/run/containerd/containerd.sock".into(),
        }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be read.
    #[error("configuration {path}: {source}; next: check the file's rights")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("configuration {path}: {cause}; next: change that key")]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_written_has_its_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("snapshotter.toml");
        assert_eq!(Config::read(&file).unwrap(), Config::default());

        std::fs::write(&file, "cache_mib = 7\nregistries = \"/r\"\n").unwrap();
        let expected = Config { cache_mib: 7, registries: "/r".into(), ..Config::default() };
        assert_eq!(Config::read(&file).unwrap(), expected);

        std::fs::write(&file, "cache = 7\n").unwrap();
        assert!(Config::read(&file).unwrap_err().to_string().contains("unknown field `cache`"));
    }
}
