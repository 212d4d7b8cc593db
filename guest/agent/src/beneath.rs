//! Folders in which paths are followed without links and never lead out, whatever containers do in them meanwhile.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid, fchmod, fchown, mkdirat, openat2};
use rustix::io::Errno;

/// A folder below which others are opened and made.
pub(crate) struct Beneath(OwnedFd);

/// Whose a new folder is, and who may do what in it.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The mode of new folders.
    pub(crate) mode: u32,
}

impl Beneath {
    /// Opens the folder itself, which the agent has made.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self(open(rustix::fs::CWD, folder, ResolveFlags::empty())?))
    }

    /// Opens the folder at `path`, which consists of names alone; what is missing on the way is made.
    pub(crate) fn folder(&self, path: &Path, owner: Owner) -> io::Result<OwnedFd> {
        let mut folder = self.0.try_clone()?;
        for part in path.components() {
            let Component::Normal(name) = part else { return Err(io::ErrorKind::InvalidInput.into()) };
            let name = Path::new(name);
            folder = match open(&folder, name, INSIDE) {
                Err(Errno::NOENT) => make(&folder, name, owner)?,
                opened => opened?,
            };
        }
        Ok(folder)
    }

    /// Opens what is mounted on the folder at `path`, which was made here.
    pub(crate) fn mounted(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(open(&self.0, path, INSIDE.difference(ResolveFlags::NO_XDEV))?)
    }
}

/// The way to an open folder for what takes paths alone: nobody can change where it leads.
pub(crate) fn way_to(folder: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd()).into()
}

impl From<OwnedFd> for Beneath {
    fn from(folder: OwnedFd) -> Self {
        Self(folder)
    }
}

impl Owner {
    /// The agent itself, for what only it changes.
    pub(crate) fn agent(mode: u32) -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), mode }
    }

    /// Gives what is open to this owner.
    pub(crate) fn take(self, file: impl AsFd) -> io::Result<()> {
        // In this order: a change of the owner takes bits of the mode away.
        fchown(&file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        Ok(fchmod(&file, Mode::from_raw_mode(self.mode))?)
    }
}

fn make(parent: impl AsFd, name: &Path, owner: Owner) -> io::Result<OwnedFd> {
    match mkdirat(&parent, name, Mode::RWXU) {
        // Somebody else made it at the same time, and gives it to its owner.
        Err(Errno::EXIST) => Ok(open(&parent, name, INSIDE)?),
        made => {
            made?;
            let folder = open(&parent, name, INSIDE)?;
            owner.take(&folder)?;
            Ok(folder)
        }
    }
}

fn open(parent: impl AsFd, name: &Path, resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    openat2(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A mount in between belongs to somebody, and is not entered either.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn folders_are_made_inside_and_links_are_not_followed() {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let beneath = Beneath::open(&root).unwrap();
        let owner = Owner::agent(0o751);

        beneath.folder(Path::new("a/b"), owner).unwrap();
        for made in ["a", "a/b"] {
            assert_eq!(root.join(made).metadata().unwrap().permissions().mode() & 0o7777, 0o751);
        }
        symlink(outer.path(), root.join("a/out")).unwrap();
        symlink("b", root.join("a/in")).unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        for refused in ["a/out", "a/out/x", "a/in", "a/../..", "/a", "a/file", "a/file/x"] {
            assert!(beneath.folder(Path::new(refused), owner).is_err(), "{refused}");
        }
        assert!(!outer.path().join("x").exists());

        let folder = beneath.folder(Path::new("a/b"), owner).unwrap();
        std::fs::rename(root.join("a"), root.join("c")).unwrap();
        symlink(outer.path(), root.join("a")).unwrap();
        assert_eq!(way_to(&folder).canonicalize().unwrap(), root.join("c/b").canonicalize().unwrap());
        assert!(beneath.mounted(Path::new("c/b")).is_ok() && beneath.mounted(Path::new("a")).is_err());
    }
}
