//! Files that the host copies into the guest, part by part: they appear whole, in one folder, and nowhere else.

mod versions;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, Gid, Uid, chownat, readlinkat, renameat, symlinkat, unlinkat};
use wire_ttrpc::agent::CopyFileRequest;
use zeroize::Zeroizing;

use crate::beneath::{Beneath, Owner};
use crate::request::FileKind;
use crate::volumes::PASSTHROUGH;

/// The folder for copied files, and the files that have not fully arrived.
pub(crate) struct Copies {
    folder: PathBuf,
    /// On the same file system, and shared with no container.
    incoming: PathBuf,
    uploads: Mutex<HashMap<PathBuf, Arc<Mutex<Upload>>>>,
    names: AtomicU64,
}

impl Copies {
    /// Copies below `<root>/shared/containers`.
    pub(crate) fn below(root: &Path) -> Self {
        let shared = root.join("shared");
        Self {
            folder: shared.join("containers"),
            incoming: shared.join("incoming"),
            uploads: Mutex::default(),
            names: AtomicU64::new(0),
        }
    }

    /// The folder that all copied files are in.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Takes one part of a file, in any order, or a folder or a link.
    ///
    /// What comes back is a file that has arrived whole, and appears once it is put in its place.
    pub(crate) fn receive(&self, request: &CopyFileRequest) -> Result<Option<Arrived>, Error> {
        let path = self.inside(&request.path)?;
        let owner = |mode| -> Result<Owner, Error> {
            let number = |id: i32| u32::try_from(id).map_err(|_| Error::Owner);
            Ok(Owner { uid: number(request.uid)?, gid: number(request.gid)?, mode: mode & MODE })
        };
        let (folders, owner) = (owner(request.dir_mode)?, owner(request.file_mode)?);
        for folder in [&self.folder, &self.incoming] {
            std::fs::create_dir_all(folder).map_err(Error::Write)?;
        }
        match FileKind::of(request) {
            FileKind::Directory => {
                let (parent, name) = self.parent(&path, folders)?;
                let made = Beneath::from(parent).folder(Path::new(&name), owner).map_err(Error::Write)?;
                owner.take(made).map_err(Error::Write)?;
                Ok(None)
            }
            FileKind::Link => self.link(&path, &request.data, folders, owner).map(|()| None),
            FileKind::Regular => {
                let place = Place { path: path.clone(), folders, owner };
                Ok(self.part(path, request)?.map(|staged| Arrived { staged, place }))
            }
            FileKind::Unknown => Err(Error::Kind),
        }
    }

    /// Puts a file in its place, with other content if there is any: whoever reads there sees the old or the new one.
    pub(crate) fn place(&self, arrived: Arrived, content: Option<&[u8]>) -> Result<(), Error> {
        let Arrived { mut staged, place } = arrived;
        if let Some(content) = content {
            let write = |file: &mut File| {
                file.set_len(0)?;
                file.write_all_at(content, 0)
            };
            write(&mut staged.file).map_err(Error::Write)?;
        }
        place.owner.take(&staged.file).map_err(Error::Write)?;
        let (parent, name) = self.parent(&place.path, place.folders)?;
        renameat(&staged.folder, &staged.name, parent, name).map_err(|e| Error::Write(e.into()))?;
        staged.is_placed = true;
        Ok(())
    }

    /// Those of `sources` that lie directly in the folder and are named after the container.
    pub(crate) fn of<'a>(&self, container: &str, sources: impl Iterator<Item = &'a str>) -> Vec<PathBuf> {
        let named = |path: &&Path| {
            let is_own = path.file_name().is_some_and(|name| is_named_after(name, container));
            path.parent() == Some(&self.folder) && is_own
        };
        sources.map(Path::new).filter(named).map(Path::to_owned).collect()
    }

    /// What was copied for a container that has never come to be, whole or in part.
    pub(crate) fn named_after(&self, container: &str) -> Vec<PathBuf> {
        let there = std::fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let mut names: BTreeSet<OsString> = there.collect();
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        names.extend(uploads.keys().filter_map(|path| path.iter().next().map(OsStr::to_owned)));
        names.iter().filter(|name| is_named_after(name, container)).map(|name| self.folder.join(name)).collect()
    }

    /// Removes copied files and folders, and what is on its way there. What is not there is gone already.
    pub(crate) fn remove(&self, paths: &[PathBuf]) {
        let inside: Vec<_> = paths.iter().filter_map(|path| path.strip_prefix(&self.folder).ok()).collect();
        self.uploads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|upload, _| !inside.iter().any(|path| upload.starts_with(path)));
        for path in paths {
            let is_folder = path.symlink_metadata().is_ok_and(|it| it.is_dir());
            match if is_folder { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) } {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a copied file can't be removed");
                }
                _ => {}
            }
        }
    }

    /// Forgets what has not arrived, and removes the rest.
    pub(crate) fn clear(&self) {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).clear();
        for folder in [&self.folder, &self.incoming] {
            match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %folder.display(), %error, "copied files can't be removed");
                }
                _ => {}
            }
        }
        if let Some(shared) = self.folder.parent() {
            // Is not there where nothing was copied.
            let _ = std::fs::remove_dir(shared);
        }
    }

    /// The path below the folder, made of names alone.
    fn inside(&self, path: &str) -> Result<PathBuf, Error> {
        let inside = Path::new(path).strip_prefix(&self.folder).map_err(|_| Error::Path)?;
        let mut names = 0;
        for part in inside.components() {
            let Component::Normal(name) = part else { return Err(Error::Path) };
            // That is where volumes are made.
            if names == 0 && name == PASSTHROUGH {
                return Err(Error::Path);
            }
            names += 1;
        }
        let plain = (1..=MAX_DEPTH).contains(&names) && path.len() <= MAX_PATH && !path.contains('\0');
        plain.then(|| inside.to_owned()).ok_or(Error::Path)
    }

    /// The folder around `path`, made where it is missing, and the last name.
    fn parent(&self, path: &Path, folders: Owner) -> Result<(OwnedFd, OsString), Error> {
        let name = path.file_name().ok_or(Error::Path)?.to_owned();
        let around = path.parent().unwrap_or(Path::new(""));
        let base = Beneath::open(&self.folder).map_err(Error::Write)?;
        Ok((base.folder(around, folders).map_err(Error::Write)?, name))
    }

    fn link(&self, path: &Path, target: &[u8], folders: Owner, owner: Owner) -> Result<(), Error> {
        // What lies directly in the folder is mounted by its name, from outside of any container.
        if path.components().count() < 2 {
            return Err(Error::Link("it lies outside of a folder"));
        }
        // The policy decided on a text.
        let target = std::str::from_utf8(target).map_err(|_| Error::Link("its target is not a text"))?;
        if target.is_empty() || target.len() > MAX_PATH || target.contains('\0') {
            return Err(Error::Link("its target is not a path"));
        }
        let (incoming, staged) = self.stage()?;
        symlinkat(target, &incoming, &staged).map_err(|e| Error::Write(e.into()))?;
        let place = || -> Result<(), Error> {
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let write = |e: rustix::io::Errno| Error::Write(e.into());
            chownat(&incoming, &staged, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(write)?;
            let (parent, name) = self.parent(path, folders)?;
            let before = (name == versions::CURRENT).then(|| readlinkat(&parent, &name, Vec::new()));
            renameat(&incoming, &staged, &parent, &name).map_err(write)?;
            if let Some(Ok(before)) = before {
                versions::remove_outdated(&parent, &before, target);
            }
            Ok(())
        };
        place().inspect_err(|_| {
            let _ = unlinkat(&incoming, &staged, AtFlags::empty());
        })
    }

    fn part(&self, path: PathBuf, request: &CopyFileRequest) -> Result<Option<Staged>, Error> {
        let range = || -> Option<(u64, u64)> {
            let (size, offset) = (u64::try_from(request.file_size).ok()?, u64::try_from(request.offset).ok()?);
            let end = offset.checked_add(u64::try_from(request.data.len()).ok()?)?;
            // Nothing is a part only of an empty file.
            (end <= size && (size == 0 || end > offset)).then_some((size, offset))
        };
        let (size, offset) = range().ok_or(Error::Range)?;
        let upload = {
            let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
            if uploads.len() >= MAX_UPLOADS && !uploads.contains_key(&path) {
                return Err(Error::Full);
            }
            match uploads.get(&path) {
                Some(upload) => Arc::clone(upload),
                None => {
                    let (folder, name) = self.stage()?;
                    let upload = Arc::new(Mutex::new(Upload::new(folder, name, size)?));
                    uploads.insert(path.clone(), Arc::clone(&upload));
                    upload
                }
            }
        };
        let mut upload = upload.lock().unwrap_or_else(PoisonError::into_inner);
        match upload.write(size, offset, &request.data) {
            Ok(false) => return Ok(None),
            Ok(true) => {}
            Err(error) => {
                self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
                return Err(error);
            }
        }
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
        Ok(upload.staged.take())
    }

    /// A name that no other file has.
    fn stage(&self) -> Result<(OwnedFd, String), Error> {
        let folder = File::open(&self.incoming).map_err(Error::Write)?;
        Ok((folder.into(), self.names.fetch_add(1, Ordering::Relaxed).to_string()))
    }
}

/// A file that has arrived whole and is not in its place yet. It goes where it is dropped before.
pub(crate) struct Arrived {
    staged: Staged,
    place: Place,
}

impl Arrived {
    /// The text of the file, if it is a sealed secret.
    pub(crate) fn sealed(&mut self) -> io::Result<Option<Zeroizing<String>>> {
        let mut text = Zeroizing::new(Vec::new());
        self.staged.file.rewind()?;
        (&self.staged.file).take(SEALED.len() as u64).read_to_end(&mut text)?;
        if text.as_slice() != SEALED {
            return Ok(None);
        }
        (&self.staged.file).take(MAX_SEALED).read_to_end(&mut text)?;
        Ok(std::str::from_utf8(&text).ok().map(|text| Zeroizing::new(text.trim_ascii_end().to_owned())))
    }
}

/// Why something can't be copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "copy: the path is not below the folder for shared files; next: use a plain path below /run/kata-containers/shared/containers"
    )]
    Path,
    #[error("copy: only regular files, folders and symbolic links can be copied; next: leave it out")]
    Kind,
    #[error("copy: owner and group must not be negative; next: correct them")]
    Owner,
    #[error("copy: the part lies outside of the file; next: check offset, size and data")]
    Range,
    #[error("copy: the symbolic link is refused: {0}; next: leave it out")]
    Link(&'static str),
    #[error("copy: {MAX_UPLOADS} files are arriving already; next: finish some of them")]
    Full,
    #[error(
        "copy: it can't be written: {0}; next: check that no file is in the way and that the guest has memory left"
    )]
    Write(#[source] io::Error),
}

/// Where a file goes.
struct Place {
    path: PathBuf,
    folders: Owner,
    owner: Owner,
}

/// A file on its way.
struct Staged {
    file: File,
    folder: OwnedFd,
    name: String,
    is_placed: bool,
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_placed {
            let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

struct Upload {
    /// None once it is whole.
    staged: Option<Staged>,
    size: u64,
    /// What has arrived: lengths by offset.
    parts: BTreeMap<u64, u64>,
}

impl Upload {
    fn new(folder: OwnedFd, name: String, size: u64) -> Result<Self, Error> {
        use rustix::fs::{Mode, OFlags, openat};
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(folder.as_fd(), &name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| Error::Write(e.into()))?;
        let staged = Staged { file: file.into(), folder, name, is_placed: false };
        Ok(Self { staged: Some(staged), size, parts: BTreeMap::new() })
    }

    /// Writes a part, and says whether the file is whole.
    fn write(&mut self, size: u64, offset: u64, data: &[u8]) -> Result<bool, Error> {
        let Some(staged) = &self.staged else { return Err(Error::Range) };
        if size != self.size || (offset == 0 && self.parts.contains_key(&0)) {
            // It is sent anew.
            staged.file.set_len(0).map_err(Error::Write)?;
            self.parts.clear();
            self.size = size;
        }
        staged.file.write_all_at(data, offset).map_err(Error::Write)?;
        if self.parts.len() >= MAX_PARTS {
            return Err(Error::Range);
        }
        self.parts.insert(offset, data.len() as u64);
        let mut reached = 0;
        for (offset, length) in &self.parts {
            if *offset > reached {
                return Ok(false);
            }
            reached = reached.max(offset + length);
        }
        Ok(reached >= self.size)
    }
}

/// Whether it has the name of a copy for the container: its id, a digest of where it is mounted, and more. Another id may begin
/// alike.
fn is_named_after(name: &OsStr, container: &str) -> bool {
    let rest = name.to_str().and_then(|name| name.strip_prefix(container)?.strip_prefix('-'));
    let digest = rest.and_then(|rest| rest.split_once('-')).map(|(digest, _)| digest);
    digest.is_some_and(|it| it.len() == DIGEST && it.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Set-user-id bits mean nothing where the files are mounted.
const MODE: u32 = 0o1777;
const SEALED: &[u8] = b"sealed.";
const MAX_SEALED: u64 = 256 << 10;
const MAX_PATH: usize = 4095;
const MAX_DEPTH: usize = 64;
/// Digits.
const DIGEST: usize = 16;
const MAX_UPLOADS: usize = 256;
/// Parts of 64 KiB of a file of 4 GiB.
const MAX_PARTS: usize = 65_536;

#[cfg(test)]
mod tests;
