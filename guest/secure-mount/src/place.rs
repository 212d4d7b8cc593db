//! Where a volume appears: a mounted file system, or a link to the mapping. Dropping it takes it away again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, mount, umount2};

use crate::Error;
use crate::flags::Flags;

/// A volume's place.
pub(crate) struct Place {
    path: PathBuf,
    kind: Kind,
    /// Folders that were made for it, the innermost last.
    made: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Folders only.
    Nothing,
    Mount,
    Link,
}

impl Place {
    /// Mounts the file system on `device`.
    pub(crate) fn mount(path: &Path, device: &Path, flags: Flags) -> Result<Self, Error> {
        let mut place = Self::with_folders(path, path)?;
        mount(Some(device), path, Some("ext4"), flags.bits(), Some(ext4::MOUNT_OPTION))
            .map_err(|errno| Error::Mount { path: path.to_owned(), cause: errno.into() })?;
        place.kind = Kind::Mount;
        Ok(place)
    }

    /// Links to `device`.
    pub(crate) fn link(path: &Path, device: &Path) -> Result<Self, Error> {
        let mut place = Self::with_folders(path, path.parent().unwrap_or(Path::new("/")))?;
        std::os::unix::fs::symlink(device, path).map_err(Error::io("linked", path))?;
        place.kind = Kind::Link;
        Ok(place)
    }

    /// Whether it has not been taken away.
    pub(crate) fn is_there(&self) -> bool {
        self.kind != Kind::Nothing
    }

    /// Takes it away now.
    ///
    /// # Errors
    /// [`Error::Busy`]: then it is still there.
    pub(crate) fn release(&mut self) -> Result<(), Error> {
        match self.kind {
            Kind::Nothing => {}
            Kind::Mount => match umount2(&self.path, MntFlags::UMOUNT_NOFOLLOW) {
                // EINVAL: somebody else has unmounted it.
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(Errno::EBUSY) => return Err(Error::Busy(self.path.clone())),
                Err(errno) => return Err(Error::io("unmounted", &self.path)(errno.into())),
            },
            Kind::Link => match fs::remove_file(&self.path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("removed", &self.path)(cause));
                }
                _ => {}
            },
        }
        self.remove_folders();
        Ok(())
    }

    fn remove_folders(&mut self) {
        self.kind = Kind::Nothing;
        // Whoever has put something there meanwhile keeps it.
        while let Some(folder) = self.made.pop() {
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }

    fn with_folders(path: &Path, folder: &Path) -> Result<Self, Error> {
        let mut place = Self { path: path.to_owned(), kind: Kind::Nothing, made: Vec::new() };
        let missing: Vec<&Path> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
        for folder in missing.into_iter().rev() {
            fs::create_dir(folder).map_err(Error::io("made", folder))?;
            place.made.push(folder.to_owned());
        }
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if matches!(self.release(), Err(Error::Busy(_))) {
            // It goes when the last one leaves; nobody new can enter.
            let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
            self.remove_folders();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_goes_with_the_folders_that_were_made_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/device");
        let mut place = Place::link(&path, Path::new("/dev/mapper/x")).unwrap();
        assert_eq!(fs::read_link(&path).unwrap(), Path::new("/dev/mapper/x"));
        place.release().unwrap();
        assert!(!folder.path().join("a").exists() && folder.path().exists());
    }

    #[test]
    fn a_folder_with_something_else_in_it_stays() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::link(&folder.path().join("a/b/device"), Path::new("/dev/mapper/x")).unwrap();
        fs::write(folder.path().join("a/file"), "").unwrap();
        drop(place);
        assert!(!folder.path().join("a/b").exists());
        assert!(folder.path().join("a/file").exists());
    }

    #[test]
    fn nothing_is_left_of_a_mount_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let error = Place::mount(&path, Path::new("/dev/null"), Flags::parse(&[]).unwrap()).err().unwrap();
        assert!(matches!(error, Error::Mount { .. }), "{error}");
        assert!(!folder.path().join("a").exists());
    }

    #[test]
    fn what_is_there_already_is_not_replaced_by_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        fs::write(&path, "data").unwrap();
        assert!(Place::link(&path, Path::new("/dev/mapper/x")).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }
}
