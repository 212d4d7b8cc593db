//! Writes a layer's archive into a directory, in the form in which overlayfs stacks it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::archive::{Archive, Entry, Error as ArchiveError, Kind};
use crate::error::{Failure, Stage};
use crate::root::{self, Place, Root};

/// What the upper directory of an overlay must know about a layer.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    /// The archive had an entry for the layer's root.
    pub(crate) root: bool,
    /// Directories without an entry of their own: a lower layer knows their owner and mode.
    pub(crate) implied: BTreeSet<Place>,
}

/// How much one archive may ask of the guest, beyond the bytes that it writes.
pub(crate) struct Limits {
    /// Each entry costs about a kilobyte of kernel memory.
    pub(crate) entries: u64,
    /// Bytes of names in [`Summary::implied`].
    pub(crate) implied: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 2_000_000, implied: 32 << 20 }
    }
}

/// Unpacks a whole archive.
pub(crate) fn unpack(archive: impl BufRead, directory: &Path, limits: Limits) -> Result<Summary, Failure> {
    let root = Root::open(directory).map_err(|e| Failure::new(Stage::Unpack, e))?;
    let mut unpacker = Unpacker {
        archive: Archive::new(archive),
        limits,
        root,
        summary: Summary::default(),
        directories: BTreeMap::new(),
        warned: false,
        implied_bytes: 0,
        remembered_bytes: 0,
    };
    let mut count = 0_u64;
    while let Some(entry) = unpacker.archive.next().map_err(archive_failure)? {
        count += 1;
        if count > unpacker.limits.entries {
            return Err(Failure::new(Stage::Limit, format!("more than {} entries", unpacker.limits.entries)));
        }
        unpacker.add(&entry).map_err(|reason| reason.into_failure(&entry.path))?;
    }
    unpacker.finish_directories()?;
    Ok(unpacker.summary)
}

struct Unpacker<R> {
    archive: Archive<R>,
    limits: Limits,
    root: Root,
    summary: Summary,
    /// Mode and time of directories, set when nothing is added to them any more.
    directories: BTreeMap<Place, (u32, (i64, u32))>,
    warned: bool,
    implied_bytes: usize,
    remembered_bytes: usize,
}

impl<R: BufRead> Unpacker<R> {
    fn add(&mut self, entry: &Entry) -> Result<(), Reason> {
        let place = Place::parse(&entry.path).ok_or(Reason::Forbidden("its name leads out of the layer"))?;
        if place.is_root() {
            return self.add_root(entry);
        }
        let (parent, name) = place.split();
        let parent = self.parent(parent)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return hide(parent.as_fd(), hidden);
        }
        match entry.kind {
            Kind::Directory => self.add_directory(parent.as_fd(), name, &place, entry),
            Kind::File => self.add_file(parent.as_fd(), name, entry),
            Kind::HardLink => self.add_hard_link(&parent, name, entry),
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.contains(&0) {
                    return Err(Reason::Forbidden("its link has no usable target"));
                }
                self.replace(parent.as_fd(), name, || rustix::fs::symlinkat(&entry.link[..], &parent, name))?;
                self.describe_by_name(parent.as_fd(), name, entry)
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                if entry.device.0 > MAX_MAJOR || entry.device.1 > MAX_MINOR {
                    return Err(Reason::Forbidden("its device number is none that the kernel has"));
                }
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                let mode = Mode::from_raw_mode(0o600);
                self.replace(parent.as_fd(), name, || rustix::fs::mknodat(&parent, name, kind, mode, device))?;
                self.describe_by_name(parent.as_fd(), name, entry)
            }
        }
    }

    fn parent(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Reason> {
        let implied = &mut self.summary.implied;
        let parent = self.root.parent(path, &mut |place| {
            self.implied_bytes += place.as_bytes().len() + ENTRY_OVERHEAD;
            implied.insert(place);
        });
        let limit = self.limits.implied;
        if self.implied_bytes > limit {
            let cause = format!("the names of directories without an entry take more than {limit} bytes");
            return Err(Reason::Failure(Failure::new(Stage::Limit, cause)));
        }
        parent.map_err(|error| match error {
            Errno::EXIST | Errno::NOTDIR | Errno::LOOP => {
                Reason::Forbidden("its parent is not a directory inside the layer")
            }
            other => other.into(),
        })
    }

    fn add_root(&mut self, entry: &Entry) -> Result<(), Reason> {
        if entry.kind != Kind::Directory {
            return Err(Reason::Forbidden("it would replace the layer's root"));
        }
        let place = Place::parse(b"").ok_or(Reason::Forbidden("it has no name"))?;
        let directory = self.root.directory(&place)?;
        self.describe_owner_and_attributes(&directory, entry)?;
        self.remember(place, entry)?;
        self.summary.root = true;
        Ok(())
    }

    fn add_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        place: &Place,
        entry: &Entry,
    ) -> Result<(), Reason> {
        match root::make_directory(parent, name) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if root::file_type(stat.st_mode) != FileType::Directory {
                    self.replace(parent, name, || root::make_directory(parent, name))?;
                }
            }
            other => other?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        self.describe_owner_and_attributes(&directory, entry)?;
        self.summary.implied.remove(place);
        self.remember(place.clone(), entry)
    }

    fn add_file(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Reason> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let descriptor =
            self.replace(parent, name, || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600)))?;
        let mut file = File::from(descriptor);
        match &entry.segments {
            None => self.copy(&mut file, entry.size)?,
            Some(segments) => {
                for segment in segments {
                    file.seek(SeekFrom::Start(segment.offset))?;
                    self.copy(&mut file, segment.length)?;
                }
                file.set_len(entry.size)?;
            }
        }
        // The owner first: a change of owner takes set-user-id bits and capabilities away.
        self.describe_owner_and_attributes(file.as_fd(), entry)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        rustix::fs::futimens(&file, &times(entry.mtime))?;
        Ok(())
    }

    fn copy(&mut self, file: &mut File, mut length: u64) -> Result<(), Reason> {
        while length > 0 {
            let data = self.archive.data().map_err(Reason::Archive)?;
            let count = data.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            if count == 0 {
                return Err(Reason::Archive(ArchiveError::Truncated));
            }
            file.write_all(&data[..count])?;
            self.archive.consume(count);
            length -= count as u64;
        }
        Ok(())
    }

    fn add_hard_link(&mut self, parent: &Rc<OwnedFd>, name: &[u8], entry: &Entry) -> Result<(), Reason> {
        let target = Place::parse(&entry.link).filter(|target| !target.is_root());
        let target = target.ok_or(Reason::Forbidden("its hard link leads out of the layer"))?;
        let (directory, target_name) = target.split();
        let missing = Reason::Forbidden("its hard link names a file that the layer does not have");
        let directory = match self.root.resolve(directory) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing),
            other => other?,
        };
        if Place::parse(&entry.path).as_ref() == Some(&target) {
            return Err(Reason::Forbidden("it is a hard link to itself"));
        }
        let link = || rustix::fs::linkat(&directory, target_name, parent, name, AtFlags::empty());
        match self.replace(parent.as_fd(), name, link) {
            Err(Reason::System(e)) if e.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Err(missing),
            other => other,
        }
    }

    /// Makes something, in the place of an earlier entry of the same name if there is one.
    fn replace<T>(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Reason> {
        match make() {
            Err(Errno::EXIST) => {
                match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
                    Err(Errno::ISDIR) => match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                        // Everything that the layer had in it so far goes with it.
                        Err(Errno::NOTEMPTY) => std::fs::remove_dir_all(path_below(parent, name))?,
                        other => other?,
                    },
                    other => other?,
                }
                self.root.forget();
                Ok(make()?)
            }
            other => Ok(other?),
        }
    }

    fn describe_owner_and_attributes(&mut self, file: impl rustix::fd::AsFd, entry: &Entry) -> Result<(), Reason> {
        rustix::fs::fchown(&file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
        for (name, value) in &entry.xattrs {
            allowed(name)?;
            let outcome = rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty());
            self.tolerate(outcome, entry)?;
        }
        Ok(())
    }

    /// Sets what an entry says about something that can't be opened: links, devices, pipes.
    fn describe_by_name(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> Result<(), Reason> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if entry.kind != Kind::Symlink {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        for (key, value) in &entry.xattrs {
            allowed(key)?;
            let outcome = rustix::fs::lsetxattr(path_below(parent, name), &key[..], value, XattrFlags::empty());
            self.tolerate(outcome, entry)?;
        }
        rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// A filesystem without extended attributes takes capabilities away and adds none: worth a warning only.
    fn tolerate(&mut self, outcome: rustix::io::Result<()>, entry: &Entry) -> Result<(), Reason> {
        match outcome {
            Err(Errno::NOTSUP) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let path = String::from_utf8_lossy(&entry.path).escape_debug().to_string();
                    tracing::warn!(%path, "the work directory can't hold extended attributes; they are left out");
                }
                Ok(())
            }
            other => Ok(other?),
        }
    }

    fn remember(&mut self, place: Place, entry: &Entry) -> Result<(), Reason> {
        self.remembered_bytes += place.as_bytes().len() + ENTRY_OVERHEAD;
        self.directories.insert(place, (entry.mode, entry.mtime));
        if self.remembered_bytes > MAX_REMEMBERED {
            self.finish_directories().map_err(Reason::Failure)?;
        }
        Ok(())
    }

    fn finish_directories(&mut self) -> Result<(), Failure> {
        self.remembered_bytes = 0;
        // From the bottom up: a mode may forbid to go further down.
        for (place, (mode, mtime)) in std::mem::take(&mut self.directories).into_iter().rev() {
            let outcome = self.root.directory(&place).and_then(|directory| {
                rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
                rustix::fs::futimens(&directory, &times(mtime))
            });
            match outcome {
                // A later entry took its place.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) | Ok(()) => {}
                Err(e) => return Err(Reason::System(e.into()).into_failure(place.as_bytes())),
            }
        }
        Ok(())
    }
}

/// Why an entry can't be unpacked.
enum Reason {
    Forbidden(&'static str),
    System(io::Error),
    Archive(ArchiveError),
    Failure(Failure),
}

impl Reason {
    fn into_failure(self, path: &[u8]) -> Failure {
        let path: String = String::from_utf8_lossy(path).chars().take(200).flat_map(char::escape_debug).collect();
        match self {
            Self::Forbidden(cause) => Failure::new(Stage::Archive, format!("entry \"{path}\": {cause}")),
            Self::System(error) => {
                // What the work directory can't do, or what no directory could.
                let stage = match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(
                        Errno::NAMETOOLONG | Errno::LOOP | Errno::NOTDIR | Errno::EXIST | Errno::INVAL | Errno::FBIG,
                    ) => Stage::Archive,
                    _ => Stage::Unpack,
                };
                Failure::new(stage, format!("entry \"{path}\": {error}"))
            }
            Self::Archive(error) => archive_failure(error),
            Self::Failure(failure) => failure,
        }
    }
}

impl From<Errno> for Reason {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

fn archive_failure(error: ArchiveError) -> Failure {
    match error {
        ArchiveError::Io(error) => Failure::from_io(error, Stage::Archive),
        other => Failure::new(Stage::Archive, other),
    }
}

/// Hides what lower layers have at a place. What this layer itself has there stays, whatever the order.
fn hide(parent: BorrowedFd<'_>, hidden: &[u8]) -> Result<(), Reason> {
    if hidden == OPAQUE_MARKER {
        return Ok(root::make_opaque(parent, b".")?);
    }
    // Marks of AUFS's own bookkeeping.
    if hidden.starts_with(WHITEOUT) {
        return Ok(());
    }
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(Reason::Forbidden("it hides no usable name"));
    }
    match root::make_whiteout(parent, hidden) {
        Err(Errno::EXIST) => {
            let stat = rustix::fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW)?;
            match root::file_type(stat.st_mode) {
                FileType::Directory => Ok(root::make_opaque(parent, hidden)?),
                _ => Ok(()),
            }
        }
        other => Ok(other?),
    }
}

/// A name in an open directory, for calls that take nothing but a path.
fn path_below(parent: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(OsStr::from_bytes(name))
}

/// Overlayfs's own attributes could redirect a name to any other.
fn allowed(xattr: &[u8]) -> Result<(), Reason> {
    match xattr.starts_with(b"trusted.overlay.") || xattr.contains(&0) {
        true => Err(Reason::Forbidden("it sets an attribute that belongs to overlayfs")),
        false => Ok(()),
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..opq";
/// What the kernel's device numbers have room for; larger ones would name another device.
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;
/// Bounds memory: with more directories, the first ones get their time before all of their entries.
const MAX_REMEMBERED: usize = 16 << 20;
/// What a remembered place costs besides its name.
const ENTRY_OVERHEAD: usize = 64;
