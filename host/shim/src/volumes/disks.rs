//! The disks that a pod's volumes are on: images for emptyDirs, and devices that storage drivers assigned to volumes.
//!
//! A disk is the pod's and not a container's: it is attached for the first container that has the volume, and stays until
//! the machine ends, as what is on it does. An image that a killed shim left is removed by `delete`, which finds it by a link
//! in the pod's folder.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use direct_volume::{Assignments, MountInfo};
use sandbox::DiskConfig;
use tokio::sync;
use wire_ttrpc::agent::{FSGroup, Storage};
use wire_ttrpc::types::FSGroupChangePolicy;

use crate::Error;
use crate::config::EmptyDirMode;
use crate::machine::Machine;

/// A volume that is on a disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DiskVolume {
    /// What containerd mounts.
    pub(crate) source: PathBuf,
    pub(crate) content: Content,
}

/// What is on a volume's disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Content {
    /// A new file system in an image in the folder, whose group it belongs to.
    EmptyDir { encrypted: bool, group: Option<u32> },
    /// What a storage driver says.
    Assigned(MountInfo),
}

/// The disks of a pod.
pub(crate) struct Disks {
    /// Where emptyDirs are.
    pub(crate) mode: EmptyDirMode,
    sandbox: String,
    folder: PathBuf,
    assignments: Assignments,
    /// The guest's path to each, by its [`DiskVolume::key`]. Held while one is attached.
    attached: sync::Mutex<BTreeMap<String, String>>,
    /// What is to be undone when the machine has ended.
    left: Mutex<Vec<Left>>,
}

/// What a disk leaves on the host.
enum Left {
    Image { image: PathBuf, link: PathBuf },
    Claim { volume: String },
}

impl Disks {
    /// None yet, for a pod with this folder.
    pub(crate) fn new(sandbox: &str, folder: PathBuf, mode: EmptyDirMode) -> Self {
        let (attached, left) = (sync::Mutex::default(), Mutex::default());
        Self { mode, sandbox: sandbox.to_owned(), folder, assignments: Assignments::default(), attached, left }
    }

    /// Gives the guest the disk of a volume, unless it has it, and tells what the guest does with it.
    ///
    /// # Errors
    /// [`Error::Volume`], [`Error::Sandbox`]; with nothing left behind.
    pub(crate) async fn attach(&self, machine: &Machine, volume: &DiskVolume) -> Result<Storage, Error> {
        let key = volume.key()?;
        let mut attached = self.attached.lock().await;
        if let Some(path) = attached.get(&key) {
            return Ok(volume.storage(path));
        }
        let (disk, left) = self.prepare(volume, attached.len())?;
        match machine.attach(disk).await {
            Ok(disk) => {
                let path = disk.pci_path();
                let storage = volume.storage(&path);
                attached.insert(key, path);
                self.left().push(left);
                Ok(storage)
            }
            Err(error) => {
                self.undo(&left);
                Err(error)
            }
        }
    }

    /// Where the guest has a volume that a storage driver has assigned a device to, if the disk is attached.
    pub(crate) async fn guest_path(&self, volume: &Path) -> Option<String> {
        self.attached.lock().await.get(&volume.display().to_string()).map(|path| mount_point(path))
    }

    /// Removes what disks left on the host. The machine has ended.
    pub(crate) fn clear(&self) {
        for left in self.left().drain(..) {
            self.undo(&left);
        }
    }

    fn prepare(&self, volume: &DiskVolume, number: usize) -> Result<(DiskConfig, Left), Error> {
        match &volume.content {
            Content::EmptyDir { .. } => {
                let image = volume.source.join(IMAGE);
                let link = self.folder.join(format!("{LINK}{number}"));
                // First, so that there is never an image which nobody knows of.
                let linked = match std::os::unix::fs::symlink(&image, &link) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    linked => linked,
                };
                linked.map_err(Error::file("volume", &link))?;
                let left = Left::Image { image: image.clone(), link };
                match make_image(&volume.source, &image) {
                    Ok(()) => Ok((DiskConfig { path: image, read_only: false }, left)),
                    Err(error) => {
                        self.undo(&left);
                        Err(error)
                    }
                }
            }
            Content::Assigned(info) => {
                let source = volume.source.display().to_string();
                self.assignments.claim(&source, &self.sandbox).map_err(|error| unusable(&volume.source, error))?;
                let read_only = info.options.iter().any(|option| option == "ro");
                Ok((DiskConfig { path: info.device.clone(), read_only }, Left::Claim { volume: source }))
            }
        }
    }

    fn undo(&self, left: &Left) {
        match left {
            Left::Image { image, link } => {
                remove(image);
                remove(link);
            }
            Left::Claim { volume } => self.assignments.release(volume, &self.sandbox),
        }
    }

    fn left(&self) -> MutexGuard<'_, Vec<Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DiskVolume {
    /// What is the same for all mounts of the volume: the folder that an emptyDir is, whatever path leads to it.
    fn key(&self) -> Result<String, Error> {
        match &self.content {
            Content::EmptyDir { .. } => {
                let folder = fs::metadata(&self.source).map_err(|error| unusable(&self.source, error))?;
                Ok(format!("{}:{}", folder.dev(), folder.ino()))
            }
            Content::Assigned(_) => Ok(self.source.display().to_string()),
        }
    }

    /// What the guest does with the disk at `path`.
    fn storage(&self, path: &str) -> Storage {
        let mut storage = Storage {
            driver: "blk".to_owned(),
            source: path.to_owned(),
            mount_point: mount_point(path),
            // It stays when the container goes for which it was made.
            shared: true,
            ..Storage::default()
        };
        let group = |group_id| FSGroup { group_id, ..FSGroup::default() };
        let (create, encrypt) = ("create_filesystem".to_owned(), "encryption_key=ephemeral".to_owned());
        match &self.content {
            Content::EmptyDir { encrypted, group: owner } => {
                storage.fstype = "ext4".to_owned();
                storage.driver_options = vec![create, if *encrypted { encrypt } else { "discard".to_owned() }];
                storage.fs_group = owner.map(group).into();
            }
            Content::Assigned(info) => {
                let meta = |name: &str| info.metadata.get(name).map(String::as_str);
                storage.fstype = info.file_system.clone();
                storage.options = info.options.clone();
                if meta("createFilesystem") == Some("true") {
                    storage.driver_options.push(create);
                }
                if meta("encryptionKey") == Some("ephemeral") {
                    storage.driver_options.push(encrypt);
                }
                let mut owner = meta("fsGroup").and_then(|it| it.parse().ok()).map(group);
                if let Some(owner) = owner.as_mut().filter(|_| meta("fsGroupChangePolicy") == Some("OnRootMismatch")) {
                    owner.group_change_policy = FSGroupChangePolicy::OnRootMismatch.into();
                }
                storage.fs_group = owner.into();
            }
        }
        storage
    }
}

/// Removes the images that a killed shim left behind.
pub(crate) fn remove_left(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(LINK));
        if is_ours && let Ok(image) = fs::read_link(entry.path()) {
            remove(&image);
        }
    }
}

/// Makes a sparse image as large as the folder may become: what its file system has left, or its quota.
///
/// One that was made for a former machine of the pod goes: its key is gone.
fn make_image(folder: &Path, image: &Path) -> Result<(), Error> {
    let statistics = rustix::fs::statfs(folder).map_err(|errno| unusable(folder, errno))?;
    let left = statistics.f_bavail.saturating_mul(statistics.f_bsize as u64) / ALIGNMENT * ALIGNMENT;
    if left < SMALLEST {
        let reason = format!("the node has {} KiB left for it; next: make room on the node", left >> 10);
        return Err(Error::Volume { path: folder.to_owned(), reason });
    }
    remove(image);
    let made = File::options().write(true).create_new(true).mode(0o600).open(image);
    made.and_then(|file| file.set_len(left.min(LARGEST))).map_err(|error| unusable(image, error))
}

fn mount_point(path: &str) -> String {
    format!("/run/kata-containers/sandbox/storage/{}", URL_SAFE.encode(path))
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a volume's file stays behind");
        }
        _ => {}
    }
}

fn unusable(path: &Path, cause: impl ToString) -> Error {
    Error::Volume { path: path.to_owned(), reason: cause.to_string() }
}

/// As Kata's shim calls it.
const IMAGE: &str = "disk.img";
/// In the pod's folder, with a number behind.
const LINK: &str = "volume-";
const ALIGNMENT: u64 = 1 << 20;
/// Bytes that hold a file system with something in it.
const SMALLEST: u64 = 8 << 20;
/// Bytes that an ext4 file system has at most, and the most that a node's file system takes for a file.
const LARGEST: u64 = (16 << 40) - ALIGNMENT;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Owner, Wish};
    use std::os::unix::net::UnixStream;
    use wire_ttrpc::agent_ttrpc::AgentServiceClient;
    use wire_ttrpc::health_ttrpc::HealthClient;

    /// A pod's folder, an emptyDir, and disks.
    struct Pod {
        folder: tempfile::TempDir,
        disks: Disks,
    }

    impl Pod {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["pod", "cache", "assignments"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            let mut disks = Disks::new("pod-1", folder.path().join("pod"), EmptyDirMode::BlockEncrypted);
            disks.assignments = Assignments::at(&folder.path().join("assignments"));
            Self { folder, disks }
        }

        fn empty_dir(&self) -> DiskVolume {
            let content = Content::EmptyDir { encrypted: true, group: Some(7) };
            DiskVolume { source: self.folder.path().join("cache"), content }
        }

        fn names(&self, folder: &str) -> Vec<String> {
            let entries = fs::read_dir(self.folder.path().join(folder)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    /// A machine that refuses disks: what it was asked for.
    fn refusing() -> (Machine, tokio::task::JoinHandle<Vec<DiskConfig>>) {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixStream::from_std(ours).unwrap();
        let client = ttrpc::asynchronous::Client::new(ttrpc::asynchronous::transport::Socket::from(socket));
        let health = HealthClient::new(client.clone());
        let (machine, Owner { mut wishes, end }) = Machine::new(Some(1), AgentServiceClient::new(client), health);
        let asked = tokio::spawn(async move {
            let _end = end;
            let mut asked = Vec::new();
            while let Some(Wish::Attach(disk, answer)) = wishes.recv().await {
                asked.push(disk);
                let _ = answer.send(Err(Error::State("no more disks".to_owned())));
            }
            asked
        });
        (machine, asked)
    }

    #[tokio::test]
    async fn a_disk_that_does_not_come_leaves_nothing() {
        let pod = Pod::new();
        let (machine, asked) = refusing();
        pod.disks.attach(&machine, &pod.empty_dir()).await.unwrap_err();
        drop(machine);
        assert_eq!(asked.await.unwrap()[0].path, pod.folder.path().join("cache/disk.img"));
        assert!(pod.names("pod").is_empty() && pod.names("cache").is_empty());
    }

    #[test]
    fn an_image_is_as_large_as_its_folder_may_become_and_takes_nothing() {
        let pod = Pod::new();
        let (disk, left) = pod.disks.prepare(&pod.empty_dir(), 0).unwrap();
        let image = fs::metadata(&disk.path).unwrap();
        assert!(image.len() >= SMALLEST && image.len() % ALIGNMENT == 0);
        assert_eq!((image.blocks(), image.mode() & 0o777), (0, 0o600));
        // What a former machine left is not kept.
        fs::write(&disk.path, "ciphertext under a lost key").unwrap();
        let (disk, _) = pod.disks.prepare(&pod.empty_dir(), 0).unwrap();
        assert_eq!(fs::metadata(&disk.path).unwrap().blocks(), 0);

        pod.disks.left().push(left);
        pod.disks.clear();
        assert!(pod.names("pod").is_empty() && pod.names("cache").is_empty());
    }

    #[test]
    fn what_a_killed_shim_left_is_found_by_its_link() {
        let pod = Pod::new();
        pod.disks.prepare(&pod.empty_dir(), 0).unwrap();
        fs::write(pod.folder.path().join("pod/record.json"), "").unwrap();
        remove_left(&pod.folder.path().join("pod"));
        assert!(pod.names("cache").is_empty());
    }

    #[test]
    fn the_guest_is_asked_in_kata_s_words() {
        let pod = Pod::new();
        let storage = pod.empty_dir().storage("02/03");
        assert_eq!(
            (storage.driver.as_str(), storage.source.as_str(), storage.fstype.as_str(), storage.shared),
            ("blk", "02/03", "ext4", true)
        );
        assert_eq!(storage.driver_options, ["create_filesystem", "encryption_key=ephemeral"]);
        assert_eq!(storage.mount_point, "/run/kata-containers/sandbox/storage/MDIvMDM=");
        assert_eq!(storage.fs_group.group_id, 7);
        let plain = Content::EmptyDir { encrypted: false, group: None };
        let storage = DiskVolume { content: plain, ..pod.empty_dir() }.storage("02/03");
        assert_eq!(storage.driver_options, ["create_filesystem", "discard"]);
        assert!(storage.fs_group.is_none());
    }

    #[test]
    fn an_assigned_device_is_used_as_its_driver_says_and_claimed() {
        let pod = Pod::new();
        let text = r#"{"volume-type":"blk","device":"/dev/sdz","fstype":"xfs","options":["ro"],
            "metadata":{"fsGroup":"9","fsGroupChangePolicy":"OnRootMismatch"}}"#;
        let info = MountInfo::parse(text).unwrap();
        let source = pod.folder.path().join("volume");
        pod.disks.assignments.add(source.to_str().unwrap(), &info).unwrap();
        let volume = DiskVolume { source: source.clone(), content: Content::Assigned(info) };

        let (disk, left) = pod.disks.prepare(&volume, 0).unwrap();

        assert_eq!(disk, DiskConfig { path: "/dev/sdz".into(), read_only: true });
        let owner = || pod.disks.assignments.owner(source.to_str().unwrap()).unwrap();
        assert_eq!(owner().as_deref(), Some("pod-1"));
        let storage = volume.storage("02/04");
        assert_eq!((storage.fstype.as_str(), storage.options.as_slice()), ("xfs", &["ro".to_owned()][..]));
        assert!(storage.driver_options.is_empty());
        assert_eq!(storage.fs_group.group_change_policy, FSGroupChangePolicy::OnRootMismatch.into());
        pod.disks.left().push(left);
        pod.disks.clear();
        assert_eq!(owner(), None);
    }
}
