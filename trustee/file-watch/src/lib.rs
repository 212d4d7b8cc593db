//! Tells when files have changed: written, replaced, or reached over another symbolic link than before.
//!
//! Every component of a file's path is followed and watched, links included. Kubernetes replaces mounted secrets by
//! swapping the link `..data`, and a certificate manager may rename a whole folder: both are seen.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

/// Watches files. Call it before the files are read for the first time: then no change is missed.
///
/// A file need not exist yet, and neither must the folders it will lie in.
///
/// # Errors
/// [`Error`] if the system has no watches left, or a path is no path of a file.
pub fn watch(paths: &[PathBuf]) -> Result<Changes, Error> {
    let shared = Arc::new(Shared { happened: Notify::new(), ways: Mutex::new(BTreeSet::new()) });
    let seen = shared.clone();
    let watcher = notify::recommended_watcher(move |event| seen.see(event)).map_err(Error::System)?;
    let mut files = Vec::new();
    for path in paths {
        let absolute = std::path::absolute(path).map_err(|source| Error::Path { path: path.clone(), source })?;
        files.push(absolute);
    }
    let mut changes = Changes { watcher, shared, files };
    changes.follow()?;
    Ok(changes)
}

/// The changes of some files. Watching ends when this is dropped.
pub struct Changes {
    watcher: RecommendedWatcher,
    shared: Arc<Shared>,
    files: Vec<PathBuf>,
}

impl Changes {
    /// Returns once any of the files has changed since the last call, or since [`watch`].
    ///
    /// Many changes at once are told as one, when nothing has happened for 50 ms and at the latest after a second:
    /// a certificate and its key arrive together. It may return where a file's content is the same as before.
    /// Giving up waiting loses nothing.
    pub async fn changed(&mut self) {
        self.shared.happened.notified().await;
        let latest = Instant::now() + BURST;
        let burst = async { while timeout(QUIET, self.shared.happened.notified()).await.is_ok() {} };
        // A burst that is cut off goes on in the next call.
        let cut = timeout_at(latest, burst).await.is_err();
        if cut {
            self.shared.happened.notify_one();
        }
        if let Err(e) = self.follow() {
            tracing::warn!("{e}");
        }
    }

    /// Watches all that lies on the way to the files now.
    fn follow(&mut self) -> Result<(), Error> {
        let (mut ways, mut folders) = (BTreeSet::new(), BTreeSet::new());
        for file in self.files.clone() {
            self.walk(&file, &mut ways, &mut folders)?;
        }
        Ok(())
    }

    /// Goes to a file as the system does. A folder is watched before it is looked into, so that whatever is changed
    /// behind our back is heard of.
    fn walk(
        &mut self,
        file: &Path,
        ways: &mut BTreeSet<PathBuf>,
        folders: &mut BTreeSet<PathBuf>,
    ) -> Result<(), Error> {
        let mut here = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(file).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&name);
            if ways.insert(next.clone()) {
                self.shared.ways.lock().unwrap_or_else(PoisonError::into_inner).insert(next.clone());
            }
            if folders.insert(here.clone()) {
                match self.watcher.watch(&here, RecursiveMode::NonRecursive) {
                    Ok(()) => {}
                    // What lies above it is watched, and tells when it appears; what may not be read, is not watched.
                    Err(e) if is_absent_or_hidden(&e) => {}
                    Err(e) => return Err(Error::Watch { path: here, source: e }),
                }
            }
            let Ok(target) = std::fs::read_link(&next) else {
                here = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Error::Links(file.to_owned()));
            }
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            for name in names(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(name);
            }
        }
        Ok(())
    }
}

/// Why files can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("watching files: {0}; next: raise fs.inotify.max_user_instances")]
    System(notify::Error),
    #[error("watching {}: {source}; next: raise fs.inotify.max_user_watches", path.display())]
    Watch { path: PathBuf, source: notify::Error },
    #[error("watching {path:?}: {source}; next: give the path of a file")]
    Path { path: PathBuf, source: io::Error },
    #[error("watching {}: its symbolic links go in circles; next: correct them", .0.display())]
    Links(PathBuf),
}

struct Shared {
    happened: Notify,
    /// Every file, folder and link that is or was on the way to a file. It grows with each swap of a link, by a path.
    ways: Mutex<BTreeSet<PathBuf>>,
}

impl Shared {
    fn see(&self, event: notify::Result<Event>) {
        let matters = match event {
            // Something was missed: better look once too often.
            Err(_) => true,
            Ok(event) if event.need_rescan() => true,
            Ok(event) => {
                let kind = match event.kind {
                    EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
                    // Whoever writes has not finished; closing the file tells.
                    EventKind::Modify(ModifyKind::Data(_)) => false,
                    _ => true,
                };
                let ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
                kind && event.paths.iter().any(|path| ways.contains(path))
            }
        };
        if matters {
            self.happened.notify_one();
        }
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

fn is_absent_or_hidden(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(e) => {
            matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory)
        }
        _ => false,
    }
}

const QUIET: Duration = Duration::from_millis(50);
const BURST: Duration = Duration::from_secs(1);
/// As the kernel has it.
const MAX_LINKS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    async fn expect_change(changes: &mut Changes) {
        timeout(Duration::from_secs(30), changes.changed()).await.expect("the change was not seen");
    }

    /// Nothing is heard until something that must be heard is.
    async fn expect_nothing_but(changes: &mut Changes, file: &Path) {
        assert!(timeout(Duration::ZERO, changes.changed()).await.is_err());
        fs::write(file, "sentinel").unwrap();
        expect_change(changes).await;
    }

    #[tokio::test]
    async fn a_file_that_is_written_replaced_or_removed_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, draft) = (folder.path().join("tls.crt"), folder.path().join("draft"));
        let mut changes = watch(std::slice::from_ref(&file)).unwrap();

        fs::write(&file, "1").unwrap();
        expect_change(&mut changes).await;
        fs::write(&file, "2").unwrap();
        expect_change(&mut changes).await;
        fs::write(&draft, "3").unwrap();
        fs::rename(&draft, &file).unwrap();
        expect_change(&mut changes).await;
        fs::remove_file(&file).unwrap();
        expect_change(&mut changes).await;
    }

    #[tokio::test]
    async fn a_link_swapped_as_kubernetes_does_is_a_change_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let mount = folder.path();
        for version in ["..1", "..2", "..3"] {
            fs::create_dir(mount.join(version)).unwrap();
            fs::write(mount.join(version).join("tls.crt"), version).unwrap();
        }
        symlink("..1", mount.join("..data")).unwrap();
        symlink("..data/tls.crt", mount.join("tls.crt")).unwrap();
        let file = mount.join("tls.crt");
        let mut changes = watch(std::slice::from_ref(&file)).unwrap();

        for version in ["..2", "..3", "..1"] {
            symlink(version, mount.join("..data_tmp")).unwrap();
            fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
            expect_change(&mut changes).await;
            assert_eq!(fs::read_to_string(&file).unwrap(), version);
            // The file behind the new link is watched from now on.
            fs::write(mount.join(version).join("tls.crt"), version).unwrap();
            expect_change(&mut changes).await;
        }
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_as_a_whole_is_a_change_and_is_watched_further() {
        let folder = tempfile::tempdir().unwrap();
        let [live, old, new] = ["live", "old", "new"].map(|name| folder.path().join(name));
        for path in [&live, &new] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("key"), "k").unwrap();
        }
        let mut changes = watch(&[live.join("key")]).unwrap();

        fs::rename(&live, &old).unwrap();
        fs::rename(&new, &live).unwrap();
        expect_change(&mut changes).await;
        fs::write(live.join("key"), "k2").unwrap();
        expect_change(&mut changes).await;
    }

    #[tokio::test]
    async fn a_folder_that_appears_later_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a/b/key");
        let mut changes = watch(std::slice::from_ref(&file)).unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        expect_change(&mut changes).await;
        fs::write(&file, "k").unwrap();
        expect_change(&mut changes).await;
    }

    #[tokio::test]
    async fn reading_and_neighbours_are_no_change() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, "1").unwrap();
        let mut changes = watch(std::slice::from_ref(&file)).unwrap();
        for _ in 0..10 {
            fs::read(&file).unwrap();
            fs::write(folder.path().join("neighbour"), "n").unwrap();
        }
        expect_nothing_but(&mut changes, &file).await;
    }

    #[test]
    fn links_in_circles_are_named() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        let error = watch(&[folder.path().join("a")]).err().unwrap();
        assert!(matches!(error, Error::Links(_)), "{error}");
    }
}
