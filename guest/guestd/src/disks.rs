//! The agent's way to encrypted disks: LUKS2 volumes under random keys.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{DiskError, Disks, EncryptedDisk};
use async_trait::async_trait;
use data_hub::DataHub;
use secure_mount::{Config, MountRequest, SecureMounts};
use tokio::sync::Mutex;

/// Disks that nobody can read once the guest is gone, and the end of those that the data hub has.
pub(crate) struct GuestDisks {
    hub: Arc<DataHub>,
    volumes: SecureMounts,
    /// Whether the host's changes to a disk are to be noticed.
    integrity: bool,
    images: PathBuf,
    images_moved: Mutex<bool>,
}

impl GuestDisks {
    /// `images` is the folder that images are unpacked to.
    pub(crate) fn new(hub: Arc<DataHub>, integrity: bool, images: PathBuf) -> Self {
        let volumes = SecureMounts::new(Config::default());
        Self { hub, volumes, integrity, images, images_moved: Mutex::new(false) }
    }

    async fn encrypt(&self, number: &str, mount_point: PathBuf, flags: Vec<String>) -> Result<(), DiskError> {
        let integrity = self.integrity.to_string();
        let options = [
            ("deviceId", number),
            ("sourceType", "empty"),
            ("targetType", "fileSystem"),
            ("filesystemType", "ext4"),
            // What does not outlive the guest needs no journal.
            ("mkfsOpts", "-O ^has_journal"),
            ("encryptionType", "luks2"),
            ("dataIntegrity", integrity.as_str()),
        ];
        let request = MountRequest {
            volume_type: "block-device".to_owned(),
            options: HashMap::from(options.map(|(name, value)| (name.to_owned(), value.to_owned()))),
            flags,
            mount_point,
            key: None,
        };
        self.volumes.mount(request).await.map_err(failed)
    }
}

#[async_trait]
impl Disks for GuestDisks {
    async fn mount(&self, disk: EncryptedDisk) -> Result<(), DiskError> {
        self.encrypt(&disk.number, disk.mount_point, disk.flags).await
    }

    async fn store_images(&self, number: &str) -> Result<(), DiskError> {
        let mut moved = self.images_moved.lock().await;
        if *moved {
            return Ok(());
        }
        let folders = empty_folders(&self.images)?;
        self.encrypt(number, self.images.clone(), Vec::new()).await?;
        for folder in folders {
            std::fs::create_dir_all(&folder).map_err(|e| DiskError(format!("images: {}: {e}", folder.display())))?;
        }
        *moved = true;
        Ok(())
    }

    async fn unmount(&self, mount_point: &Path) -> Result<(), DiskError> {
        self.volumes.unmount(mount_point).await.map_err(failed)
    }

    async fn close(&self) -> Result<(), DiskError> {
        let (hub, own) = (self.hub.close().await, self.volumes.close().await);
        hub.map_err(|error| DiskError(error.to_string())).and(own.map_err(failed))
    }
}

/// The folders in which images will be. They have to be empty: what is in them would no longer be seen.
fn empty_folders(images: &Path) -> Result<Vec<PathBuf>, DiskError> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(images).into_iter().flatten().flatten() {
        let in_use = std::fs::read_dir(entry.path()).map_or(true, |mut content| content.next().is_some());
        if in_use {
            let next = "next: give /dev/trusted_store to the first container of the pod";
            return Err(DiskError(format!("images: some are in the guest's memory already; {next}")));
        }
        folders.push(entry.path());
    }
    Ok(folders)
}

fn failed(error: secure_mount::Error) -> DiskError {
    DiskError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_move_only_while_there_are_none() {
        let images = tempfile::tempdir().unwrap();
        assert!(empty_folders(&images.path().join("none")).unwrap().is_empty());
        std::fs::create_dir_all(images.path().join("layers")).unwrap();
        assert_eq!(empty_folders(images.path()).unwrap(), [images.path().join("layers")]);
        std::fs::create_dir_all(images.path().join("layers/0")).unwrap();
        assert!(empty_folders(images.path()).unwrap_err().to_string().contains("next:"));
    }
}
