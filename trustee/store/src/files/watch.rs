//! Hears through inotify of files that are written, replaced or removed, by whomever.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::atomic::is_draft;
use super::make_folder;
use crate::changes::Bell;
use crate::error::Error;

pub(super) struct Watch {
    watcher: Mutex<RecommendedWatcher>,
    up: Arc<AtomicBool>,
    /// The folder of the namespaces' folders; nothing where namespaces are files.
    folders: Option<PathBuf>,
}

impl Watch {
    /// For a folder of folders: each is watched from its first follower on.
    pub fn folders(directory: &Path, bell: Arc<Bell>) -> Result<Self, Error> {
        // A file's namespace is the folder it lies in.
        Self::new(bell, Some(directory.to_owned()), |path| path.parent()?.file_name()?.to_str())
    }

    /// For a folder of files.
    pub fn files(directory: &Path, bell: Arc<Bell>) -> Result<Self, Error> {
        make_folder(directory)?;
        let watch = Self::new(bell, None, |path| path.file_name()?.to_str())?;
        watch.add(directory)?;
        Ok(watch)
    }

    /// Watches the folder of a namespace, made where there is none yet.
    pub fn follow(&self, namespace: &str) {
        let Some(folders) = &self.folders else { return };
        let folder = folders.join(namespace);
        if let Err(error) = make_folder(&folder).and_then(|()| self.add(&folder)) {
            tracing::error!(%error, folder = %folder.display(), "changes of files will not be noticed");
            self.up.store(false, Ordering::Relaxed);
        }
    }

    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    fn new(
        bell: Arc<Bell>,
        folders: Option<PathBuf>,
        namespace: impl Fn(&Path) -> Option<&str> + Send + 'static,
    ) -> Result<Self, Error> {
        let up = Arc::new(AtomicBool::new(true));
        let state = up.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            // Some events were lost.
            Ok(event) if event.need_rescan() => bell.ring_all(),
            Ok(event) if is_change(&event.kind) => {
                for path in event.paths.iter().filter(|path| !is_draft(path)) {
                    if let Some(namespace) = namespace(path) {
                        bell.ring(namespace);
                    }
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "changes of files are not noticed any more");
                state.store(false, Ordering::Relaxed);
            }
        })?;
        Ok(Self { watcher: Mutex::new(watcher), up, folders })
    }

    fn add(&self, folder: &Path) -> Result<(), Error> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(watcher.watch(folder, RecursiveMode::NonRecursive)?)
    }
}

/// A file counts when its writer has closed it. A link may be made with its content.
fn is_change(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Create(_)
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Access(AccessKind::Close(AccessMode::Write))
    )
}
