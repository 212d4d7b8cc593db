//! Copies files and folders of the host into a guest, in pieces, and again whenever Kubernetes changes them.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, spawn_blocking};
use wire_ttrpc::agent::CopyFileRequest;

use crate::Error;
use crate::guest::Guest;
use crate::volumes::Copied;

/// Copies what a container's mounts need, and keeps watched folders up to date until the watchers are dropped.
///
/// # Errors
/// [`Error::Volume`] where the host's files can't be read, and those of a request.
pub(crate) async fn copy_all(guest: &Guest, copies: Vec<Copied>) -> Result<Vec<Watcher>, Error> {
    let mut watchers = Vec::new();
    for copy in copies {
        // Watched before it is read, so that no change is missed.
        let watch = copy.watched.then(|| Watch::on(&copy.source)).transpose()?;
        copy_tree(guest, &copy).await?;
        watchers.extend(watch.map(|watch| watch.follow(guest.clone(), copy)));
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

/// Copies a file, or a folder with all that is in it: folders first, links last, so that a link that Kubernetes swaps never
/// leads to what isn't there yet.
async fn copy_tree(guest: &Guest, copy: &Copied) -> Result<(), Error> {
    let (source, target) = (copy.source.clone(), copy.target.clone());
    let found = spawn_blocking(move || Tree::read(&source, &target)).await??;
    for folder in found.folders {
        guest.copy_file(folder).await?;
    }
    stream::iter(found.files).map(Ok).try_for_each_concurrent(FILES, |file| send(guest, file)).await?;
    for link in found.links {
        guest.copy_file(link).await?;
    }
    Ok(())
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
#[derive(Default)]
struct Tree {
    folders: Vec<CopyFileRequest>,
    files: Vec<Source>,
    links: Vec<CopyFileRequest>,
}

/// A regular file, and the request for its pieces.
struct Source {
    path: PathBuf,
    request: CopyFileRequest,
}

impl Tree {
    fn len(&self) -> usize {
        self.folders.len() + self.files.len() + self.links.len()
    }

    fn read(source: &Path, target: &str) -> Result<Self, Error> {
        let mut tree = Self::default();
        // What the mount names may be a link itself; what is mounted is what it leads to.
        let source = fs::canonicalize(source).map_err(unreadable(source))?;
        tree.add(&source, target)?;
        Ok(tree)
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
                if name == "..data_tmp" {
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

/// A folder whose changes are heard of.
struct Watch {
    changed: Arc<Notify>,
    _watcher: RecommendedWatcher,
}

impl Watch {
    fn on(folder: &Path) -> Result<Self, Error> {
        let failed = |error: notify::Error| Error::Volume { path: folder.to_owned(), reason: error.to_string() };
        let changed = Arc::new(Notify::new());
        let teller = Arc::clone(&changed);
        // All changes that come while one is copied are one.
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if event.is_ok_and(|event| is_change(&event.kind)) {
                teller.notify_one();
            }
        })
        .map_err(failed)?;
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { changed, _watcher: watcher })
    }

    fn follow(self, guest: Guest, copy: Copied) -> Watcher {
        Watcher(tokio::spawn(async move {
            // All of it: the watch ends with the part that isn't named below.
            let watch = self;
            loop {
                watch.changed.notified().await;
                match copy_tree(&guest, &copy).await {
                    Ok(()) => tracing::debug!(volume = %copy.source.display(), "copied again"),
                    // Where it changed meanwhile, the next change is on its way.
                    Err(error) => tracing::warn!(volume = %copy.source.display(), %error, "not copied again"),
                }
            }
        }))
    }
}

/// Something new is there. What goes away stays in the guest, and reading is no change.
fn is_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Create(_) | EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        EventKind::Modify(ModifyKind::Name(mode)) => *mode != RenameMode::From,
        _ => false,
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
const FOLDER_MODE: u32 = 0o040_755;
