//! The folders that the containers of a pod share: made once, and no container's way to another's.

mod memory;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use wire_ttrpc::agent::Storage;

use memory::MemoryVolume;

/// The volumes of a pod, by the place where the guest has them.
///
/// Those in memory stay until the pod ends, as Kubernetes wants it of an `emptyDir`.
pub(crate) struct Volumes {
    root: PathBuf,
    entries: Mutex<BTreeMap<PathBuf, Entry>>,
}

/// A volume, and for how many creations of containers it is there. None of them has to make it alone.
#[derive(Clone, Default)]
struct Entry {
    made: Arc<OnceCell<()>>,
    pending: usize,
    stays: bool,
}

impl Volumes {
    /// No volumes yet, below the agent's folder `root`.
    pub(crate) fn below(root: &Path) -> Self {
        Self { root: root.to_owned(), entries: Mutex::default() }
    }

    /// Makes the volumes of these storages, or waits for whoever makes one of them.
    ///
    /// They go with [`Self::give_up`] unless [`Self::keep`] is called before.
    pub(crate) async fn add(&self, storages: &[Storage]) -> Result<Added, Error> {
        let mut added = Added(Vec::new());
        for storage in storages {
            if let Err(error) = self.add_one(storage, &mut added).await {
                self.give_up(added);
                return Err(error);
            }
        }
        Ok(added)
    }

    /// Lets volumes stay.
    pub(crate) fn keep(&self, added: Added) {
        let mut entries = self.entries();
        for path in added.0 {
            if let Some(entry) = entries.get_mut(&path) {
                entry.pending -= 1;
                entry.stays = true;
            }
        }
    }

    /// Removes volumes that nobody else has or waits for.
    pub(crate) fn give_up(&self, added: Added) {
        let mut entries = self.entries();
        for path in added.0.into_iter().rev() {
            let Some(entry) = entries.get_mut(&path) else { continue };
            entry.pending -= 1;
            if entry.pending == 0 && !entry.stays {
                entries.remove(&path);
                memory::remove(&path);
            }
        }
    }

    /// Removes all volumes with what they hold.
    pub(crate) fn clear(&self) {
        for path in std::mem::take(&mut *self.entries()).into_keys() {
            memory::remove(&path);
        }
    }

    /// Where the volumes are. None lies in another, so no container can change the way to one.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.entries().iter().filter(|(_, entry)| entry.made.initialized()).map(|(path, _)| path.clone()).collect()
    }

    async fn add_one(&self, storage: &Storage, added: &mut Added) -> Result<(), Error> {
        let volume = MemoryVolume::parse(storage, &self.root)?;
        let made = {
            let mut entries = self.entries();
            let path = &volume.path;
            // A container could put a link into its volume, and so lead the agent to any place in the guest.
            if entries.keys().any(|other| path != other && (path.starts_with(other) || other.starts_with(path))) {
                return Err(refused(storage, "it lies in another volume, or around one"));
            }
            if entries.len() >= MAX_VOLUMES && !entries.contains_key(path) {
                return Err(refused(storage, "the pod has too many volumes"));
            }
            let entry = entries.entry(path.clone()).or_default();
            entry.pending += 1;
            added.0.push(path.clone());
            Arc::clone(&entry.made)
        };
        made.get_or_try_init(|| async { volume.make(&self.root) }).await?;
        Ok(())
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Volumes that a container or sandbox is being made with.
#[must_use]
#[derive(Debug, Default)]
pub(crate) struct Added(Vec<PathBuf>);

/// Why there is no volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("storage {driver:?} at {mount_point:?} is refused: {reason}; next: leave it out")]
    Refused { driver: String, mount_point: String, reason: &'static str },
    #[error("volume {0:?} can't be made: {1}; next: check that the guest has memory left")]
    Make(PathBuf, #[source] io::Error),
}

fn refused(storage: &Storage, reason: &'static str) -> Error {
    Error::Refused {
        driver: storage.driver.chars().take(64).collect(),
        mount_point: storage.mount_point.chars().take(256).collect(),
        reason,
    }
}

const MAX_VOLUMES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Guest {
        root: tempfile::TempDir,
        volumes: Volumes,
    }

    impl Guest {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let volumes = Volumes::below(root.path());
            Self { root, volumes }
        }

        fn cache(&self) -> PathBuf {
            self.root.path().join("sandbox/ephemeral/cache")
        }

        fn local(&self, place: &str) -> Storage {
            Storage {
                driver: "local".into(),
                mount_point: self.root.path().join(place).to_str().unwrap().into(),
                options: vec!["mode=0770".into()],
                ..Default::default()
            }
        }
    }

    const CACHE: &str = "sandbox/ephemeral/cache";

    #[tokio::test]
    async fn a_volume_is_made_once_and_stays_with_what_it_holds() {
        let guest = Guest::new();
        let storages = [guest.local(CACHE)];
        guest.volumes.keep(guest.volumes.add(&storages).await.unwrap());
        assert_eq!(guest.cache().metadata().unwrap().permissions().mode() & 0o7777, 0o770);
        std::fs::write(guest.cache().join("file"), "").unwrap();

        // Another container has it too, and a third fails.
        guest.volumes.keep(guest.volumes.add(&storages).await.unwrap());
        guest.volumes.give_up(guest.volumes.add(&storages).await.unwrap());
        assert!(guest.cache().join("file").exists());
        assert_eq!(guest.volumes.paths(), [guest.cache()]);

        guest.volumes.clear();
        assert!(!guest.cache().exists() && guest.volumes.paths().is_empty());
    }

    #[tokio::test]
    async fn a_creation_that_fails_takes_its_volumes_along_unless_another_waits_for_them() {
        let guest = Guest::new();
        let (first, second) = (
            guest.volumes.add(&[guest.local(CACHE)]).await.unwrap(),
            guest.volumes.add(&[guest.local(CACHE)]).await.unwrap(),
        );
        guest.volumes.give_up(first);
        assert!(guest.cache().exists());
        guest.volumes.give_up(second);
        assert!(!guest.cache().exists());

        let bad = Storage { driver: "9p".into(), ..guest.local("sandbox/ephemeral/other") };
        assert!(guest.volumes.add(&[guest.local(CACHE), bad]).await.is_err());
        assert!(!guest.cache().exists());
    }

    #[tokio::test]
    async fn no_volume_lies_in_another_or_behind_a_link() {
        let guest = Guest::new();
        guest.volumes.keep(guest.volumes.add(&[guest.local(CACHE)]).await.unwrap());
        // What a container that has the volume could do.
        std::os::unix::fs::symlink(guest.root.path(), guest.cache().join("out")).unwrap();
        for place in ["sandbox/ephemeral/cache/out/c2", "sandbox/ephemeral/cache/inner", "sandbox/ephemeral"] {
            assert!(guest.volumes.add(&[guest.local(place)]).await.is_err(), "{place}");
        }
        let same = guest.volumes.add(&[guest.local("sandbox/ephemeral/cache/.")]).await.unwrap();
        guest.volumes.give_up(same);
        // What a copied folder may hold.
        std::fs::create_dir_all(guest.root.path().join("shared/containers")).unwrap();
        std::os::unix::fs::symlink(guest.root.path(), guest.root.path().join("shared/containers/link")).unwrap();
        assert!(guest.volumes.add(&[guest.local("shared/containers/link/c2")]).await.is_err());
        assert!(!guest.root.path().join("c2").exists() && !guest.cache().join("inner").exists());
        assert_eq!(guest.volumes.paths(), [guest.cache()]);
    }
}
