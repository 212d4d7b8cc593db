//! The directory of one layer: what its archive unpacked to, or its image and where that is mounted.

use std::fs::{self, File};
use std::io::{self, BufRead, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use erofs::{MountedImage, VerityRoot};
use rustix::fs::{Dir, Mode, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Failure, Stage};
use crate::unpack::Summary;

/// A directory of one layer; removed when dropped.
pub(crate) struct LayerDir {
    path: PathBuf,
    pub(crate) summary: Summary,
    image: Option<MountedImage>,
}

impl LayerDir {
    /// Makes an empty directory.
    ///
    /// # Errors
    /// If there is one already, or it can't be made.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self { path, summary: Summary::default(), image: None })
    }

    /// The layer's root, which is where it unpacks to if it is not an image.
    pub(crate) fn path(&self) -> &Path {
        self.image.as_ref().map_or(&self.path, MountedImage::path)
    }

    /// Keeps an EROFS image beside the place where it will be mounted.
    pub(crate) fn keep_image(&self, content: &mut impl BufRead) -> Result<Summary, Failure> {
        let failed = |e: io::Error| Failure::new(Stage::Unpack, format!("the layer's image: {e}"));
        let mut file = File::create_new(self.path.join(IMAGE)).map_err(failed)?;
        loop {
            let bytes = content.fill_buf().map_err(|e| Failure::from_io(e, Stage::Inflate))?;
            if bytes.is_empty() {
                // An image has a root and says everything about each of its directories.
                return Ok(Summary { root: true, ..Summary::default() });
            }
            file.write_all(bytes).map_err(failed)?;
            let count = bytes.len();
            content.consume(count);
        }
    }

    /// Mounts the image that was kept. Its digests must have been checked.
    pub(crate) fn mount_image(&mut self, verity: Option<&VerityRoot>) -> Result<(), Failure> {
        let mounted = erofs::mount(&self.path.join(IMAGE), verity, &self.path.join(TREE));
        self.image = Some(mounted.map_err(|e| Failure::advised(Stage::Unpack, format!("the layer's image: {e}")))?);
        // The mount has it, and only the mount.
        fs::remove_file(self.path.join(IMAGE)).map_err(|e| Failure::new(Stage::Unpack, e))
    }
}

impl Drop for LayerDir {
    fn drop(&mut self) {
        drop(self.image.take());
        if let Err(error) = remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a layer's directory can't be removed");
        }
    }
}

/// Removes a tree of any depth. The standard library has each directory open that it is in, and descriptors are few.
fn remove(path: &Path) -> io::Result<()> {
    loop {
        match fs::remove_dir_all(path) {
            Err(e) if e.raw_os_error() == Some(Errno::MFILE.raw_os_error()) => {
                let top = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
                if lift(&top, &top, LEVELS, &mut 0)? == 0 {
                    return Err(e);
                }
            }
            other => return other,
        }
    }
}

/// Moves every directory that is `levels` below `directory` to the top, and tells how many.
fn lift(top: &OwnedFd, directory: &OwnedFd, levels: usize, moved: &mut u64) -> rustix::io::Result<u64> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let below = match rustix::fs::openat(directory, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => continue,
            other => other?,
        };
        if levels > 0 {
            lift(top, &below, levels - 1, moved)?;
            continue;
        }
        // A name that the layer itself has is left to it.
        while let Err(e) = renameat_with(directory, name, top, format!(".lifted-{moved}"), RenameFlags::NOREPLACE) {
            if e != Errno::EXIST {
                return Err(e);
            }
            *moved += 1;
        }
        *moved += 1;
    }
    Ok(*moved)
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Half of what a process may have open by default, since each level takes two descriptors while it is read.
const LEVELS: usize = 200;
const IMAGE: &str = "image";
const TREE: &str = "tree";

#[cfg(test)]
mod tests {
    use super::*;

    fn depth(path: &Path) -> usize {
        let below = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
        below
            .filter(|entry| entry.file_type().unwrap().is_dir())
            .map(|entry| 1 + depth(&entry.path()))
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn a_deep_tree_becomes_a_wide_one() {
        let folder = tempfile::TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("d/".repeat(40))).unwrap();
        fs::create_dir_all(folder.path().join("a/".repeat(25))).unwrap();
        fs::create_dir(folder.path().join(".lifted-1")).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("d/root")).unwrap();
        let top = rustix::fs::open(folder.path(), DIRECTORY, Mode::empty()).unwrap();

        let mut passes = 0;
        while lift(&top, &top, 10, &mut 0).unwrap() > 0 {
            passes += 1;
            assert!(passes < 20);
        }

        assert_eq!(depth(folder.path()), 10);
        remove(folder.path()).unwrap();
        assert!(!folder.path().exists());
    }
}
