//! Volumes on disks of the host: file systems that are there, or new ones, in the clear or encrypted.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ext4::Ext4;
use rustix::fs::{Gid, Mode, fchmod, fchown};
use rustix::mount::{MountFlags, mount};
use wire_ttrpc::agent::Storage;

use super::{Error, Made, memory, place, refused};
use crate::beneath::{Beneath, Owner, way_to};
use crate::devices::{Address, PATIENCE};
use crate::disks::{DiskError, Disks, EncryptedDisk};

/// A volume that is to be mounted from a disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct DiskVolume {
    pub(super) path: PathBuf,
    address: Address,
    content: Content,
    file_system: &'static str,
    options: Vec<String>,
    group: Option<u32>,
}

/// What is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A file system that the host brings. Whether its content is good the container has to know.
    Existing,
    /// A new file system, which the host can read.
    New,
    /// A new file system under a key that nobody keeps.
    Encrypted,
}

impl DiskVolume {
    pub(super) fn parse(storage: &Storage, root: &Path) -> Result<Self, Error> {
        let refuse = |reason| refused(storage, reason);
        let path = place(storage, root)?;
        let address = Address::parse(&storage.driver, &storage.source);
        let address = address.ok_or_else(|| refuse("its source is not an address of a disk"))?;
        let mut options = storage.options.clone();
        let (mut is_new, mut is_encrypted) = (false, false);
        for option in &storage.driver_options {
            match option.as_str() {
                "create_filesystem" => is_new = true,
                "encryption_key=ephemeral" => is_encrypted = true,
                "discard" => options.push("discard".to_owned()),
                _ => return Err(refuse("it has an option of its driver that is not supported")),
            }
        }
        let content = match (is_new, is_encrypted) {
            (false, false) => Content::Existing,
            (true, false) => Content::New,
            (true, true) => Content::Encrypted,
            (false, true) => return Err(refuse("a disk under a new key needs a new file system: create_filesystem")),
        };
        let known = FILE_SYSTEMS.iter().find(|known| **known == storage.fstype);
        let file_system = known.ok_or_else(|| refuse("its file system is not one of ext4, xfs and erofs"))?;
        if content != Content::Existing && *file_system != "ext4" {
            return Err(refuse("only ext4 can be made"));
        }
        let unknown = |option: &String| !OPTIONS.contains(&option.as_str());
        if options.iter().any(unknown) || (content == Content::Encrypted && options.iter().any(|it| it == "discard")) {
            return Err(refuse("it has an option that is not supported"));
        }
        let group = storage.fs_group.as_ref().map(|group| group.group_id);
        Ok(Self { path, address, content, file_system, options, group })
    }

    pub(super) async fn make(&self, root: &Path, disks: Option<&dyn Disks>) -> Result<Made, Error> {
        let failed = |e| Error::Make(self.path.clone(), e);
        let disk = self.address.find(Path::new("/sys"), PATIENCE).await;
        let disk = disk.map_err(|e| Error::Device(self.path.clone(), e))?;
        let inside = self.path.strip_prefix(root).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let root = Beneath::open(root).map_err(failed)?;
        let folder = root.folder(inside, Owner::agent(0o755)).map_err(failed)?;

        let made = match self.content {
            Content::Encrypted => {
                let disks =
                    disks.ok_or_else(|| DiskError("this guest encrypts no disks; next: leave it out".to_owned()));
                let mut flags = self.options.clone();
                flags.extend(["nosuid", "nodev"].map(str::to_owned));
                let mounted = match disks {
                    Ok(disks) => {
                        let mount_point = self.path.clone();
                        disks.mount(EncryptedDisk { number: disk.number, mount_point, flags }).await
                    }
                    Err(error) => Err(error),
                };
                mounted.map(|()| Made::EncryptedDisk).map_err(|e| Error::Disk(self.path.clone(), e))
            }
            Content::New => match make_file_system(&disk.path).await {
                Ok(()) => self.mount(&disk.path, &folder).map_err(failed),
                Err(error) => Err(Error::Disk(self.path.clone(), error)),
            },
            Content::Existing => self.mount(&disk.path, &folder).map_err(failed),
        };
        let given = match &made {
            Ok(_) => root.mounted(inside).and_then(|volume| self.give(volume)).map_err(failed),
            Err(_) => Ok(()),
        };
        match (made, given) {
            (Ok(made), Ok(())) => Ok(made),
            (Ok(Made::EncryptedDisk), Err(error)) => {
                if let Some(disks) = disks {
                    let _ = disks.unmount(&self.path).await;
                }
                Err(error)
            }
            (Err(error), _) | (_, Err(error)) => {
                memory::remove(&self.path);
                Err(error)
            }
        }
    }

    fn mount(&self, disk: &Path, folder: &OwnedFd) -> io::Result<Made> {
        let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
        let mut data = Vec::new();
        if self.content == Content::New {
            data.push(ext4::MOUNT_OPTION);
        }
        for option in &self.options {
            match option.as_str() {
                "ro" => flags |= MountFlags::RDONLY,
                "noexec" => flags |= MountFlags::NOEXEC,
                "noatime" => flags |= MountFlags::NOATIME,
                "discard" => data.push("discard"),
                _ => {}
            }
        }
        mount(disk, way_to(folder), self.file_system, flags, CString::new(data.join(","))?.as_c_str())?;
        Ok(Made::Disk)
    }

    /// Lets everybody write to a new file system, and gives any to its group.
    fn give(&self, volume: OwnedFd) -> io::Result<()> {
        if self.options.iter().any(|option| option == "ro") {
            return Ok(());
        }
        let mode = if self.content == Content::Existing { 0o775 } else { 0o777 };
        if let Some(group) = self.group {
            fchown(&volume, None, Some(Gid::from_raw(group)))?;
            return Ok(fchmod(volume, Mode::from_raw_mode(mode | 0o2000))?);
        }
        if self.content != Content::Existing {
            fchmod(volume, Mode::from_raw_mode(mode))?;
        }
        Ok(())
    }
}

/// Makes a file system that ends with the pod, and so needs no journal.
async fn make_file_system(disk: &Path) -> Result<(), DiskError> {
    let disk = disk.to_owned();
    let make = move || {
        let file = File::options().write(true).open(disk)?;
        let size = (&file).seek(SeekFrom::End(0))?;
        Ext4 { journal: false, ..Ext4::default() }.make(&file, size)
    };
    let made = tokio::task::spawn_blocking(make).await;
    let made = made.map_err(|_| DiskError("the file system was not finished".to_owned()))?;
    made.map_err(|error| DiskError(error.to_string()))
}

const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "erofs"];
const OPTIONS: [&str; 8] = ["ro", "rw", "nosuid", "nodev", "noexec", "noatime", "relatime", "discard"];

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(root: &Path, options: &[&str], driver_options: &[&str]) -> Storage {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        Storage {
            driver: "blk".into(),
            source: "02/03".into(),
            fstype: "ext4".into(),
            mount_point: root.join("sandbox/storage/data").to_str().unwrap().into(),
            options: words(options),
            driver_options: words(driver_options),
            ..Default::default()
        }
    }

    #[test]
    fn disks_are_the_same_volume_only_where_all_of_it_is_the_same() {
        let root = Path::new("/root");
        let parse = |storage: Storage| DiskVolume::parse(&storage, root).unwrap();
        let encrypted = || storage(root, &[], &["create_filesystem", "encryption_key=ephemeral"]);
        assert_eq!(parse(encrypted()), parse(encrypted()));
        let group = wire_ttrpc::agent::FSGroup { group_id: 7, ..Default::default() };
        for other in [
            storage(root, &[], &["create_filesystem"]),
            storage(root, &[], &[]),
            Storage { source: "02/04".into(), ..encrypted() },
            Storage { options: vec!["ro".into()], ..encrypted() },
            Storage { fs_group: Some(group).into(), ..encrypted() },
        ] {
            assert_ne!(parse(encrypted()), parse(other));
        }
    }

    #[test]
    fn a_disk_is_used_as_it_is_or_made_anew() {
        let root = Path::new("/root");
        for (options, content) in [
            (&[][..], Content::Existing),
            (&["create_filesystem"], Content::New),
            (&["create_filesystem", "discard"], Content::New),
            (&["encryption_key=ephemeral", "create_filesystem"], Content::Encrypted),
        ] {
            assert_eq!(DiskVolume::parse(&storage(root, &["ro"], options), root).unwrap().content, content);
        }
        for (case, bad) in [
            storage(root, &[], &["encryption_key=ephemeral"]),
            storage(root, &[], &["encryption_key=mine", "create_filesystem"]),
            storage(root, &["suid"], &[]),
            storage(root, &["data=journal"], &[]),
            storage(root, &["discard"], &["encryption_key=ephemeral", "create_filesystem"]),
            Storage { fstype: "ntfs".into(), ..storage(root, &[], &[]) },
            Storage { fstype: "xfs".into(), ..storage(root, &[], &["create_filesystem"]) },
            Storage { source: "/etc/passwd".into(), ..storage(root, &[], &[]) },
            Storage { mount_point: "/mnt".into(), ..storage(root, &[], &[]) },
        ]
        .into_iter()
        .enumerate()
        {
            assert!(matches!(DiskVolume::parse(&bad, root), Err(Error::Refused { .. })), "case {case}");
        }
    }
}
