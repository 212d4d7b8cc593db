//! The laboratory itself: a folder for everything, and the places of the programs under test.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{Registry, Trustee};

/// Owns a temporary folder. What it starts lives in there and is ended by its own value's drop.
pub struct Lab {
    folder: TempDir,
}

impl Lab {
    /// An empty laboratory.
    ///
    /// # Panics
    /// If the temporary folder can't be made.
    #[expect(clippy::new_without_default, reason = "it does work")]
    pub fn new() -> Self {
        Self { folder: TempDir::with_prefix("cocoon-lab-").unwrap() }
    }

    /// The laboratory's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into the folder and returns its path.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A Trustee with TLS that accepts the sample TEE.
    pub fn trustee(&self) -> Trustee {
        Trustee::start(&self.path().join("trustee"))
    }

    /// A container registry with TLS.
    pub fn registry(&self) -> Registry {
        Registry::start(&self.path().join("registry"))
    }

    /// One of the project's programs, built beside the program that runs now.
    ///
    /// # Panics
    /// If it has not been built.
    pub fn program(name: &str) -> PathBuf {
        let own = std::env::current_exe().unwrap();
        let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("{name} is not built; next: run \"cargo xtask test\""))
    }

    /// The guest image that the automation built.
    ///
    /// # Panics
    /// If it has not been built.
    pub fn guest_image() -> PathBuf {
        let own = std::env::current_exe().unwrap();
        let found = own.ancestors().map(|folder| folder.join("cocoon/guest-image")).find(|path| path.is_dir());
        found.unwrap_or_else(|| panic!("the guest image is not built; next: run \"cargo xtask test\""))
    }
}

/// Where guests see what listens on the host's loopback, in QEMU's user network.
pub(crate) const HOST_IN_GUEST: &str = "10.0.2.2";
