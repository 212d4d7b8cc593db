//! Entries in plain files, in either of upstream's two layouts, for owners who write their secrets by hand.
//!
//! A writer holds the lock file of the folder; readers need none, since files are replaced as a whole. A version
//! is part of the value's hash, so that it stays right whoever edits a file.

mod atomic;
mod folders;
mod history;
mod json;
mod watch;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::HISTORY;
use crate::backend::{Backend, Effect, Kept, Placed, Row, Space, Version, Write, Written};
use crate::changes::Bell;
use crate::clock::{Clock, Timestamp};
use crate::error::Error;
use crate::key::Key;
use atomic::Draft;
use folders::Folders;
use history::{History, Past};
use json::Json;
use watch::Watch;

pub(crate) struct Files {
    inner: Arc<Inner>,
    watch: Watch,
    /// Writers of this process queue here, and not in threads that wait for the lock file.
    writing: tokio::sync::Mutex<()>,
}

struct Inner {
    directory: PathBuf,
    layout: Layout,
    history: History,
}

enum Layout {
    Folders(Folders),
    Json(Json),
}

type Value = Zeroizing<Vec<u8>>;

impl Files {
    /// A folder for each namespace, in it a file for each key.
    pub async fn folders(directory: &Path, bell: Arc<Bell>) -> Result<Self, Error> {
        let layout = Layout::Folders(Folders::new(directory));
        Self::open(directory, layout, Watch::folders(directory, bell)?).await
    }

    /// A JSON file for each namespace.
    pub async fn json(directory: &Path, bell: Arc<Bell>) -> Result<Self, Error> {
        let layout = Layout::Json(Json::new(directory));
        Self::open(directory, layout, Watch::files(directory, bell)?).await
    }

    async fn open(directory: &Path, layout: Layout, watch: Watch) -> Result<Self, Error> {
        let inner = Inner { directory: directory.to_owned(), layout, history: History::new(directory) };
        let files = Self { inner: Arc::new(inner), watch, writing: Default::default() };
        files.blocking(Inner::prepare).await?;
        Ok(files)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || work(&inner)).await.map_err(std::io::Error::other)?
    }
}

#[async_trait]
impl Backend for Files {
    async fn get(&self, namespace: &str, key: &Key) -> Result<Option<Row>, Error> {
        let (namespace, key) = (namespace.to_owned(), key.clone());
        self.blocking(move |inner| Ok(inner.layout.read(&namespace, &key)?.map(row))).await
    }

    async fn write(&self, space: Space<'_>, writes: Vec<Write>) -> Result<Written, Error> {
        let _one_at_a_time = self.writing.lock().await;
        let (namespace, versioned) = (space.name.to_owned(), space.versioned);
        self.blocking(move |inner| inner.write(&namespace, versioned, writes)).await
    }

    async fn delete_before(&self, space: Space<'_>, bound: &Key) -> Result<u64, Error> {
        let _one_at_a_time = self.writing.lock().await;
        let (namespace, bound) = (space.name.to_owned(), bound.clone());
        self.blocking(move |inner| {
            let _lock = inner.lock()?;
            let keys: Vec<Key> = inner.layout.keys(&namespace)?.into_iter().filter(|key| *key < bound).collect();
            let count = keys.len() as u64;
            let changes = keys.into_iter().map(|key| (key, None)).collect();
            inner.layout.replace(&namespace, &changes, Vec::new())?;
            Ok(count)
        })
        .await
    }

    async fn list(&self, namespace: &str, prefix: &str, after: &str, limit: i64) -> Result<Vec<String>, Error> {
        let (namespace, prefix, after) = (namespace.to_owned(), prefix.to_owned(), after.to_owned());
        self.blocking(move |inner| {
            let mut keys: Vec<String> = inner.layout.keys(&namespace)?.iter().map(Key::to_string).collect();
            keys.retain(|key| key.starts_with(&prefix) && *key > after);
            keys.sort_unstable();
            keys.truncate(usize::try_from(limit).unwrap_or(0));
            Ok(keys)
        })
        .await
    }

    async fn history(&self, namespace: &str, key: &Key) -> Result<Vec<Version>, Error> {
        let (namespace, key) = (namespace.to_owned(), key.clone());
        self.blocking(move |inner| {
            let mut past = inner.history.read(&namespace, &key)?;
            let mut versions = Vec::new();
            if let Some(value) = inner.layout.read(&namespace, &key)? {
                let time = inner.layout.time(&namespace, &key)?;
                let present = Version { version: version_of(&value), time, deleted: false };
                // It was written again as it was, or its successor was never put into place.
                past.pop_if(|past| past.version().version == present.version);
                versions.push(present);
            }
            versions.extend(past.iter().rev().map(Past::version));
            versions.truncate(HISTORY);
            Ok(versions)
        })
        .await
    }

    async fn at(&self, namespace: &str, key: &Key, version: u64) -> Result<Option<Row>, Error> {
        let (namespace, key) = (namespace.to_owned(), key.clone());
        self.blocking(move |inner| {
            let present = inner.layout.read(&namespace, &key)?;
            if let Some(value) = present.filter(|value| version_of(value) == version) {
                return Ok(Some(row(value)));
            }
            let past = inner.history.read(&namespace, &key)?;
            let found = past.into_iter().find(|past| past.version().version == version);
            Ok(found.and_then(Past::into_value).map(row))
        })
        .await
    }

    async fn scan(&self, rows: mpsc::Sender<Placed>) -> Result<(), Error> {
        let _nobody_writes = self.writing.lock().await;
        self.blocking(move |inner| {
            let _lock = inner.lock()?;
            for namespace in inner.layout.namespaces()? {
                for key in inner.layout.keys(&namespace)? {
                    let Some(value) = inner.layout.read(&namespace, &key)? else { continue };
                    let entry =
                        Placed { past: false, namespace: namespace.clone(), key: key.to_string(), row: row(value) };
                    if rows.blocking_send(entry).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
        .await
    }

    async fn ping(&self) -> Result<(), Error> {
        self.blocking(|inner| Ok(_ = fs::read_dir(&inner.directory)?)).await
    }

    async fn close(&self) {
        // A write that was begun is waited for; there is nothing else to finish.
        drop(self.writing.lock().await);
    }

    fn healthy(&self) -> bool {
        self.watch.is_up()
    }

    fn follow(&self, namespace: &str) {
        self.watch.follow(namespace);
    }
}

impl Inner {
    fn prepare(&self) -> Result<(), Error> {
        let _lock = self.lock()?;
        self.history.clean()?;
        self.layout.clean()
    }

    fn write(&self, namespace: &str, versioned: bool, writes: Vec<Write>) -> Result<Written, Error> {
        let _lock = self.lock()?;
        let mut before: BTreeMap<Key, Option<Value>> = BTreeMap::new();
        let mut changes: BTreeMap<Key, Option<Value>> = BTreeMap::new();
        let mut effects = Vec::with_capacity(writes.len());
        for Write { key, value, condition } in writes {
            if !before.contains_key(&key) {
                before.insert(key.clone(), self.layout.read(namespace, &key)?);
            }
            let present = changes.get(&key).or_else(|| before.get(&key)).and_then(Option::as_ref);
            if !condition.holds(present.map(|value| version_of(value))) {
                return Ok(Written::Conflict(key));
            }
            effects.push(match (&value, present) {
                (Some(value), _) => Effect::Put(version_of(&value.bytes)),
                (None, Some(_)) => Effect::Deleted,
                (None, None) => Effect::Absent,
            });
            changes.insert(key, value.map(|kept| kept.bytes));
        }
        let mut past = Vec::new();
        if versioned {
            for (key, change) in &changes {
                let Some(Some(value)) = before.get(key) else { continue };
                let time = self.layout.time(namespace, key)?;
                let deleted = change.is_none().then(|| Clock::system().now());
                past.push(self.history.draft(namespace, key, value, time, deleted)?);
            }
        }
        self.layout.replace(namespace, &changes, past)?;
        Ok(Written::Done(effects))
    }

    /// Held against every other process until it is dropped.
    fn lock(&self) -> Result<File, Error> {
        make_folder(&self.directory)?;
        let file = File::options().create(true).append(true).open(self.directory.join(".lock"))?;
        file.lock()?;
        Ok(file)
    }
}

impl Layout {
    fn namespaces(&self) -> Result<Vec<String>, Error> {
        match self {
            Self::Folders(folders) => folders.namespaces(),
            Self::Json(json) => json.namespaces(),
        }
    }

    fn keys(&self, namespace: &str) -> Result<Vec<Key>, Error> {
        match self {
            Self::Folders(folders) => folders.keys(namespace),
            Self::Json(json) => json.keys(namespace),
        }
    }

    fn read(&self, namespace: &str, key: &Key) -> Result<Option<Value>, Error> {
        match self {
            Self::Folders(folders) => folders.read(namespace, key),
            Self::Json(json) => json.read(namespace, key),
        }
    }

    /// When the file that holds a key was written.
    fn time(&self, namespace: &str, key: &Key) -> Result<Timestamp, Error> {
        match self {
            Self::Folders(folders) => folders.time(namespace, key),
            Self::Json(json) => json.time(namespace),
        }
    }

    /// Puts values, and removes the keys without one. The drafts of the history take their places when all values
    /// are on the disk and none is in its place: a full disk changes nothing, and no version is lost.
    fn replace(
        &self,
        namespace: &str,
        changes: &BTreeMap<Key, Option<Value>>,
        history: Vec<Draft>,
    ) -> Result<(), Error> {
        match self {
            Self::Folders(folders) => folders.replace(namespace, changes, history),
            Self::Json(json) => json.replace(namespace, changes, history),
        }
    }

    /// Removes what a process that ended in the middle has left behind.
    fn clean(&self) -> Result<(), Error> {
        match self {
            Self::Folders(folders) => folders.clean(),
            Self::Json(json) => json.clean(),
        }
    }
}

/// Makes a folder for nobody else where there is none.
fn make_folder(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Directory { path: path.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
}

fn row(value: Value) -> Row {
    Row { version: version_of(&value), kept: Kept { key_id: String::new(), bytes: value } }
}

/// 53 bits of the value's hash: a whole number in every JSON reader.
fn version_of(value: &[u8]) -> u64 {
    let hash = digest(&SHA256, value);
    hash.as_ref().iter().take(8).fold(0, |number, byte| (number << 8) | u64::from(*byte)) >> 11
}
