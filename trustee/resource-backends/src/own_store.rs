//! Resources in the own store, which seals them at rest and knows their versions.

use async_trait::async_trait;
use serde::Deserialize;
use store::{If, Key, Namespace, Store};
use wire::resource::ResourcePath;

use crate::error::Error;
use crate::{Backend, Condition, MAX_LISTED, Resource};

/// The own store needs no configuration.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

/// The own store.
pub(crate) struct OwnStore(Store);

impl OwnStore {
    pub(crate) fn new(store: Store) -> Self {
        Self(store)
    }
}

#[async_trait]
impl Backend for OwnStore {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let entry = self.0.get(NAMESPACE, &Key::parse(path.as_str())?).await?;
        Ok(entry.map(|entry| Resource { value: entry.value, version: Some(entry.version.to_string()) }))
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        let written = self.0.put_if(NAMESPACE, &Key::parse(path.as_str())?, value, expected(path, condition)?).await;
        Ok(Some(written.map_err(|e| settle(path, e))?.to_string()))
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        let deleted = self.0.delete_if(NAMESPACE, &Key::parse(path.as_str())?, expected(path, condition)?).await;
        deleted.map_err(|e| settle(path, e))
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        let prefix = repository.map(|repository| format!("{repository}/")).unwrap_or_default();
        let mut paths = Vec::new();
        let mut after: Option<Key> = None;
        loop {
            let keys = self.0.list_after(NAMESPACE, &prefix, after.as_ref(), PAGE).await?;
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

const NAMESPACE: Namespace = Namespace::new("repository");
const PAGE: usize = 1000;
