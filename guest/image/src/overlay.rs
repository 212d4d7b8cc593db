//! The root filesystem of a container: an overlay of read-only layers and a writable directory.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use crate::layer_dir::LayerDir;
use crate::root::{self, Place};

/// A mounted overlay; unmounted, and its writable directory removed, when dropped.
pub(crate) struct Overlay {
    target: PathBuf,
    writable: PathBuf,
    mounted: bool,
}

impl Overlay {
    /// Mounts `layers`, the bottom one first, at `target`. `writable` must not exist yet.
    ///
    /// # Errors
    /// What was being done, and the kernel's answer. Nothing is left behind.
    pub(crate) fn mount(
        layers: &[&LayerDir],
        writable: PathBuf,
        target: PathBuf,
    ) -> Result<Self, (&'static str, io::Error)> {
        let mut overlay = Self { target, writable, mounted: false };
        overlay.create_directories().map_err(|e| ("create directories", e))?;

        let mount = overlay.configure(layers).map_err(|e| ("mount the overlay", e.into()))?;
        restore_metadata(layers, &mount).map_err(|e| ("copy metadata of directories", e.into()))?;
        rustix::mount::move_mount(&mount, "", CWD, &overlay.target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|e| ("attach the overlay", e.into()))?;
        overlay.mounted = true;
        Ok(overlay)
    }

    /// Unmounts at once; processes that still run there keep it until they end.
    pub(crate) fn unmount(mut self) -> Result<(), (&'static str, io::Error)> {
        self.detach().map_err(|e| ("unmount", e))?;
        fs::remove_dir_all(&self.writable).map_err(|e| ("remove the writable directory", e))
    }

    fn create_directories(&self) -> io::Result<()> {
        for directory in [&self.target, &self.writable] {
            fs::create_dir_all(directory)?;
        }
        for name in [UPPER, WORK, EMPTY] {
            fs::create_dir(self.writable.join(name))?;
        }
        Ok(())
    }

    /// Uses the mount API with one `lowerdir+` a layer: the classic call has room for a page of names.
    fn configure(&self, layers: &[&LayerDir]) -> rustix::io::Result<OwnedFd> {
        let filesystem = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&filesystem, "source", "overlay")?;
        for layer in layers.iter().rev() {
            rustix::mount::fsconfig_set_string(&filesystem, "lowerdir+", layer.path())?;
        }
        if layers.is_empty() {
            rustix::mount::fsconfig_set_string(&filesystem, "lowerdir+", self.writable.join(EMPTY))?;
        }
        rustix::mount::fsconfig_set_string(&filesystem, "upperdir", self.writable.join(UPPER))?;
        rustix::mount::fsconfig_set_string(&filesystem, "workdir", self.writable.join(WORK))?;
        // What an image's own attributes say about other places in its layers is not followed.
        rustix::mount::fsconfig_set_string(&filesystem, "redirect_dir", "nofollow")?;
        rustix::mount::fsconfig_set_string(&filesystem, "metacopy", "off")?;
        // The writable directory never outlives the guest, so nothing has to reach a disk.
        rustix::mount::fsconfig_set_flag(&filesystem, "volatile")?;
        rustix::mount::fsconfig_create(&filesystem)?;
        // Whatever device nodes an image holds, none of them opens a device of the guest.
        rustix::mount::fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)
    }

    fn detach(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.mounted) {
            rustix::mount::unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        Ok(())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let outcome = self.detach().and_then(|()| match fs::remove_dir_all(&self.writable) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        });
        if let Err(error) = outcome {
            tracing::warn!(target = %self.target.display(), %error, "an overlay can't be removed");
        }
    }
}

/// Gives the root, and directories that the topmost layer only implies, the owner, mode and times of the layer that
/// has an entry for them. Done through the mount, so that the kernel copies up what is above them.
fn restore_metadata(layers: &[&LayerDir], mount: &OwnedFd) -> rustix::io::Result<()> {
    let opened = layers.iter().map(|layer| open(CWD, layer.path())).collect::<Result<Vec<_>, _>>()?;
    if let Some(index) = layers.iter().rposition(|layer| layer.summary.root) {
        copy_metadata(&opened[index], &rustix::fs::openat(mount, ".", DIRECTORY, Mode::empty())?)?;
    }
    let mut done = std::collections::BTreeSet::new();
    for place in layers.iter().flat_map(|layer| &layer.summary.implied) {
        if layers.len() == 1 || !done.insert(place) {
            continue;
        }
        if let Some(source) = source(place, layers, &opened)? {
            let merged = rustix::fs::openat2(mount, place.as_bytes(), DIRECTORY, Mode::empty(), BENEATH)?;
            copy_metadata(&source, &merged)?;
        }
    }
    Ok(())
}

/// The directory whose metadata `place` should have and does not.
fn source(place: &Place, layers: &[&LayerDir], opened: &[OwnedFd]) -> rustix::io::Result<Option<OwnedFd>> {
    let mut implied = false;
    for (layer, root) in layers.iter().zip(opened).rev() {
        match rustix::fs::openat2(root, place.as_bytes(), DIRECTORY, Mode::empty(), BENEATH) {
            Ok(directory) if !layer.summary.implied.contains(place) => return Ok(implied.then_some(directory)),
            Ok(_) => implied = true,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(e) => return Err(e),
        }
        if hides(root, place)? {
            break;
        }
    }
    Ok(None)
}

/// Whether a layer hides what lower ones have at `place`.
fn hides(layer: &OwnedFd, place: &Place) -> rustix::io::Result<bool> {
    let mut directory = layer.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    for component in place.as_bytes().split(|byte| *byte == b'/') {
        if is_opaque(&directory) {
            return Ok(true);
        }
        match rustix::fs::statat(&directory, component, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if root::file_type(stat.st_mode) != FileType::Directory => return Ok(true),
            Ok(_) => directory = rustix::fs::openat(&directory, component, DIRECTORY, Mode::empty())?,
            Err(Errno::NOENT) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(is_opaque(&directory))
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0; 1];
    rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value).is_ok_and(|_| value == *b"y")
}

fn copy_metadata(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    copy_attributes(from, to)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    rustix::fs::futimens(to, &times(&stat))
}

fn copy_attributes(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let mut names = vec![0; ATTRIBUTES];
    let length = match rustix::fs::flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0; ATTRIBUTES];
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.overlay.") {
            continue;
        }
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as i64 };
    Timestamps { last_access: time, last_modification: time }
}

fn open(at: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(at, path, DIRECTORY, Mode::empty())
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const UPPER: &str = "upper";
const WORK: &str = "work";
const EMPTY: &str = "empty";
/// The kernel bounds the list of names and each value to 64 KiB.
const ATTRIBUTES: usize = 64 << 10;
