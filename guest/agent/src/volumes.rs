//! The folders that the containers of a pod share: made once, and no container's way to another's.

mod disk;
mod memory;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Mutex as AsyncMutex;
use wire_ttrpc::agent::Storage;

use crate::devices;
use crate::disks::{DiskError, Disks};
use disk::DiskVolume;
use memory::MemoryVolume;

/// The volumes of a pod, by the place where the guest has them.
///
/// Those in memory stay until the pod ends, as Kubernetes wants it of an `emptyDir`. A disk goes with the last container
/// that has it, unless its storage says that it is shared.
pub(crate) struct Volumes {
    root: PathBuf,
    disks: Option<Arc<dyn Disks>>,
    entries: Mutex<BTreeMap<PathBuf, Entry>>,
}

/// A volume and how many have it or wait for it. None of them has to make it alone.
struct Entry {
    /// What the first who asked wants it to be, and so what all get.
    volume: Arc<Volume>,
    /// Held by whoever makes the volume or takes it away.
    work: Arc<AsyncMutex<()>>,
    made: Option<Made>,
    holders: usize,
    stays: bool,
}

impl Entry {
    /// A volume that nobody has yet.
    fn of(volume: &Arc<Volume>) -> Self {
        Self { volume: Arc::clone(volume), work: Arc::default(), made: None, holders: 0, stays: false }
    }
}

/// What has to be undone when a volume goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Memory,
    Disk,
    EncryptedDisk,
}

impl Volumes {
    /// No volumes yet, below the agent's folder `root`.
    pub(crate) fn below(root: &Path, disks: Option<Arc<dyn Disks>>) -> Self {
        Self { root: root.to_owned(), disks, entries: Mutex::default() }
    }

    /// Makes the volumes of these storages, or waits for whoever makes one of them.
    ///
    /// The future has to be finished: what it has made would have no holder otherwise.
    pub(crate) async fn add(&self, storages: &[Storage]) -> Result<Held, Error> {
        let mut held = Held(Vec::new());
        for storage in storages {
            if let Err(error) = self.add_one(storage, &mut held).await {
                self.release(held).await;
                return Err(error);
            }
        }
        Ok(held)
    }

    /// Lets volumes stay that outlive the container which they were made for.
    pub(crate) fn keep(&self, held: &Held, storages: &[Storage]) {
        let mut entries = self.entries();
        for (path, storage) in held.0.iter().zip(storages) {
            if let Some(entry) = entries.get_mut(path) {
                entry.stays |= storage.shared || entry.made == Some(Made::Memory);
            }
        }
    }

    /// Lets volumes stay until the pod ends.
    pub(crate) fn keep_all(&self, held: &Held) {
        let mut entries = self.entries();
        for path in &held.0 {
            if let Some(entry) = entries.get_mut(path) {
                entry.stays = true;
            }
        }
    }

    /// Gives volumes back. Those that nobody else has go, unless they are to stay.
    pub(crate) async fn release(&self, held: Held) {
        for path in held.0.into_iter().rev() {
            let work = {
                let mut entries = self.entries();
                let Some(entry) = entries.get_mut(&path) else { continue };
                entry.holders -= 1;
                Arc::clone(&entry.work)
            };
            let _work = work.lock().await;
            let is_free = |entry: &Entry| entry.holders == 0 && !entry.stays;
            let made = self.entries().get_mut(&path).filter(|entry| is_free(entry)).and_then(|entry| entry.made.take());
            if let Some(made) = made {
                self.undo(&path, made).await;
            }
            let mut entries = self.entries();
            if entries.get(&path).is_some_and(is_free) {
                entries.remove(&path);
            }
        }
    }

    /// Removes all volumes with what they hold.
    pub(crate) async fn clear(&self) {
        let entries = std::mem::take(&mut *self.entries());
        for (path, entry) in entries {
            if let Some(made) = entry.made {
                self.undo(&path, made).await;
            }
        }
    }

    /// Where the volumes are. None lies in another, so no container can change the way to one.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.entries().iter().filter(|(_, entry)| entry.made.is_some()).map(|(path, _)| path.clone()).collect()
    }

    /// Gives file systems in memory another size.
    pub(crate) fn resize(&self, storages: &[Storage]) -> Result<(), Error> {
        for storage in storages {
            let volume = MemoryVolume::parse(storage, &self.root)?;
            let made = self.entries().get(&volume.path).filter(|it| it.made.is_some()).map(|it| Arc::clone(&it.volume));
            let Some(Volume::Memory(made)) = made.as_deref() else {
                return Err(refused(storage, "the pod has no such volume in memory"));
            };
            made.resize(&volume)?;
        }
        Ok(())
    }

    async fn add_one(&self, storage: &Storage, held: &mut Held) -> Result<(), Error> {
        let volume = Arc::new(Volume::parse(storage, &self.root)?);
        let path = volume.path();
        let work = {
            let mut entries = self.entries();
            // A container could put a link into its volume, and so lead the agent to any place in the guest.
            if entries.keys().any(|other| path != other && (path.starts_with(other) || other.starts_with(path))) {
                return Err(refused(storage, "it lies in another volume, or around one"));
            }
            if entries.len() >= MAX_VOLUMES && !entries.contains_key(path) {
                return Err(refused(storage, "the pod has too many volumes"));
            }
            let entry = entries.entry(path.to_owned()).or_insert_with(|| Entry::of(&volume));
            // The policy decided on what is asked for, not on what is there.
            if !entry.volume.is_like(&volume) {
                return Err(refused(storage, "the pod has a volume there that differs in more than its size"));
            }
            entry.holders += 1;
            held.0.push(path.to_owned());
            Arc::clone(&entry.work)
        };
        let _work = work.lock().await;
        if self.entries().get(path).is_some_and(|entry| entry.made.is_none()) {
            let made = volume.make(&self.root, self.disks.as_deref()).await?;
            if let Some(entry) = self.entries().get_mut(path) {
                entry.made = Some(made);
            }
        }
        Ok(())
    }

    async fn undo(&self, path: &Path, made: Made) {
        if made == Made::EncryptedDisk
            && let Some(disks) = &self.disks
            && let Err(error) = disks.unmount(path).await
        {
            tracing::warn!(volume = %path.display(), %error, "encrypted disk can't be released");
            return;
        }
        memory::remove(path);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Volumes that a container has, or is being made with. They are given back with [`Volumes::release`].
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Held(Vec<PathBuf>);

/// Why there is no volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("storage {driver:?} at {mount_point:?} is refused: {reason}; next: leave it out")]
    Refused { driver: String, mount_point: String, reason: &'static str },
    #[error("volume {0:?} can't be made: {1}; next: check that the guest has memory left")]
    Make(PathBuf, #[source] io::Error),
    #[error("volume {0:?}: {1}")]
    Device(PathBuf, #[source] devices::Error),
    #[error("volume {0:?} can't be put on its disk: {1}")]
    Disk(PathBuf, #[source] DiskError),
}

#[derive(Debug)]
enum Volume {
    Memory(MemoryVolume),
    Disk(DiskVolume),
}

impl Volume {
    fn parse(storage: &Storage, root: &Path) -> Result<Self, Error> {
        match storage.driver.as_str() {
            "ephemeral" | "local" => MemoryVolume::parse(storage, root).map(Self::Memory),
            "blk" | "scsi" | "mmioblk" | "nvdimm" => DiskVolume::parse(storage, root).map(Self::Disk),
            "bind" | "overlayfs" | "virtio-fs" | "9p" | "watchable-bind" => Err(refused(
                storage,
                "file systems of the host and mounts of the guest's own folders are none of a pod's",
            )),
            _ => Err(refused(storage, "there is no such driver in this guest")),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Memory(volume) => &volume.path,
            Self::Disk(volume) => &volume.path,
        }
    }

    /// Whether whoever asks for the other may have this one.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Memory(one), Self::Memory(other)) => one.is_like(other),
            (Self::Disk(one), Self::Disk(other)) => one == other,
            _ => false,
        }
    }

    async fn make(&self, root: &Path, disks: Option<&dyn Disks>) -> Result<Made, Error> {
        match self {
            Self::Memory(volume) => volume.make(root).map(|()| Made::Memory),
            Self::Disk(volume) => volume.make(root, disks).await,
        }
    }
}

/// The place of a storage, which is one of those that pods share.
///
/// Only the agent makes folders on the way there: what a container or the host could change on it would lead whoever gets
/// the volume next to any place in the guest.
fn place(storage: &Storage, root: &Path) -> Result<PathBuf, Error> {
    let path: PathBuf = Path::new(&storage.mount_point).components().collect();
    let plain = path.components().all(|part| !matches!(part, Component::ParentDir | Component::CurDir))
        && storage.mount_point.len() < 1024
        && !storage.mount_point.contains('\0');
    let below = |folder: &str| path.starts_with(root.join(folder)) && path != root.join(folder);
    let shared = below("sandbox/ephemeral")
        || below("sandbox/storage")
        || below(&format!("shared/containers/{PASSTHROUGH}"))
        || path == root.join("sandbox/shm");
    if plain && shared { Ok(path) } else { Err(refused(storage, "its mount point is not one that pods share")) }
}

fn refused(storage: &Storage, reason: &'static str) -> Error {
    Error::Refused {
        driver: storage.driver.chars().take(64).collect(),
        mount_point: storage.mount_point.chars().take(256).collect(),
        reason,
    }
}

/// The name of the folder for volumes among what the host copies into the guest, as Kata's shims have it.
pub(crate) const PASSTHROUGH: &str = "passthrough";
const MAX_VOLUMES: usize = 256;
