//! A container's bundle: what containerd wrote for the shim, and what the shim leaves there for others.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::{Error, Spec};

/// A bundle's folder.
#[derive(Clone, Debug)]
pub struct Bundle(PathBuf);

impl Bundle {
    /// The bundle in `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The bundle that containerd made the working directory, unless it names another.
    ///
    /// # Errors
    /// [`Error::File`] where the working directory is gone.
    pub fn of(named: &str) -> Result<Self, Error> {
        if !named.is_empty() {
            return Ok(Self::at(named));
        }
        std::env::current_dir().map(Self).map_err(Error::file("bundle", "."))
    }

    /// Whether it is a container's.
    pub fn has_spec(&self) -> bool {
        self.0.join(SPEC).exists()
    }

    /// The container's specification.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Spec`].
    pub fn spec(&self) -> Result<Spec, Error> {
        let path = self.0.join(SPEC);
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_SPEC).read_to_end(&mut text))
            .map_err(Error::file("bundle", &path))?;
        Spec::parse(&text)
    }

    /// Writes one of the shim's own files, whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<(), Error> {
        let (path, draft) = (self.0.join(name), self.0.join(format!(".{name}")));
        fs::write(&draft, content).and_then(|()| fs::rename(&draft, &path)).map_err(Error::file("bundle", &path))
    }

    /// Reads one of the shim's own files; none if it was never written.
    pub fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

const SPEC: &str = "config.json";
/// The shim's process id.
pub const PID: &str = "shim.pid";
/// Where the shim listens; containerd 1.6 reads it when it starts again.
pub const ADDRESS: &str = "address";
/// The answer to containerd; containerd 1.7 and newer read it when they start again.
pub const BOOTSTRAP: &str = "bootstrap.json";
/// Kubernetes bounds what goes into it to a fraction of this.
const MAX_SPEC: u64 = 16 << 20;
