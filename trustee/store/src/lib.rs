//! Persistence of the Trustee: a namespaced key-value store in one SQLite file, every value sealed at rest.
//!
//! One connection writes, several read (write-ahead log). A value is encrypted with AES-256-GCM under a master
//! key that lies beside the database, bound to its namespace and key, so that a row can't be moved or forged.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod clock;
pub mod key;
pub mod seal;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use zeroize::Zeroizing;

pub use key::{Key, Namespace};
use seal::SealingKey;

/// The store. Clones share the same database.
#[derive(Clone)]
pub struct Store {
    readers: SqlitePool,
    writer: SqlitePool,
    sealing: Arc<SealingKey>,
}

/// A stored value with the version to name in [`Store::put_if`].
#[derive(Clone)]
pub struct Entry {
    /// The plaintext.
    pub value: Zeroizing<Vec<u8>>,
    /// 1 for a new key, one more with each write.
    pub version: u64,
}

impl Store {
    /// Opens the store in `directory`, creating directory (0700), master key (0600) and database where absent.
    ///
    /// # Errors
    /// [`Error::MasterKey`] for a key that is unreadable or open to others, [`Error::OtherKey`] if values were
    /// sealed with another one, [`Error::Newer`] for a database of a later release.
    pub async fn open(directory: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Directory { path: directory.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let sealing = SealingKey::from_file(&directory.join("master.key"))?;

        let options = SqliteConnectOptions::new()
            .filename(directory.join("trustee.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5));
        let writer = pool(1).connect_with(options.clone()).await?;
        migrate(&writer).await?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await?;
        Self::ready(readers, writer, sealing).await
    }

    /// A store that lives as long as its last clone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if SQLite can't start.
    pub async fn memory() -> Result<Self, Error> {
        let writer = pool(1).connect_with(SqliteConnectOptions::new().in_memory(true)).await?;
        migrate(&writer).await?;
        Self::ready(writer.clone(), writer, SealingKey::generate()?).await
    }

    /// The value of a key, or nothing.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Damaged`] if the row doesn't open under the master key.
    pub async fn get(&self, namespace: Namespace, key: &Key) -> Result<Option<Entry>, Error> {
        let row: Option<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT value, version FROM entry WHERE namespace = ? AND key = ?")
                .bind(namespace.as_str())
                .bind(key.as_str())
                .fetch_optional(&self.readers)
                .await?;
        let Some((sealed, version)) = row else { return Ok(None) };
        let value = self.sealing.open(&bound_to(namespace, key), &sealed);
        let value = value.map_err(|_| Error::Damaged { namespace: namespace.as_str(), key: key.clone() })?;
        Ok(Some(Entry { value, version: version.cast_unsigned() }))
    }

    /// Writes a value whatever was there, and returns its version.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Unavailable`].
    pub async fn put(&self, namespace: Namespace, key: &Key, value: &[u8]) -> Result<u64, Error> {
        // All rows and not one: the statement is committed when it has come to its end, and only then is it known
        // whether a full disk took the value.
        let versions: Vec<(i64,)> = sqlx::query_as(UPSERT)
            .bind(namespace.as_str())
            .bind(key.as_str())
            .bind(self.sealing.id())
            .bind(self.sealed(namespace, key, value)?)
            .fetch_all(&self.writer)
            .await?;
        let (version,) = versions.first().ok_or(sqlx::Error::RowNotFound)?;
        Ok(version.cast_unsigned())
    }

    /// Writes several values of one namespace, all or none.
    ///
    /// # Errors
    /// As [`Store::put`]; then nothing was written.
    pub async fn put_all(&self, namespace: Namespace, entries: &[(Key, Vec<u8>)]) -> Result<(), Error> {
        let mut transaction = self.writer.begin().await?;
        for (key, value) in entries {
            sqlx::query(UPSERT)
                .bind(namespace.as_str())
                .bind(key.as_str())
                .bind(self.sealing.id())
                .bind(self.sealed(namespace, key, value)?)
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Writes a value only if the key is at version `expected`, or is absent where that is `None`.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it is not; otherwise as [`Store::put`].
    pub async fn put_if(
        &self,
        namespace: Namespace,
        key: &Key,
        value: &[u8],
        expected: Option<u64>,
    ) -> Result<u64, Error> {
        let query = match expected {
            None => sqlx::query(
                "INSERT INTO entry (namespace, key, version, key_id, value) VALUES (?1, ?2, 1, ?3, ?4)
                 ON CONFLICT DO NOTHING",
            ),
            Some(_) => sqlx::query(
                "UPDATE entry SET version = version + 1, key_id = ?3, value = ?4
                 WHERE namespace = ?1 AND key = ?2 AND version = ?5",
            ),
        };
        let query = query
            .bind(namespace.as_str())
            .bind(key.as_str())
            .bind(self.sealing.id())
            .bind(self.sealed(namespace, key, value)?);
        let query = match expected {
            None => query,
            Some(version) => query.bind(version.cast_signed()),
        };
        match query.execute(&self.writer).await?.rows_affected() {
            0 => Err(Error::Conflict { namespace: namespace.as_str(), key: key.clone() }),
            _ => Ok(expected.unwrap_or(0) + 1),
        }
    }

    /// Removes a key; false if it was not there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete(&self, namespace: Namespace, key: &Key) -> Result<bool, Error> {
        let done = sqlx::query("DELETE FROM entry WHERE namespace = ? AND key = ?")
            .bind(namespace.as_str())
            .bind(key.as_str())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Removes all keys of a namespace that sort before `bound`, and returns how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn delete_before(&self, namespace: Namespace, bound: &Key) -> Result<u64, Error> {
        let done = sqlx::query("DELETE FROM entry WHERE namespace = ? AND key < ?")
            .bind(namespace.as_str())
            .bind(bound.as_str())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected())
    }

    /// The first [`MAX_LIST`] keys of a namespace that start with `prefix`, sorted.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; [`Error::Key`] if another program wrote a key that is none.
    pub async fn list(&self, namespace: Namespace, prefix: &str) -> Result<Vec<Key>, Error> {
        // No key holds a byte as high as DEL, so it closes the range of keys that share a prefix.
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT key FROM entry WHERE namespace = ?1 AND key >= ?2 AND key < ?2 || char(127) ORDER BY key LIMIT ?3",
        )
        .bind(namespace.as_str())
        .bind(prefix)
        .bind(MAX_LIST)
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter().map(|(key,)| Key::parse(&key)).collect()
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it doesn't.
    pub async fn ping(&self) -> Result<(), Error> {
        let _: (i64,) = sqlx::query_as("SELECT 1").fetch_one(&self.readers).await?;
        Ok(())
    }

    /// Writes what is pending and closes the database; further calls fail.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn ready(readers: SqlitePool, writer: SqlitePool, sealing: SealingKey) -> Result<Self, Error> {
        let other: Option<(String,)> = sqlx::query_as("SELECT key_id FROM entry WHERE key_id <> ? LIMIT 1")
            .bind(sealing.id())
            .fetch_optional(&writer)
            .await?;
        match other {
            Some((id,)) => Err(Error::OtherKey { sealed_with: id, given: sealing.id().to_owned() }),
            None => Ok(Self { readers, writer, sealing: Arc::new(sealing) }),
        }
    }

    fn sealed(&self, namespace: Namespace, key: &Key, value: &[u8]) -> Result<Vec<u8>, Error> {
        if value.len() > MAX_VALUE {
            return Err(Error::TooLarge { size: value.len() });
        }
        Ok(self.sealing.seal(&bound_to(namespace, key), value)?)
    }
}

/// Why the store could not do what was asked. No variant holds any part of a value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("\"{0}\" can't be a key: use up to {max} of the characters a-z A-Z 0-9 - _ . /", max = key::MAX_KEY)]
    Key(String),
    #[error("the value has {size} bytes, the store holds at most {MAX_VALUE} in one")]
    TooLarge { size: usize },
    #[error("{namespace}/{key} was changed by someone else; next: read it again")]
    Conflict { namespace: &'static str, key: Key },
    #[error("{namespace}/{key} does not open under the master key; next: restore the database from a backup")]
    Damaged { namespace: &'static str, key: Key },
    #[error("values were sealed with master key {sealed_with}, but {given} was given; next: restore master.key")]
    OtherKey { sealed_with: String, given: String },
    #[error("the database has layout {found}, this release knows {LAYOUT}; next: use the later release")]
    Newer { found: i64 },
    #[error("directory {}: {source}; next: check the path and its permissions", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    MasterKey(#[from] seal::Error),
    #[error("the database does not answer: {0}; next: check its folder's space and permissions, and who else uses it")]
    Unavailable(#[from] sqlx::Error),
}

async fn migrate(writer: &SqlitePool) -> Result<(), Error> {
    let (layout,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(writer).await?;
    match layout {
        0 => {
            let mut transaction = writer.begin().await?;
            sqlx::query(CREATE).execute(&mut *transaction).await?;
            sqlx::query("PRAGMA user_version = 1").execute(&mut *transaction).await?;
            Ok(transaction.commit().await?)
        }
        LAYOUT => Ok(()),
        found => Err(Error::Newer { found }),
    }
}

/// An in-memory database vanishes with its connection, so connections are never retired.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(None)
        .max_lifetime(None)
}

fn bound_to(namespace: Namespace, key: &Key) -> Vec<u8> {
    [namespace.as_str().as_bytes(), &[0], key.as_str().as_bytes()].concat()
}

/// Largest value in bytes.
pub const MAX_VALUE: usize = 4 << 20;
/// Most keys in one answer of [`Store::list`].
pub const MAX_LIST: i64 = 10_000;
const READERS: u32 = 4;
const LAYOUT: i64 = 1;
const CREATE: &str = "CREATE TABLE IF NOT EXISTS entry (
    namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, key_id TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (namespace, key)) STRICT";
const UPSERT: &str = "INSERT INTO entry (namespace, key, version, key_id, value) VALUES (?1, ?2, 1, ?3, ?4)
    ON CONFLICT (namespace, key) DO UPDATE SET version = version + 1, key_id = ?3, value = ?4 RETURNING version";

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: Namespace = Namespace::new("secrets");
    const OTHERS: Namespace = Namespace::new("others");

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[tokio::test]
    async fn what_was_put_is_read_until_it_is_deleted() {
        let store = Store::memory().await.unwrap();
        assert_eq!(store.put(SECRETS, &key("a/b/c"), b"one").await.unwrap(), 1);
        assert_eq!(store.put(SECRETS, &key("a/b/c"), b"two").await.unwrap(), 2);

        let entry = store.get(SECRETS, &key("a/b/c")).await.unwrap().unwrap();
        assert_eq!((entry.value.as_slice(), entry.version), (b"two".as_slice(), 2));
        assert!(store.get(OTHERS, &key("a/b/c")).await.unwrap().is_none());

        assert!(store.delete(SECRETS, &key("a/b/c")).await.unwrap());
        assert!(!store.delete(SECRETS, &key("a/b/c")).await.unwrap());
        assert!(store.get(SECRETS, &key("a/b/c")).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_conditional_write_loses_against_an_earlier_one() {
        let store = Store::memory().await.unwrap();
        let k = key("k");
        assert_eq!(store.put_if(SECRETS, &k, b"1", None).await.unwrap(), 1);
        assert!(matches!(store.put_if(SECRETS, &k, b"x", None).await, Err(Error::Conflict { .. })));
        assert_eq!(store.put_if(SECRETS, &k, b"2", Some(1)).await.unwrap(), 2);
        assert!(matches!(store.put_if(SECRETS, &k, b"x", Some(1)).await, Err(Error::Conflict { .. })));
        assert_eq!(store.get(SECRETS, &k).await.unwrap().unwrap().value.as_slice(), b"2");
    }

    #[tokio::test]
    async fn keys_are_listed_by_prefix_and_trimmed_by_order() {
        let store = Store::memory().await.unwrap();
        let entries: Vec<_> = ["a/1", "a/2", "ab", "b"].iter().map(|k| (key(k), b"v".to_vec())).collect();
        store.put_all(SECRETS, &entries).await.unwrap();

        let listed = |keys: Vec<Key>| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(listed(store.list(SECRETS, "a/").await.unwrap()), ["a/1", "a/2"]);
        assert_eq!(listed(store.list(SECRETS, "").await.unwrap()).len(), 4);
        assert_eq!(store.delete_before(SECRETS, &key("ab")).await.unwrap(), 2);
        assert_eq!(listed(store.list(SECRETS, "").await.unwrap()), ["ab", "b"]);
    }

    #[tokio::test]
    async fn a_restart_keeps_values_sealed_under_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let store = Store::open(&path).await.unwrap();
        store.put(SECRETS, &key("k"), b"a secret of some length").await.unwrap();
        store.close().await;

        let on_disk = std::fs::read(path.join("trustee.db")).unwrap();
        assert!(!on_disk.windows(8).any(|w| w == b"a secret"));
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.get(SECRETS, &key("k")).await.unwrap().unwrap().value.as_slice(), b"a secret of some length");
        store.close().await;

        std::fs::remove_file(path.join("master.key")).unwrap();
        assert!(matches!(Store::open(&path).await, Err(Error::OtherKey { .. })));
    }

    #[tokio::test]
    async fn a_row_that_was_moved_or_is_too_large_is_refused() {
        let store = Store::memory().await.unwrap();
        store.put(SECRETS, &key("low"), b"v").await.unwrap();
        sqlx::query("UPDATE entry SET key = 'high'").execute(&store.writer).await.unwrap();
        assert!(matches!(store.get(SECRETS, &key("high")).await, Err(Error::Damaged { .. })));

        let large = vec![0; MAX_VALUE + 1];
        assert!(matches!(store.put(SECRETS, &key("k"), &large).await, Err(Error::TooLarge { .. })));
    }
}
