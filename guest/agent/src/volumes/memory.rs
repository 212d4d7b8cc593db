//! Volumes in the guest's memory: file systems of their own, or plain folders.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, fchmod, fchown};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use wire_ttrpc::agent::Storage;

use super::{Error, place, refused};
use crate::beneath::{Beneath, Owner, way_to};

/// A volume that is to be made.
#[derive(Debug)]
pub(super) struct MemoryVolume {
    pub(super) path: PathBuf,
    /// The options of the file system of its own; none for a plain folder.
    tmpfs: Option<String>,
    flags: MountFlags,
    mode: u32,
    group: Option<u32>,
}

impl MemoryVolume {
    pub(super) fn parse(storage: &Storage, root: &Path) -> Result<Self, Error> {
        let refuse = |reason| refused(storage, reason);
        let path = place(storage, root)?;
        let number = |text: &str| !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
        let mut mode = if path.ends_with("shm") { 0o1777 } else { 0o777 };
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mut group = storage.fs_group.as_ref().map(|group| group.group_id);
        let mut options = Vec::new();
        for option in &storage.options {
            match option.split_once('=') {
                Some(("mode", text)) => {
                    let parsed = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o3777);
                    mode = parsed.ok_or_else(|| refuse("its mode is malformed"))?;
                }
                Some(("fsgid", text)) => {
                    group = Some(text.parse().map_err(|_| refuse("its group is not a number"))?);
                }
                Some(("size", size)) if number(size.trim_end_matches(['k', 'm', 'g', '%'])) => {
                    options.push(option.as_str());
                }
                None if option == "noexec" => flags |= MountFlags::NOEXEC,
                None if matches!(option.as_str(), "nosuid" | "nodev" | "rw") => {}
                _ => return Err(refuse("it has an option that is not supported")),
            }
        }
        if group.is_some() {
            // Files in it belong to the group too, as Kubernetes has it of `fsGroup`.
            mode |= 0o2070;
        }
        let tmpfs = match storage.driver.as_str() {
            "ephemeral" if storage.fstype == "tmpfs" => Some(options.join(",")),
            "local" => None,
            _ => return Err(refuse("only volumes in memory are supported")),
        };
        Ok(Self { path, tmpfs, flags, mode, group })
    }

    /// Makes the volume, or nothing.
    pub(super) fn make(&self, root: &Path) -> Result<(), Error> {
        let failed = |e| Error::Make(self.path.clone(), e);
        let inside = self.path.strip_prefix(root).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let root = Beneath::open(root).map_err(failed)?;
        let folder = root.folder(inside, Owner::agent(0o755)).map_err(failed)?;
        let finish = || -> io::Result<()> {
            let Some(options) = &self.tmpfs else { return self.give(&folder) };
            let options = CString::new(options.as_str())?;
            mount("tmpfs", way_to(&folder), "tmpfs", self.flags, options.as_c_str())?;
            self.give(root.mounted(inside)?)
        };
        finish().map_err(|error| {
            remove(&self.path);
            failed(error)
        })
    }

    /// Whether who asks for the other gets this one. Sizes may differ: they change while the pod runs.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let kind = |it: &Self| (it.tmpfs.is_some(), it.flags, it.mode, it.group);
        self.path == other.path && kind(self) == kind(other)
    }

    /// Gives the file system the other one's size, and nothing else of it; a plain folder has none.
    pub(super) fn resize(&self, other: &Self) -> Result<(), Error> {
        let (Some(_), Some(options)) = (&self.tmpfs, &other.tmpfs) else { return Ok(()) };
        let resize = || -> io::Result<()> {
            let options = CString::new(options.as_str())?;
            // The mode stays what it was: it is not among these options.
            Ok(mount_remount(&self.path, self.flags, options.as_c_str())?)
        };
        resize().map_err(|e| Error::Make(self.path.clone(), e))
    }

    fn give(&self, folder: impl AsFd) -> io::Result<()> {
        if let Some(group) = self.group {
            fchown(&folder, None, Some(Gid::from_raw(group)))?;
        }
        Ok(fchmod(folder, Mode::from_raw_mode(self.mode))?)
    }
}

/// Removes a volume with what it holds.
pub(super) fn remove(path: &Path) {
    // Fails where the volume is a plain folder, which is removed right after.
    let _ = unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(volume = %path.display(), %error, "volume can't be removed");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn storage(root: &Path, place: &str, options: &[&str]) -> Storage {
        Storage {
            driver: "local".into(),
            mount_point: root.join(place).to_str().unwrap().into(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn a_folder_belongs_to_the_group_that_is_named() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().metadata().unwrap().gid();
        let place = "shared/containers/passthrough/s1/rootfs/local/cache";
        let local = storage(root.path(), place, &["mode=0700", &format!("fsgid={own}")]);
        MemoryVolume::parse(&local, root.path()).unwrap().make(root.path()).unwrap();
        let made = root.path().join(place).metadata().unwrap();
        assert_eq!((made.gid(), made.permissions().mode() & 0o7777), (own, 0o2770));
    }

    #[test]
    fn what_is_no_volume_of_a_pod_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let good = "sandbox/ephemeral/cache";
        for (case, storage) in [
            storage(root, "/etc/x", &[]),
            storage(root, "sandbox/ephemeral", &[]),
            storage(root, "c1/rootfs", &[]),
            storage(root, "sandbox/ephemeral/../../c1/rootfs", &[]),
            storage(root, good, &["suid"]),
            storage(root, good, &["mode=9"]),
            storage(root, good, &["mode=7777"]),
            storage(root, good, &["fsgid=web"]),
            storage(root, good, &["size=1,suid"]),
            Storage { driver: "9p".into(), ..storage(root, good, &[]) },
            Storage { driver: "ephemeral".into(), fstype: "ext4".into(), ..storage(root, good, &[]) },
        ]
        .into_iter()
        .enumerate()
        {
            assert!(matches!(MemoryVolume::parse(&storage, root), Err(Error::Refused { .. })), "case {case}");
        }
    }
}
