//! Resources in the own store, which seals them at rest and knows their versions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::Deserialize;
use store::{Entry, If, Key, Namespace, Store};
use tokio_util::task::AbortOnDropHandle;
use wire::resource::ResourcePath;

use crate::error::Error;
use crate::{Backend, Condition, MAX_LISTED, Resource};

/// The own store needs no configuration.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The own store. What was read lately is kept in memory, as long as the store tells what others change.
pub(crate) struct OwnStore {
    store: Store,
    recent: Arc<Mutex<Recent>>,
    _following: AbortOnDropHandle<()>,
}

/// Resources that were read lately, until anything is written.
#[derive(Default)]
struct Recent {
    /// One more with each write: what was read before it is not kept after it.
    generation: u64,
    entries: HashMap<Key, Entry>,
    bytes: usize,
}

impl OwnStore {
    pub(crate) fn new(store: Store) -> Self {
        let recent = Arc::new(Mutex::new(Recent::default()));
        let (mut changes, forgetting) = (store.changes(NAMESPACE), recent.clone());
        let following = tokio::spawn(async move {
            loop {
                changes.changed().await;
                lock(&forgetting).forget();
            }
        });
        Self { store, recent, _following: AbortOnDropHandle::new(following) }
    }

    async fn read(&self, key: Key) -> Result<Option<Entry>, Error> {
        if !self.store.healthy() {
            return Ok(self.store.get(NAMESPACE, &key).await?);
        }
        let generation = {
            let recent = lock(&self.recent);
            if let Some(entry) = recent.entries.get(&key) {
                return Ok(Some(entry.clone()));
            }
            recent.generation
        };
        let entry = self.store.get(NAMESPACE, &key).await?;
        if let Some(entry) = &entry {
            lock(&self.recent).keep(key, entry.clone(), generation);
        }
        Ok(entry)
    }
}

impl Recent {
    fn keep(&mut self, key: Key, entry: Entry, generation: u64) {
        if generation != self.generation || entry.value.len() > MAX_KEPT / 16 {
            return;
        }
        if self.bytes + entry.value.len() > MAX_KEPT || self.entries.len() >= MAX_ENTRIES {
            (self.entries, self.bytes) = (HashMap::new(), 0);
        }
        self.bytes += entry.value.len();
        self.entries.insert(key, entry);
    }

    fn forget(&mut self) {
        *self = Self { generation: self.generation + 1, ..Self::default() };
    }
}

#[async_trait]
impl Backend for OwnStore {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let entry = self.read(Key::parse(path.as_str())?).await?;
        Ok(entry.map(|entry| Resource { value: entry.value, version: Some(entry.version.to_string()) }))
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        let written =
            self.store.put_if(NAMESPACE, &Key::parse(path.as_str())?, value, expected(path, condition)?).await;
        lock(&self.recent).forget();
        Ok(Some(written.map_err(|e| settle(path, e))?.to_string()))
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        let deleted = self.store.delete_if(NAMESPACE, &Key::parse(path.as_str())?, expected(path, condition)?).await;
        lock(&self.recent).forget();
        deleted.map_err(|e| settle(path, e))
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        let prefix = repository.map(|repository| format!("{repository}/")).unwrap_or_default();
        let mut paths = Vec::new();
        let mut after: Option<Key> = None;
        loop {
            let keys = self.store.list_after(NAMESPACE, &prefix, after.as_ref(), PAGE).await?;
            // A key of another form was written by hand, and no path leads to it.
            paths.extend(keys.iter().filter_map(|key| ResourcePath::parse(key.as_str()).ok()));
            if paths.len() > MAX_LISTED {
                return Err(Error::TooMany { service: "the own store".to_owned(), max: MAX_LISTED });
            }
            match keys.into_iter().last() {
                Some(last) => after = Some(last),
                None => return Ok(paths),
            }
        }
    }
}

/// What is no version of this store is none that the resource is at.
fn expected(path: &ResourcePath, condition: &Condition) -> Result<If, Error> {
    match condition {
        Condition::Any => Ok(If::Any),
        Condition::Absent => Ok(If::Absent),
        Condition::Version(text) => text.parse().map(If::Version).map_err(|_| Error::Conflict { path: path.clone() }),
    }
}

fn settle(path: &ResourcePath, error: store::Error) -> Error {
    match error {
        store::Error::Conflict { .. } => Error::Conflict { path: path.clone() },
        error => Error::Store(error),
    }
}

fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of secrets that are kept in memory, and how many of them.
const MAX_KEPT: usize = 4 << 20;
const MAX_ENTRIES: usize = 4_096;
const NAMESPACE: Namespace = Namespace::new("repository");
const PAGE: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_by_everybody_and_what_is_deleted_by_nobody() {
        let store = Store::memory().await.unwrap();
        let (here, there) = (OwnStore::new(store.clone()), OwnStore::new(store));
        let path = ResourcePath::parse("a/b/c").unwrap();
        let value = async |backend: &OwnStore| backend.get(&path).await.unwrap().map(|found| found.value.to_vec());
        here.put(&path, b"one", &Condition::Any).await.unwrap();
        assert_eq!(value(&there).await.unwrap(), b"one");
        here.put(&path, b"two", &Condition::Any).await.unwrap();
        assert_eq!(value(&here).await.unwrap(), b"two");
        let other_hears = async {
            while value(&there).await.unwrap() != b"two" {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), other_hears).await.unwrap();
        assert!(here.delete(&path, &Condition::Any).await.unwrap());
        assert_eq!(value(&here).await, None);
    }

    #[tokio::test]
    async fn what_was_read_before_a_write_is_not_kept_after_it() {
        let store = Store::memory().await.unwrap();
        let key = Key::parse("a/b/c").unwrap();
        store.put(NAMESPACE, &key, b"old").await.unwrap();
        let old = store.get(NAMESPACE, &key).await.unwrap().unwrap();
        let mut recent = Recent::default();
        let generation = recent.generation;
        recent.forget();
        recent.keep(key.clone(), old.clone(), generation);
        assert!(recent.entries.is_empty());
        let generation = recent.generation;
        for number in 0..2 * MAX_ENTRIES {
            recent.keep(Key::parse(&number.to_string()).unwrap(), old.clone(), generation);
        }
        assert!(recent.entries.len() <= MAX_ENTRIES);
    }
}
