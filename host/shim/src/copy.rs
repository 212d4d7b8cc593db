//! Copies files and folders of the host into a guest, in pieces, and again whenever Kubernetes changes them.

mod watch;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::task::{JoinHandle, spawn_blocking};
use wire_ttrpc::agent::CopyFileRequest;

use crate::Error;
use crate::guest::Guest;
use crate::volumes::Copied;
use watch::{Changes, FOLDERS};

/// Copies what a container's mounts need, and keeps watched folders up to date until the watchers are dropped.
///
/// # Errors
/// [`Error::Volume`] where the host's files can't be read, and those of a request.
pub(crate) async fn copy_all(guest: &Guest, copies: Vec<Copied>) -> Result<Vec<Watcher>, Error> {
    let mut watchers = Vec::new();
    for copy in copies {
        // Watched before it is read, so that no change is missed.
        let changes = copy.watched.then(|| FOLDERS.changes(&copy.source));
        let copied = copy_tree(guest, &copy, None).await?;
        watchers.extend(changes.map(|changes| Watcher(tokio::spawn(follow(changes, guest.clone(), copy, copied)))));
    }
    Ok(watchers)
}

/// A watched folder. Dropping it ends the watch.
pub(crate) struct Watcher(JoinHandle<()>);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(mut changes: Changes, guest: Guest, copy: Copied, copied: Tree) {
    let mut copied = Some(copied);
    loop {
        changes.next().await;
        copied = match copy_tree(&guest, &copy, copied).await {
            Ok(tree) => {
                tracing::debug!(volume = %copy.source.display(), "copied again");
                Some(tree)
            }
            Err(error) => {
                // Where it changed meanwhile, the next change is on its way.
                tracing::warn!(volume = %copy.source.display(), %error, "not copied again");
                None
            }
        }
    }
}

/// Copies a file, or a folder with all that is in it: folders first, links last, so that a link that Kubernetes swaps never
/// leads to what isn't there yet. The same version of a volume is not sent twice: the guest may have to open each sealed secret.
async fn copy_tree(guest: &Guest, copy: &Copied, copied: Option<Tree>) -> Result<Tree, Error> {
    let copy = copy.clone();
    let found = spawn_blocking(move || Tree::read(&copy)).await??;
    if found.current.is_some() && copied.is_some_and(|copied| copied == found) {
        return Ok(found);
    }
    for folder in found.folders.clone() {
        guest.copy_file(folder).await?;
    }
    stream::iter(found.files.clone()).map(Ok).try_for_each_concurrent(FILES, |file| send(guest, file)).await?;
    for link in found.links.clone() {
        guest.copy_file(link).await?;
    }
    Ok(found)
}

/// Sends a file piece by piece, in order: the guest takes a file for whole when it has its size. The next piece is read while
/// the guest takes this one.
async fn send(guest: &Guest, file: Source) -> Result<(), Error> {
    let Source { path, request } = file;
    let size = request.file_size as u64;
    let file = match File::open(&path) {
        Err(error) if is_gone(&error) => return Ok(()),
        file => file.map_err(unreadable(&path))?,
    };
    let mut pieces = Pieces { file, left: size };
    let mut offset = 0;
    let mut piece;
    (pieces, piece) = pieces.next(&path).await?;
    loop {
        let length = piece.len() as u64;
        let part = CopyFileRequest { offset: offset as i64, data: piece, ..request.clone() };
        offset += length;
        if offset >= size {
            return guest.copy_file(part).await.map(drop);
        }
        ((pieces, piece), _) = tokio::try_join!(pieces.next(&path), guest.copy_file(part))?;
    }
}

/// A file that is read piece by piece.
struct Pieces {
    file: File,
    left: u64,
}

impl Pieces {
    async fn next(self, path: &Path) -> Result<(Self, Vec<u8>), Error> {
        let Self { mut file, left } = self;
        let wanted = left.min(PIECE);
        let read = spawn_blocking(move || {
            let mut piece = Vec::with_capacity(wanted as usize);
            (&mut file).take(wanted).read_to_end(&mut piece).map(|_| (file, piece))
        });
        let (file, piece) = read.await?.map_err(unreadable(path))?;
        if piece.len() as u64 == wanted {
            return Ok((Self { file, left: left - wanted }, piece));
        }
        let reason = "it became shorter while it was copied; next: create the container again".to_owned();
        Err(Error::Volume { path: path.to_owned(), reason })
    }
}

/// What a file or folder of the host consists of.
#[derive(Default, PartialEq)]
struct Tree {
    folders: Vec<CopyFileRequest>,
    files: Vec<Source>,
    links: Vec<CopyFileRequest>,
    current: Option<Current>,
}

/// The version of a volume that is in use: Kubernetes puts each into a folder of its own, and swaps the link that leads there.
#[derive(PartialEq)]
struct Current {
    volume: PathBuf,
    version: OsString,
}

impl Current {
    fn of(volume: &Path) -> Option<Self> {
        let version = fs::read_link(volume.join(LINK)).ok()?.into_os_string();
        let is_version = version.as_bytes().starts_with(b"..") && !version.as_bytes().contains(&b'/');
        is_version.then(|| Self { volume: volume.to_owned(), version })
    }

    /// Whether this is a version on its way in or out. The guest removes one when its link is swapped, and must not get it again.
    fn excludes(&self, folder: &Path, name: &OsStr) -> bool {
        folder == self.volume && name.as_bytes().starts_with(b"..") && name != LINK && name != self.version
    }
}

/// A regular file, and the request for its pieces.
#[derive(Clone, PartialEq)]
struct Source {
    path: PathBuf,
    request: CopyFileRequest,
}

impl Tree {
    fn len(&self) -> usize {
        self.folders.len() + self.files.len() + self.links.len()
    }

    fn read(copy: &Copied) -> Result<Self, Error> {
        // What the mount names may be a link itself; what is mounted is what it leads to.
        let source = fs::canonicalize(&copy.source).map_err(unreadable(&copy.source))?;
        let current = || copy.watched.then(|| Current::of(&source)).flatten();
        for _ in 0..READS {
            let mut tree = Self { current: current(), ..Self::default() };
            tree.add(&source, &copy.target)?;
            // Otherwise the link that was read may lead to a version that wasn't.
            if tree.current == current() {
                return Ok(tree);
            }
        }
        Err(Error::Volume {
            path: source,
            reason: "it changes all the time; next: create the container again".to_owned(),
        })
    }

    fn add(&mut self, source: &Path, target: &str) -> Result<(), Error> {
        let metadata = match fs::symlink_metadata(source) {
            Err(error) if is_gone(&error) => return Ok(()),
            metadata => metadata.map_err(unreadable(source))?,
        };
        if self.len() == MOST {
            let reason = format!("it has more than {MOST} files; next: put them into the image, or on a disk");
            return Err(Error::Volume { path: source.to_owned(), reason });
        }
        let request = CopyFileRequest {
            path: target.to_owned(),
            file_mode: metadata.mode(),
            dir_mode: FOLDER_MODE,
            uid: metadata.uid() as i32,
            gid: metadata.gid() as i32,
            ..CopyFileRequest::default()
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            let entries = match fs::read_dir(source) {
                Err(error) if is_gone(&error) => return Ok(()),
                entries => entries.map_err(unreadable(source))?,
            };
            self.folders.push(request);
            for entry in entries {
                let entry = entry.map_err(unreadable(source))?;
                let name = entry.file_name();
                // Kubernetes' draft of a link: there for a moment only.
                if name == "..data_tmp" || self.current.as_ref().is_some_and(|it| it.excludes(source, &name)) {
                    continue;
                }
                let Some(name) = name.to_str() else {
                    tracing::warn!(path = %entry.path().display(), "not copied: its name is no text");
                    continue;
                };
                self.add(&entry.path(), &format!("{target}/{name}"))?;
            }
        } else if kind.is_file() {
            let size = i64::try_from(metadata.len()).unwrap_or(i64::MAX);
            self.files
                .push(Source { path: source.to_owned(), request: CopyFileRequest { file_size: size, ..request } });
        } else if kind.is_symlink() {
            let data = match fs::read_link(source) {
                Err(error) if is_gone(&error) => return Ok(()),
                leads => leads.map_err(unreadable(source))?.as_os_str().as_bytes().to_vec(),
            };
            self.links.push(CopyFileRequest { file_size: data.len() as i64, data, ..request });
        } else {
            tracing::warn!(path = %source.display(), "not copied: neither file, folder nor link");
        }
        Ok(())
    }
}

/// Kubernetes has changed the volume since it was listed, and that is another change to hear of.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |error| Error::Volume { path: path.clone(), reason: format!("it can't be read: {error}") }
}

/// A quarter of a ttrpc frame.
const PIECE: u64 = 1 << 20;
/// A volume of Kubernetes' own has some tens; a folder of the host's that has more is none that a guest needs in its memory.
const MOST: usize = 10_000;
/// Files that are on their way at once.
const FILES: usize = 8;
/// The link to the version of a volume that is in use.
const LINK: &str = "..data";
/// How often a volume may change while it is read. It changes once a minute at most.
const READS: usize = 5;
const FOLDER_MODE: u32 = 0o040_755;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_version_in_use_is_copied() {
        let volume = tempfile::tempdir().unwrap();
        for version in ["..1", "..2", "..3"] {
            fs::create_dir(volume.path().join(version)).unwrap();
            fs::write(volume.path().join(version).join("key"), version).unwrap();
        }
        symlink("..2", volume.path().join("..data")).unwrap();
        symlink("..3", volume.path().join("..data_tmp")).unwrap();
        symlink("..data/key", volume.path().join("key")).unwrap();
        let paths = |watched: bool| {
            let copy = Copied { source: volume.path().to_owned(), target: "/t".to_owned(), watched };
            let tree = Tree::read(&copy).unwrap();
            let folders = tree.folders.iter().chain(&tree.links).chain(tree.files.iter().map(|it| &it.request));
            let mut paths: Vec<_> = folders.map(|it| it.path.clone()).collect();
            paths.sort_unstable();
            paths
        };
        assert_eq!(paths(true), ["/t", "/t/..2", "/t/..2/key", "/t/..data", "/t/key"]);
        let read = || Tree::read(&Copied { source: volume.path().to_owned(), target: "/t".to_owned(), watched: true });
        let before = read().unwrap();
        assert!(before == read().unwrap());
        symlink("..data/more", volume.path().join("more")).unwrap();
        assert!(before != read().unwrap(), "a link to a new key is missed");
        fs::remove_file(volume.path().join("more")).unwrap();
        // A folder of the host's own is taken as it is.
        assert_eq!(paths(false).len(), 9);
        // Where nothing says which is in use, all may be.
        fs::remove_file(volume.path().join("..data")).unwrap();
        symlink("/elsewhere", volume.path().join("..data")).unwrap();
        assert_eq!(paths(true).len(), 9);
    }
}
