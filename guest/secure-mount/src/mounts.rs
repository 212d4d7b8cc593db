//! All volumes of a guest: each is mounted once, stays until it is released, and waits for no other one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use crate::block_device::BlockDevice;
use crate::place::Place;
use crate::request::{self, MountRequest, Source, Target, Volume};
use crate::volume::OpenVolume;
use crate::{Config, Error, mkfs};

/// The volumes of a guest. Clones share them; dropping the last one releases all.
#[derive(Clone)]
pub struct SecureMounts(Arc<Inner>);

struct Inner {
    config: Config,
    /// By mount point. An entry is locked while somebody works on it, and empty when nothing is there.
    entries: Mutex<HashMap<PathBuf, Arc<AsyncMutex<Option<Mounted>>>>>,
    /// The numbers of devices that a volume is on.
    devices: Arc<Mutex<HashSet<u64>>>,
    /// Set before the last volumes are released.
    closed: AtomicBool,
}

/// A volume in its place.
struct Mounted {
    request: Volume,
    // Released in this order.
    place: Place,
    volume: OpenVolume,
    _device: Reserved,
}

impl SecureMounts {
    /// No volumes yet.
    pub fn new(config: Config) -> Self {
        Self(Arc::new(Inner {
            config,
            entries: Mutex::default(),
            devices: Arc::default(),
            closed: AtomicBool::new(false),
        }))
    }

    /// Mounts a volume. The same request a second time changes nothing and succeeds.
    ///
    /// The work goes on, to its end or its undoing, if the future is dropped.
    ///
    /// # Errors
    /// [`Error`], with nothing left behind: no mapping, no mount, no file. What has been written to an empty device stays, but
    /// the device still counts as empty.
    pub async fn mount(&self, request: MountRequest) -> Result<(), Error> {
        let volume = request.parse()?;
        let mut entry = self.entry(&volume.mount_point).await;
        // Whoever closes finds the entry, or this finds that they have.
        if self.0.closed.load(Ordering::SeqCst) {
            return Err(Error::Ended);
        }
        let (config, devices) = (self.0.config.clone(), self.0.devices.clone());
        run(move || {
            match &*entry {
                Some(there) if there.request == volume && there.place.is_there() => return Ok(()),
                Some(_) => return Err(Error::Conflict(volume.mount_point)),
                None => {}
            }
            let mounted = Mounted::new(&config, &devices, volume, request.key)?;
            tracing::info!(mount_point = %mounted.request.mount_point.display(), mapping = mounted.volume.mapping().name(),
                integrity = mounted.volume.is_authenticated(), source = ?mounted.request.source, "volume mounted");
            *entry = Some(mounted);
            Ok(())
        })
        .await
    }

    /// Releases the volume at a mount point: what has been written to it is on the disk, and its key is gone.
    ///
    /// # Errors
    /// [`Error::NotMounted`]; [`Error::Busy`] and [`Error::Mapping`] while it is in use, after which it can be tried again.
    pub async fn unmount(&self, mount_point: &Path) -> Result<(), Error> {
        let mount_point = request::mount_point(mount_point)?;
        let mut entry = self.entry(&mount_point).await;
        run(move || {
            let mounted = entry.as_mut().ok_or_else(|| Error::NotMounted(mount_point.clone()))?;
            mounted.release()?;
            *entry = None;
            tracing::info!(mount_point = %mount_point.display(), "volume released");
            Ok(())
        })
        .await
    }

    /// Releases every volume and takes no further one, as a guest does before it ends. Those that are about to be mounted are
    /// waited for; those in use can't be reached any longer, and go with the last process that has files open there.
    ///
    /// # Errors
    /// [`Error::LeftInUse`] for one of those. [`SecureMounts::mount`] gives [`Error::Ended`] from then on.
    pub async fn close(&self) -> Result<(), Error> {
        self.0.closed.store(true, Ordering::SeqCst);
        let outcome = self.unmount_all().await;
        let left = std::mem::take(&mut *self.entries());
        run(move || {
            drop(left);
            Ok(())
        })
        .await?;
        outcome.map_err(|error| match error {
            Error::Busy(path) => Error::LeftInUse(path),
            error => error,
        })
    }

    /// Releases every volume; those in use are left, and the first error is returned.
    ///
    /// # Errors
    /// As [`SecureMounts::unmount`].
    pub async fn unmount_all(&self) -> Result<(), Error> {
        let mut paths: Vec<PathBuf> = self.entries().keys().cloned().collect();
        // What is mounted within another volume goes first.
        paths.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        let mut outcome = Ok(());
        for path in paths {
            match self.unmount(&path).await {
                Ok(()) | Err(Error::NotMounted(_)) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// The place of a mount point, once nobody else works on it.
    async fn entry(&self, mount_point: &Path) -> OwnedMutexGuard<Option<Mounted>> {
        let entry = {
            let mut entries = self.entries();
            // Nobody can come by one that only the map has, as long as the map is locked.
            entries.retain(|_, entry| Arc::strong_count(entry) > 1 || entry.try_lock().is_ok_and(|it| it.is_some()));
            entries.entry(mount_point.to_owned()).or_default().clone()
        };
        entry.lock_owned().await
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<PathBuf, Arc<AsyncMutex<Option<Mounted>>>>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SecureMounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecureMounts").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Mounted {
    fn new(
        config: &Config,
        devices: &Arc<Mutex<HashSet<u64>>>,
        request: Volume,
        key: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Self, Error> {
        let device = BlockDevice::find(&request.device, config)?;
        let reserved = Reserved::new(devices, &device)?;
        let name = request.mapper_name.clone().map_or_else(random_name, Ok)?;
        let read_only = request.flags.read_only();

        let uncommitted = match (request.source, &key) {
            (Source::Existing, Some(key)) => {
                let volume = OpenVolume::open(&device, &name, key, request.integrity, read_only)?;
                let place = request.place(&volume)?;
                return Ok(Self { request, place, volume, _device: reserved });
            }
            (Source::Existing | Source::New, None) => return Err(Error::KeyMissing),
            (Source::New, Some(key)) => {
                OpenVolume::create(&device, &name, Some(key), request.integrity.unwrap_or(false))?
            }
            (Source::Ephemeral, _) => OpenVolume::create(&device, &name, None, request.integrity.unwrap_or(false))?,
        };
        let volume = &uncommitted.volume;
        match &request.target {
            Target::FileSystem(file_system) => mkfs::make(file_system, volume.mapping().path())?,
            Target::Device if volume.is_authenticated() => volume.wipe()?,
            Target::Device => {}
        }
        let place = request.place(volume)?;
        uncommitted.commit(&device)?;
        Ok(Self { request, place, volume: uncommitted.volume, _device: reserved })
    }

    fn release(&mut self) -> Result<(), Error> {
        match self.request.target {
            // The link of a device in use stays.
            Target::Device => self.volume.close().and_then(|()| self.place.release())?,
            Target::FileSystem(_) => self.place.release().and_then(|()| self.volume.close())?,
        }
        Ok(())
    }
}

impl Volume {
    /// Lets the volume appear where the request wants it.
    fn place(&self, volume: &OpenVolume) -> Result<Place, Error> {
        let device = volume.mapping().path();
        match self.target {
            Target::Device => Place::link(&self.mount_point, device),
            Target::FileSystem(_) => Place::mount(&self.mount_point, device, self.flags),
        }
    }
}

/// A device that no second volume can be put on; the kernel itself would let several mappings have it.
struct Reserved {
    devices: Arc<Mutex<HashSet<u64>>>,
    number: u64,
}

impl Reserved {
    fn new(devices: &Arc<Mutex<HashSet<u64>>>, device: &BlockDevice) -> Result<Self, Error> {
        let number = device.number();
        if !devices.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
            return Err(Error::InUse(device.path().to_owned()));
        }
        Ok(Self { devices: devices.clone(), number })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

/// Runs what waits for disks where it delays nobody.
async fn run(job: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
    match spawn_blocking(job).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Ended),
    }
}

fn random_name() -> Result<String, Error> {
    let mut bytes = [0; 16];
    let file = Path::new("/dev/urandom");
    std::fs::File::open(file)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(Error::io("read", file))?;
    Ok(format!("volume-{}", hex::encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(options: &[(&str, &str)]) -> MountRequest {
        MountRequest {
            volume_type: "block-device".to_owned(),
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            flags: Vec::new(),
            mount_point: "/run/cocoon-no-such-volume".into(),
            key: None,
        }
    }

    #[tokio::test]
    async fn a_device_that_is_not_there_leaves_nothing_behind() {
        let mounts = SecureMounts::new(Config::default());
        let options =
            [("devicePath", "/dev/cocoon-no-such-disk"), ("sourceType", "empty"), ("targetType", "fileSystem")];
        for _ in 0..2 {
            let error = mounts.mount(request(&options)).await.unwrap_err();
            assert!(matches!(error, Error::Device { .. }), "{error}");
        }
        assert!(!Path::new("/run/cocoon-no-such-volume").exists());
        assert!(mounts.0.devices.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_was_not_mounted_is_not_unmounted() {
        let mounts = SecureMounts::new(Config::default());
        let error = mounts.unmount(Path::new("/run/cocoon-no-such-volume")).await.unwrap_err();
        assert!(matches!(error, Error::NotMounted(_)), "{error}");
        mounts.unmount_all().await.unwrap();
    }

    #[tokio::test]
    async fn nothing_is_mounted_once_all_is_released() {
        let mounts = SecureMounts::new(Config::default());
        mounts.close().await.unwrap();
        let options = [("devicePath", "/dev/null"), ("sourceType", "empty"), ("targetType", "fileSystem")];
        assert!(matches!(mounts.mount(request(&options)).await, Err(Error::Ended)));
    }

    #[test]
    fn random_names_differ() {
        assert_ne!(random_name().unwrap(), random_name().unwrap());
    }
}
