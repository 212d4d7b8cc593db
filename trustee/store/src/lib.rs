//! Persistence of the Trustee: a namespaced key-value store in SQLite, PostgreSQL, files or memory.
//!
//! In a database every value is encrypted with AES-256-GCM under a master key, bound to its namespace and key, so
//! that a row can't be moved or forged. Files keep upstream's layout and are plain, for owners who write them by
//! hand: they are as safe as their folder.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod backend;
pub mod backup;
mod changes;
pub mod clock;
mod error;
mod files;
pub mod key;
mod location;
pub mod master_key;
mod postgres;
mod rotation;
pub mod seal;
mod sqlite;

use std::sync::{Arc, PoisonError, RwLock};

use zeroize::Zeroizing;

use backend::{Backend, Effect, Kept, Row, Write, Written};
pub use backend::{If, Version};
use changes::Bell;
pub use changes::Changes;
pub use error::Error;
pub use key::{Key, Namespace};
pub use location::Location;
pub use master_key::MasterKey;

/// The store. Clones share the same database.
#[derive(Clone)]
pub struct Store(Arc<Shared>);

struct Shared {
    backend: Box<dyn Backend>,
    /// Nothing where values are kept as they are.
    master_key: Option<RwLock<MasterKey>>,
    bell: Arc<Bell>,
}

/// A stored value with the version to name in [`Store::put_if`].
#[derive(Clone)]
pub struct Entry {
    /// The plaintext.
    pub value: Zeroizing<Vec<u8>>,
    /// Another number after each write. In files it follows from the value, so that equal values share it.
    pub version: u64,
}

impl Store {
    /// Opens the store, creating what is absent and bringing an earlier layout up to date.
    ///
    /// SQLite without a key takes the one in `master.key` of its folder, made at first; PostgreSQL needs one; files
    /// take none.
    ///
    /// # Errors
    /// [`Error::MasterKey`] for a key that is unreadable or open to others, [`Error::OtherKey`] if values were
    /// sealed with another one, [`Error::Newer`] for a database of a later release, [`Error::Unavailable`].
    pub async fn open(location: &Location, key: Option<MasterKey>) -> Result<Self, Error> {
        let bell = Arc::new(Bell::default());
        let (backend, key): (Box<dyn Backend>, _) = match (location, key) {
            (Location::Sqlite { directory }, key) => {
                let (backend, key) = sqlite::Sqlite::open(directory, key, bell.clone()).await?;
                (Box::new(backend), Some(key))
            }
            (Location::Postgres { url, connections }, Some(key)) => {
                let backend = postgres::Postgres::open(url, *connections, &key, bell.clone()).await?;
                (Box::new(backend), Some(key))
            }
            (Location::Memory, key) => {
                let key = key.map_or_else(MasterKey::generate, Ok)?;
                (Box::new(sqlite::Sqlite::memory(&key, bell.clone()).await?), Some(key))
            }
            (Location::LocalFs { directory }, None) => {
                (Box::new(files::Files::folders(directory, bell.clone()).await?), None)
            }
            (Location::LocalJson { directory }, None) => {
                (Box::new(files::Files::json(directory, bell.clone()).await?), None)
            }
            (Location::Postgres { .. }, None) => return Err(Error::NoKey),
            (Location::LocalFs { .. } | Location::LocalJson { .. }, Some(_)) => return Err(Error::Plaintext),
        };
        if let Some(key) = &key
            && let Some(other) = backend.key_ids().await?.into_iter().find(|id| !key.knows(id))
        {
            return Err(Error::OtherKey { sealed_with: other, given: key.id().to_owned() });
        }
        Ok(Self(Arc::new(Shared { backend, master_key: key.map(RwLock::new), bell })))
    }

    /// A store that lives as long as its last clone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if SQLite can't start.
    pub async fn memory() -> Result<Self, Error> {
        Self::open(&Location::Memory, None).await
    }

    /// Takes a SQLite database back to an earlier layout, for an earlier release. Whoever opens it with this release
    /// brings it up to date again; its history is lost.
    ///
    /// # Errors
    /// [`Error::NoSuchLayout`], and those of [`Store::open`].
    pub async fn migrate_back(location: &Location, key: Option<MasterKey>, layout: i64) -> Result<(), Error> {
        match location {
            Location::Sqlite { directory } => sqlite::migrate_back(directory, key, layout).await,
            _ => Err(Error::NoSuchLayout { wanted: layout }),
        }
    }

    /// The value of a key, or nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Damaged`] if the row doesn't open under the master key.
    pub async fn get(&self, namespace: Namespace, key: &Key) -> Result<Option<Entry>, Error> {
        let row = self.0.backend.get(namespace.as_str(), key).await?;
        row.map(|row| self.opened(namespace.as_str(), key.as_str(), row)).transpose()
    }

    /// Writes a value whatever was there, and returns its version.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Unavailable`].
    pub async fn put(&self, namespace: Namespace, key: &Key, value: &[u8]) -> Result<u64, Error> {
        self.put_if(namespace, key, value, If::Any).await
    }

    /// Writes several values of one namespace, all or none.
    ///
    /// # Errors
    /// As [`Store::put`]; then nothing was written.
    pub async fn put_all(&self, namespace: Namespace, entries: &[(Key, Vec<u8>)]) -> Result<(), Error> {
        let write = |(key, value): &(Key, Vec<u8>)| self.to_write(namespace, key, value, If::Any);
        let writes = entries.iter().map(write).collect::<Result<_, Error>>()?;
        self.write(namespace, writes).await?;
        Ok(())
    }

    /// Writes several values of one namespace if each of their keys is as expected, all or none.
    ///
    /// # Errors
    /// [`Error::Conflict`] if one is not; otherwise as [`Store::put`]. Then nothing was written.
    pub async fn put_all_if(&self, namespace: Namespace, entries: &[(Key, Vec<u8>, If)]) -> Result<(), Error> {
        let write = |(key, value, expected): &(Key, Vec<u8>, If)| self.to_write(namespace, key, value, *expected);
        let writes = entries.iter().map(write).collect::<Result<_, Error>>()?;
        self.write(namespace, writes).await?;
        Ok(())
    }

    /// Writes a value only if the key is as expected: any [`If`], or as short forms a version, or `None` for a key
    /// that is absent.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not; otherwise as [`Store::put`].
    pub async fn put_if(
        &self,
        namespace: Namespace,
        key: &Key,
        value: &[u8],
        expected: impl Into<If>,
    ) -> Result<u64, Error> {
        let write = self.to_write(namespace, key, value, expected.into())?;
        match self.write(namespace, vec![write]).await? {
            Some(Effect::Put(version)) => Ok(version),
            _ => Err(Error::Conflict { namespace: namespace.as_str(), key: key.clone() }),
        }
    }

    /// Removes a key; false if it was not there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete(&self, namespace: Namespace, key: &Key) -> Result<bool, Error> {
        self.delete_if(namespace, key, If::Any).await
    }

    /// Removes a key only if it is as expected; false if it was not there and need not be.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not, [`Error::Unavailable`].
    pub async fn delete_if(&self, namespace: Namespace, key: &Key, expected: impl Into<If>) -> Result<bool, Error> {
        let write = Write { key: key.clone(), value: None, condition: expected.into() };
        Ok(matches!(self.write(namespace, vec![write]).await?, Some(Effect::Deleted)))
    }

    /// Removes all keys of a namespace that sort before `bound`, and returns how many. For records that expire: what
    /// a versioned namespace loses so is not in its history.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete_before(&self, namespace: Namespace, bound: &Key) -> Result<u64, Error> {
        self.0.backend.delete_before(namespace.into(), bound).await
    }

    /// The first [`MAX_LIST`] keys of a namespace that start with `prefix`, sorted.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Key`] if another program wrote a key that is none.
    pub async fn list(&self, namespace: Namespace, prefix: &str) -> Result<Vec<Key>, Error> {
        self.list_after(namespace, prefix, None, MAX_LIST as usize).await
    }

    /// The first keys of a namespace that start with `prefix` and come after `after`, sorted: at most `limit` and
    /// [`MAX_LIST`].
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_after(
        &self,
        namespace: Namespace,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<Key>, Error> {
        let limit = i64::try_from(limit).unwrap_or(MAX_LIST).min(MAX_LIST);
        let after = after.map_or("", Key::as_str);
        let keys = self.0.backend.list(namespace.as_str(), prefix, after, limit).await?;
        keys.iter().map(|key| Key::parse(key)).collect()
    }

    /// The last [`HISTORY`] versions of a key, newest first, deletions included. Only the present one where the
    /// namespace is not versioned.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn history(&self, namespace: Namespace, key: &Key) -> Result<Vec<Version>, Error> {
        self.0.backend.history(namespace.as_str(), key).await
    }

    /// The value of a version of [`Store::history`]; nothing if it is not known or a deletion.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn at(&self, namespace: Namespace, key: &Key, version: u64) -> Result<Option<Entry>, Error> {
        let row = self.0.backend.at(namespace.as_str(), key, version).await?;
        row.map(|row| self.opened(namespace.as_str(), key.as_str(), row)).transpose()
    }

    /// Tells from now on when somebody writes to a namespace: this process, another replica on PostgreSQL, or
    /// whoever edits a file. A SQLite database belongs to one process, which hears only of itself.
    pub fn changes(&self, namespace: Namespace) -> Changes {
        self.0.backend.follow(namespace.as_str());
        self.0.bell.changes(namespace.as_str())
    }

    /// Whether changes of others are heard of. It is false while the line to PostgreSQL is down; when it is up again
    /// everything counts as changed.
    pub fn healthy(&self) -> bool {
        self.0.backend.healthy()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it doesn't.
    pub async fn ping(&self) -> Result<(), Error> {
        self.0.backend.ping().await
    }

    /// Writes what is pending and closes the database; further calls fail.
    pub async fn close(&self) {
        self.0.backend.close().await;
    }

    /// Does writes, and returns the effect of the last.
    async fn write(&self, namespace: Namespace, writes: Vec<Write>) -> Result<Option<Effect>, Error> {
        match self.0.backend.write(namespace.into(), writes).await? {
            Written::Done(mut effects) => Ok(effects.pop()),
            Written::Conflict(key) => Err(Error::Conflict { namespace: namespace.as_str(), key }),
        }
    }

    fn to_write(&self, namespace: Namespace, key: &Key, value: &[u8], condition: If) -> Result<Write, Error> {
        Ok(Write { key: key.clone(), value: Some(self.kept(namespace.as_str(), key, value)?), condition })
    }

    fn kept(&self, namespace: &str, key: &Key, value: &[u8]) -> Result<Kept, Error> {
        if value.len() > MAX_VALUE {
            return Err(Error::TooLarge { size: value.len() });
        }
        match self.master_key() {
            Some(master) => {
                let sealed = master.seal(namespace, key.as_str(), value)?;
                Ok(Kept { key_id: master.id().to_owned(), bytes: sealed.into() })
            }
            None => Ok(Kept { key_id: String::new(), bytes: value.to_vec().into() }),
        }
    }

    fn opened(&self, namespace: &str, key: &str, row: Row) -> Result<Entry, Error> {
        let Row { version, kept } = row;
        let value = match self.master_key() {
            Some(master) => master.open(&kept.key_id, namespace, key, &kept.bytes),
            None => Ok(kept.bytes),
        };
        let damaged = |_| Error::Damaged { namespace: namespace.to_owned(), key: key.to_owned() };
        Ok(Entry { value: value.map_err(damaged)?, version })
    }

    fn master_key(&self) -> Option<MasterKey> {
        let key = self.0.master_key.as_ref()?;
        Some(key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// Largest value in bytes.
pub const MAX_VALUE: usize = 4 << 20;
/// Most keys in one answer of [`Store::list`].
pub const MAX_LIST: i64 = 10_000;
/// How many versions of a key a versioned namespace keeps, the present one included.
pub const HISTORY: usize = 100;
/// The layout of databases that this release writes.
const LAYOUT: i64 = 2;
