//! The laboratory itself: a folder for everything, and the places of the programs under test.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use crate::{Balancer, Registry, Trustee};

/// Owns a temporary folder. What it starts lives in there and is ended by its own value's drop.
pub struct Lab {
    folder: TempDir,
    trustees: AtomicU32,
}

impl Lab {
    /// An empty laboratory.
    ///
    /// # Panics
    /// If the temporary folder can't be made.
    #[expect(clippy::new_without_default, reason = "it does work")]
    pub fn new() -> Self {
        Self { folder: TempDir::with_prefix("cocoon-lab-").unwrap(), trustees: AtomicU32::new(0) }
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
        self.trustee_with(|_| {})
    }

    /// The same without TLS.
    pub fn trustee_over_http(&self) -> Trustee {
        self.trustee_with(over_http)
    }

    /// The same with its configuration changed.
    pub fn trustee_with(&self, change: impl FnOnce(&mut toml::Table)) -> Trustee {
        self.trustee_in(&[], change)
    }

    /// The same with environment variables.
    pub fn trustee_in(&self, variables: &[(&str, &Path)], change: impl FnOnce(&mut toml::Table)) -> Trustee {
        let number = self.trustees.fetch_add(1, Ordering::Relaxed);
        Trustee::start(&self.path().join(format!("trustee-{number}")), variables, change)
    }

    /// A load balancer that gives each request to another of these Trustees.
    pub fn balancer(&self, trustees: &[Trustee]) -> Balancer {
        Balancer::start(&self.path().join("haproxy.cfg"), trustees)
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

/// Sets a key of a configuration, by its path with dots; sections that are missing are made.
pub fn set(configuration: &mut toml::Table, path: &str, value: impl Into<toml::Value>) {
    match path.split_once('.') {
        None => _ = configuration.insert(path.to_owned(), value.into()),
        Some((section, rest)) => {
            let section = configuration.entry(section).or_insert_with(|| toml::Table::new().into());
            set(section.as_table_mut().unwrap(), rest, value);
        }
    }
}

/// Takes TLS out of a Trustee's configuration.
pub fn over_http(configuration: &mut toml::Table) {
    let server = configuration["http_server"].as_table_mut().unwrap();
    server.insert("insecure_http".to_owned(), true.into());
    server.remove("certificate");
    server.remove("private_key");
}

/// Where guests see what listens on the host's loopback, in QEMU's user network.
pub(crate) const HOST_IN_GUEST: &str = "10.0.2.2";
