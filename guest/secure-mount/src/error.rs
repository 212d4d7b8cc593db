//! Why a volume was not mounted or released.

use std::io;
use std::path::PathBuf;

/// Names the stage, the cause and what to do next; never holds a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option that does not exist.
    #[error("volume request: there is no option {key:?}; next: {}", nearest.as_ref().map_or_else(|| format!("use those of: {}", crate::request::OPTIONS.join(", ")), |nearest| format!("did you mean {nearest:?}?")))]
    UnknownOption {
        /// As the request has it.
        key: String,
        /// The option that looks most like it.
        nearest: Option<&'static str>,
    },
    /// An option that is needed.
    #[error("volume request: the option {0} is missing; next: add it")]
    MissingOption(&'static str),
    /// A value that the option does not have.
    #[error("volume request: {option} is {found:?}; next: use {allowed}")]
    Value {
        /// The option.
        option: &'static str,
        /// As the request has it, cut.
        found: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A kind of volume that upstream knows and this guest does not.
    #[error("volume request: {what} {found:?} is not supported; next: use {supported}")]
    Unsupported {
        /// The option.
        what: &'static str,
        /// Its value, cut.
        found: String,
        /// What there is.
        supported: &'static str,
    },
    /// A mount flag that does not exist, or has no meaning for a raw device.
    #[error(
        "volume request: {0:?} is no flag of this mount; next: use ro, rw, noexec, nosuid, nodev, noatime, relatime, strictatime, nodiratime, sync, dirsync, lazytime; for a raw device ro or rw"
    )]
    Flag(String),
    /// An option of `mke2fs` that is not there, or a value that it can't have.
    #[error(
        "volume request: mkfsOpts has {0:?}, which is not followed; next: use -I 128 or 256, -i from 4096 on, -L, -m up to 50, -O has_journal or ^has_journal"
    )]
    MkfsOption(String),
    /// A mount point that is not usable.
    #[error("volume request: the mount point {path} {reason}; next: choose another one", path = path.display())]
    MountPoint {
        /// As the request has it.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A mount point that has another volume.
    #[error("volume request: {path} has another volume already; next: unmount it first, or choose another mount point", path = .0.display())]
    Conflict(PathBuf),
    /// A device that another volume is on.
    #[error("volume device: {path} is in use; next: unmount what is on it, or choose another device", path = .0.display())]
    InUse(PathBuf),
    /// A device that is not there, or is none.
    #[error("volume device: {what} can't be found: {reason}; next: check that the disk is attached to the guest")]
    Device {
        /// The number or path.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A new volume under a key, on a device that has one already.
    #[error("volume device: {path} has a LUKS header, and would lose its data; next: use sourceType \"encrypted\", or overwrite the first MiB of the disk", path = .0.display())]
    Occupied(PathBuf),
    /// A volume with a header is opened by a key.
    #[error("volume key: sourceType \"encrypted\" needs one; next: add the option key")]
    KeyMissing,
    /// The request names a key, and whoever passed it on did not get it.
    #[error("volume key: the request names one that was not fetched; next: fetch it before")]
    KeyNotFetched,
    /// The volume is not of the kind that the request demands.
    #[error(
        "volume header: dataIntegrity is {asked} in the request, and {found} on the disk; next: correct the request, and be wary of the disk if it was right"
    )]
    Integrity {
        /// What the request says.
        asked: bool,
        /// What the volume is.
        found: bool,
    },
    /// The key slot needs more memory than is there.
    #[error(
        "volume key: its Argon2 needs {needed} KiB of memory, and {available} are left; next: give the guest more, or convert the key slot to pbkdf2 (cryptsetup luksConvertKey)"
    )]
    Memory {
        /// KiB.
        needed: u64,
        /// KiB.
        available: u64,
    },
    /// The header or the key was refused.
    #[error(transparent)]
    Header(#[from] wire::luks2::Error),
    /// The kernel's device mapper refused.
    #[error(transparent)]
    Mapping(#[from] device_mapper::Error),
    /// A file, folder or device could not be used.
    #[error("volume: {path} can't be {done}: {cause}; next: check the disk and the kernel's log", path = path.display())]
    Io {
        /// What was attempted, as a participle.
        done: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        cause: io::Error,
    },
    /// The file system could not be made.
    #[error("volume file system: {0}")]
    Mkfs(#[from] ext4::Error),
    /// The file system could not be mounted.
    #[error("volume file system: it can't be mounted on {path}: {cause}; next: check that the volume holds ext4, and see the kernel's log", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// Nothing was mounted there by this process.
    #[error("volume: nothing is mounted on {path}; next: check the mount point", path = .0.display())]
    NotMounted(PathBuf),
    /// Somebody has files open.
    #[error("volume: {path} is in use; next: end the processes that have files open there, and unmount again", path = .0.display())]
    Busy(PathBuf),
    /// Somebody has files open on a volume, and all were to be released.
    #[error("volume: {path} is still in use, and goes with the last process that has files open there; next: end containers before the guest's services", path = .0.display())]
    LeftInUse(PathBuf),
    /// The guest is about to end, or its runtime is shutting down.
    #[error("volume: the guest is shutting down")]
    Ended,
}

impl Error {
    pub(crate) fn io(done: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |cause| Self::Io { done, path, cause }
    }
}
