//! A container of a pod: its first process, its execs, and what it holds on the host.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sandbox::AttachedDisk;

use crate::copy::Watcher;
use crate::process::Process;
use crate::{Error, Kind};

/// A container of a pod.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: String,
    pub(crate) kind: Kind,
    /// User and group of its specification, which may stand for names.
    pub(crate) user: (u32, u32),
    /// The first process.
    pub(crate) init: Arc<Process>,
    /// Where Kubernetes reads its last words.
    pub(crate) termination_log: Option<PathBuf>,
    /// How often in a row it could not be killed.
    survived: AtomicU32,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    held: Mutex<Held>,
}

/// What a container holds on the host while it exists.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) disks: Vec<AttachedDisk>,
}

impl Container {
    pub(crate) fn new(
        id: String,
        bundle: String,
        kind: Kind,
        user: (u32, u32),
        init: Process,
        termination_log: Option<PathBuf>,
    ) -> Self {
        let (survived, execs, held) = (AtomicU32::new(0), Mutex::default(), Mutex::default());
        Self { id, bundle, kind, user, init: Arc::new(init), termination_log, survived, execs, held }
    }

    /// The process of this name; the first one's is empty.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Error> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let missing = || Error::NotFound(format!("process {exec} of container {}", self.id));
        lock(&self.execs).get(exec).cloned().ok_or_else(missing)
    }

    /// Notes that it could not be killed, and tells whether that is no accident any more.
    pub(crate) fn survives(&self) -> bool {
        self.survived.fetch_add(1, Ordering::Relaxed) > 0
    }

    /// Adds an exec.
    ///
    /// # Errors
    /// [`Error::Exists`].
    pub(crate) fn add(&self, process: Process) -> Result<(), Error> {
        let exec = process.id.exec.clone();
        let mut execs = lock(&self.execs);
        if execs.contains_key(&exec) {
            return Err(Error::Exists(format!("process {exec} of container {}", self.id)));
        }
        execs.insert(exec, Arc::new(process));
        Ok(())
    }

    /// Forgets an exec.
    pub(crate) fn forget(&self, exec: &str) {
        lock(&self.execs).remove(exec);
    }

    /// Every process, the first one last.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        let execs: Vec<_> = lock(&self.execs).values().cloned().collect();
        execs.into_iter().chain([Arc::clone(&self.init)]).collect()
    }

    /// Holds something until the container is removed.
    pub(crate) fn hold(&self, held: Held) {
        *lock(&self.held) = held;
    }

    /// Gives back what it holds: watchers end at once, disks are the caller's to detach.
    pub(crate) fn release(&self) -> Vec<AttachedDisk> {
        let Held { watchers, disks } = std::mem::take(&mut *lock(&self.held));
        drop(watchers);
        disks
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
