//! Hears of changes in folders through one inotify instance for the whole process: a user has 128 of them for all pods of a node.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::sync::Notify;
use tokio::time::sleep;

/// The folders of this process's containers.
pub(super) static FOLDERS: Folders = Folders::new(|| inotify::init(CreateFlags::CLOEXEC), MINUTE);

/// Folders whose changes are heard of.
pub(super) struct Folders {
    instance: fn() -> rustix::io::Result<OwnedFd>,
    /// How long a change may go unnoticed where it can't be heard of.
    period: Duration,
    warned: AtomicBool,
    watches: Mutex<Watches>,
}

#[derive(Default)]
struct Watches {
    instance: Option<Arc<OwnedFd>>,
    /// Who is to be told, by the kernel's number for the folder: however many paths lead to it, it has one.
    listeners: BTreeMap<i32, Vec<Arc<Notify>>>,
}

impl Folders {
    const fn new(instance: fn() -> rustix::io::Result<OwnedFd>, period: Duration) -> Self {
        let watches = Watches { instance: None, listeners: BTreeMap::new() };
        Self { instance, period, warned: AtomicBool::new(false), watches: Mutex::new(watches) }
    }

    /// Hears of what changes in a folder from now on, until what comes back is dropped.
    pub(super) fn changes(&'static self, folder: &Path) -> Changes {
        let heard = self.hear(folder);
        if let Err(error) = &heard
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                folder = %folder.display(), %error,
                "volumes can't be watched, and are copied again every {} s; next: raise fs.inotify.max_user_instances and \
                 fs.inotify.max_user_watches",
                self.period.as_secs()
            );
        }
        Changes { folders: self, folder: folder.to_owned(), heard: heard.ok() }
    }

    fn hear(&'static self, folder: &Path) -> io::Result<Heard> {
        // Held until the listener is there: what the kernel tells meanwhile waits.
        let mut watches = self.watches();
        let instance = match &watches.instance {
            Some(instance) => Arc::clone(instance),
            None => {
                let instance = Arc::new((self.instance)()?);
                let ear = Arc::clone(&instance);
                std::thread::Builder::new().name("volumes".to_owned()).spawn(move || self.listen(&ear))?;
                watches.instance = Some(Arc::clone(&instance));
                instance
            }
        };
        let number = inotify::add_watch(&instance, folder, CHANGES)?;
        let changed = Arc::new(Notify::new());
        watches.listeners.entry(number).or_default().push(Arc::clone(&changed));
        Ok(Heard { folders: self, number, changed })
    }

    /// Tells listeners for as long as the process lives.
    fn listen(&self, instance: &OwnedFd) {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(instance, &mut buffer);
        loop {
            match events.next() {
                Ok(event) => self.tell(event.wd(), event.events()),
                Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "changes of volumes are no longer heard of; next: start the pod again");
                    return;
                }
            }
        }
    }

    fn tell(&self, number: i32, event: ReadFlags) {
        let mut watches = self.watches();
        if event.contains(ReadFlags::QUEUE_OVERFLOW) {
            // Nobody knows whose were lost.
            watches.listeners.values().flatten().for_each(|listener| listener.notify_one());
        } else if event.contains(ReadFlags::IGNORED) {
            // The folder is gone, or its last listener.
            watches.listeners.remove(&number);
        } else if let Some(listeners) = watches.listeners.get(&number) {
            listeners.iter().for_each(|listener| listener.notify_one());
        }
    }

    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The changes of a folder. What changes between two calls is told by the second, once.
pub(super) struct Changes {
    folders: &'static Folders,
    folder: PathBuf,
    heard: Option<Heard>,
}

impl Changes {
    /// Returns when something may have changed.
    pub(super) async fn next(&mut self) {
        match &self.heard {
            Some(heard) => heard.changed.notified().await,
            None => {
                sleep(self.folders.period).await;
                // Others may have given theirs back.
                self.heard = self.folders.hear(&self.folder).ok();
            }
        }
    }
}

struct Heard {
    folders: &'static Folders,
    number: i32,
    changed: Arc<Notify>,
}

impl Drop for Heard {
    fn drop(&mut self) {
        let mut watches = self.folders.watches();
        let Some(listeners) = watches.listeners.get_mut(&self.number) else { return };
        listeners.retain(|listener| !Arc::ptr_eq(listener, &self.changed));
        if listeners.is_empty() {
            watches.listeners.remove(&self.number);
            if let Some(instance) = &watches.instance {
                // Fails where the folder has just gone.
                let _ = inotify::remove_watch(instance, self.number);
            }
        }
    }
}

/// Something new is there. What goes away stays in the guest, and reading is no change.
const CHANGES: WatchFlags =
    WatchFlags::CREATE.union(WatchFlags::CLOSE_WRITE).union(WatchFlags::MOVED_TO).union(WatchFlags::ONLYDIR);
const MINUTE: Duration = Duration::from_secs(60);
/// Some tens of events, each with a name.
const BUFFER: usize = 4096;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::AtomicUsize;

    use tokio::time::timeout;

    use super::*;

    async fn told(changes: &mut Changes) {
        timeout(Duration::from_secs(30), changes.next()).await.expect("no change is heard of");
    }

    #[tokio::test]
    async fn one_instance_serves_all_folders() {
        static INSTANCES: AtomicUsize = AtomicUsize::new(0);
        static FOLDERS: Folders = Folders::new(
            || {
                INSTANCES.fetch_add(1, Ordering::Relaxed);
                inotify::init(CreateFlags::CLOEXEC)
            },
            MINUTE,
        );
        let lab = tempfile::tempdir().unwrap();
        let [config, token, alias] = ["config", "token", "alias"].map(|name| lab.path().join(name));
        fs::create_dir(&config).unwrap();
        fs::create_dir(&token).unwrap();
        symlink(&config, &alias).unwrap();
        let numbers = || FOLDERS.watches().listeners.len();

        let (mut of_config, mut of_token) = (FOLDERS.changes(&config), FOLDERS.changes(&token));
        let mut of_alias = FOLDERS.changes(&alias);
        assert_eq!((INSTANCES.load(Ordering::Relaxed), numbers()), (1, 2));
        assert!([&of_config, &of_token, &of_alias].iter().all(|it| it.heard.is_some()));

        fs::write(config.join("draft"), "x").unwrap();
        told(&mut of_config).await;
        told(&mut of_alias).await;
        // Who still listens to the same folder goes on hearing of it.
        drop(of_alias);
        fs::rename(config.join("draft"), config.join("final")).unwrap();
        told(&mut of_config).await;

        // Reading and removing are none, and neither is what happens elsewhere.
        fs::write(token.join("key"), "x").unwrap();
        told(&mut of_token).await;
        drop(of_config);
        assert_eq!(numbers(), 1);
        fs::write(config.join("more"), "x").unwrap();

        // The folder's number goes with it.
        let mut next = FOLDERS.changes(&config);
        fs::remove_dir_all(&token).unwrap();
        symlink("more", config.join("link")).unwrap();
        told(&mut next).await;
        assert_eq!(numbers(), 1);
        drop((next, of_token));
        assert_eq!((INSTANCES.load(Ordering::Relaxed), numbers()), (1, 0));
    }

    #[tokio::test]
    async fn what_can_t_be_watched_is_looked_at_again_and_again() {
        static LEFT: AtomicUsize = AtomicUsize::new(0);
        static FOLDERS: Folders = Folders::new(
            || match LEFT.load(Ordering::Relaxed) {
                0 => Err(Errno::MFILE),
                _ => inotify::init(CreateFlags::CLOEXEC),
            },
            Duration::from_millis(1),
        );
        let folder = tempfile::tempdir().unwrap();
        let mut changes = FOLDERS.changes(folder.path());
        let warned = || FOLDERS.warned.load(Ordering::Relaxed);
        assert!(changes.heard.is_none() && warned());
        told(&mut changes).await;
        told(&mut changes).await;
        assert!(changes.heard.is_none());

        // Until it can be.
        LEFT.store(1, Ordering::Relaxed);
        told(&mut changes).await;
        assert!(changes.heard.is_some());
        fs::write(folder.path().join("key"), "x").unwrap();
        told(&mut changes).await;
    }
}
