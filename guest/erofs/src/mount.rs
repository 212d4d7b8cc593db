//! From an image in a file to a mounted directory, and back.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use device_mapper::{Mapping, Target};
use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};

use crate::loop_device::LoopDevice;
use crate::verity::{VerityError, VerityRoot};

/// Mounts an EROFS image read-only on `target`, which is made if it is missing.
///
/// With `verity`, every block that is read is checked against the root hash: a changed one reads as EIO. Without,
/// whoever can write to the image decides what is read. The image may be unlinked once it is mounted.
///
/// # Errors
/// [`Error`]; nothing is left behind but `target`.
pub fn mount(image: &Path, verity: Option<&VerityRoot>, target: &Path) -> Result<MountedImage, Error> {
    let failed = |action| move |cause: io::Error| Error::System { action, cause };
    let file = File::open(image).map_err(failed("open it"))?;
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, MAGIC_AT).map_err(|_| Error::Foreign)?;
    if magic != MAGIC {
        return Err(Error::Foreign);
    }
    fs::create_dir_all(target).map_err(failed("make its mount point"))?;
    // What is mounted keeps the device: it is needed here until then.
    let device = LoopDevice::attach(&file).map_err(failed("make a loop device of it"))?;
    let mapping = match verity {
        None => None,
        Some(root) => {
            let table = root.table(&file, device.path())?;
            let name = format!("layer-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Some(Mapping::open(&name, &[Target::Verity(table)], true)?)
        }
    };
    let source = mapping.as_ref().map_or(device.path(), Mapping::path);
    attach(source, target).map_err(|e| failed("mount it")(e.into()))?;
    Ok(MountedImage { target: target.to_owned(), _mapping: mapping })
}

/// A mounted EROFS image; unmounted when dropped, and its devices go as soon as nobody uses them.
#[derive(Debug)]
pub struct MountedImage {
    target: PathBuf,
    /// Goes after the mount.
    _mapping: Option<Mapping>,
}

impl MountedImage {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for MountedImage {
    fn drop(&mut self) {
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if let Err(error) = rustix::mount::unmount(&self.target, flags) {
            tracing::warn!(target = %self.target.display(), %error, "a layer's image can't be unmounted");
        }
    }
}

/// Why an EROFS image can't be mounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("it is no EROFS image; next: convert the image again, or give the layer the media type that it has")]
    Foreign,
    /// The hash tree can't be used.
    #[error(transparent)]
    Verity(#[from] VerityError),
    /// The verified device can't be made.
    #[error(transparent)]
    DeviceMapper(#[from] device_mapper::Error),
    /// The system refused.
    #[error("the kernel can't {action}: {cause}; next: use a guest image with the modules erofs and loop")]
    System {
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        cause: io::Error,
    },
}

fn attach(source: &Path, target: &Path) -> rustix::io::Result<()> {
    let filesystem = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&filesystem, "source", source)?;
    rustix::mount::fsconfig_set_flag(&filesystem, "ro")?;
    rustix::mount::fsconfig_create(&filesystem)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    let mount = rustix::mount::fsmount(&filesystem, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

static NEXT: AtomicU64 = AtomicU64::new(0);
/// Where the superblock begins with its magic number.
const MAGIC_AT: u64 = 1024;
const MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
