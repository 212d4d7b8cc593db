//! What the agent needs from whoever encrypts disks.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

/// Encrypts disks of the host, each under a key that nobody keeps.
#[async_trait]
pub trait Disks: Send + Sync {
    /// Makes a file system on an encrypted disk and mounts it.
    ///
    /// # Errors
    /// [`DiskError`], with nothing left mounted.
    async fn mount(&self, disk: EncryptedDisk) -> Result<(), DiskError>;

    /// Moves what images are unpacked to from the guest's memory to an encrypted disk.
    ///
    /// # Errors
    /// [`DiskError`], also where images are there already.
    async fn store_images(&self, number: &str) -> Result<(), DiskError>;

    /// Unmounts a disk and forgets its key.
    ///
    /// # Errors
    /// [`DiskError`] where it is still in use.
    async fn unmount(&self, mount_point: &Path) -> Result<(), DiskError>;

    /// Releases every disk, once the pod's containers are gone: what was written is on it, and its key is forgotten.
    ///
    /// # Errors
    /// [`DiskError`] where one is still in use.
    async fn close(&self) -> Result<(), DiskError>;
}

/// A disk that is to be encrypted. What is on it is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedDisk {
    /// Major and minor number, with a colon between.
    pub number: String,
    /// Where its file system goes.
    pub mount_point: PathBuf,
    /// As `mount -o` has them.
    pub flags: Vec<String>,
}

/// Why a disk can't be encrypted: stage, cause and next step, fit for the host to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DiskError(pub String);
