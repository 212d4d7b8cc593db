//! Entries in one SQLite database: one connection writes, several read (write-ahead log).

mod migration;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqliteConnection, Transaction};
use tokio::sync::mpsc;

use crate::HISTORY;
use crate::backend::{Backend, Effect, Kept, Placed, Row, Space, Version, Write, Written};
use crate::changes::Bell;
use crate::clock::{Clock, Timestamp};
use crate::error::Error;
use crate::key::Key;
use crate::master_key::MasterKey;

pub(crate) struct Sqlite {
    readers: SqlitePool,
    writer: SqlitePool,
    bell: Arc<Bell>,
}

impl Sqlite {
    /// Opens the database in a folder, with the key beside it if no other is given.
    pub async fn open(directory: &Path, key: Option<MasterKey>, bell: Arc<Bell>) -> Result<(Self, MasterKey), Error> {
        let (options, key) = prepare(directory, key)?;
        let writer = pool(1).connect_with(options.clone()).await?;
        migration::forward(&writer, &key).await?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await?;
        Ok((Self { readers, writer, bell }, key))
    }

    pub async fn memory(key: &MasterKey, bell: Arc<Bell>) -> Result<Self, Error> {
        let writer = pool(1).connect_with(SqliteConnectOptions::new().in_memory(true)).await?;
        migration::forward(&writer, key).await?;
        Ok(Self { readers: writer.clone(), writer, bell })
    }

    /// A transaction that has the lock for writing from its start.
    async fn begin(&self) -> Result<Transaction<'static, sqlx::Sqlite>, sqlx::Error> {
        match self.writer.begin_with(BEGIN).await {
            // SQLite undid the transaction before by itself, as it does when the disk is full, and the driver counts
            // on it still. A new connection has none.
            Err(sqlx::Error::InvalidSavePointStatement) => {
                self.writer.acquire().await?.close().await?;
                self.writer.begin_with(BEGIN).await
            }
            other => other,
        }
    }
}

/// See [`Store::migrate_back`](crate::Store::migrate_back).
pub(crate) async fn migrate_back(directory: &Path, key: Option<MasterKey>, layout: i64) -> Result<(), Error> {
    let (options, key) = prepare(directory, key)?;
    let writer = pool(1).connect_with(options).await?;
    migration::back(&writer, &key, layout).await?;
    writer.close().await;
    Ok(())
}

#[async_trait]
impl Backend for Sqlite {
    async fn get(&self, namespace: &str, key: &Key) -> Result<Option<Row>, Error> {
        let row = sqlx::query_as("SELECT version, key_id, value FROM entry WHERE namespace = ?1 AND key = ?2")
            .bind(namespace)
            .bind(key.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map(self::row))
    }

    async fn write(&self, space: Space<'_>, writes: Vec<Write>) -> Result<Written, Error> {
        let mut transaction = self.begin().await?;
        let now = Clock::system().now();
        let mut effects = Vec::with_capacity(writes.len());
        for write in writes {
            match apply(&mut transaction, space, &write, now).await? {
                Some(effect) => effects.push(effect),
                None => {
                    transaction.rollback().await?;
                    return Ok(Written::Conflict(write.key));
                }
            }
        }
        transaction.commit().await?;
        self.bell.ring(space.name);
        Ok(Written::Done(effects))
    }

    async fn delete_before(&self, space: Space<'_>, bound: &Key) -> Result<u64, Error> {
        let done = sqlx::query("DELETE FROM entry WHERE namespace = ?1 AND key < ?2")
            .bind(space.name)
            .bind(bound.as_str())
            .execute(&self.writer)
            .await?;
        self.bell.ring(space.name);
        Ok(done.rows_affected())
    }

    async fn list(&self, namespace: &str, prefix: &str, after: &str, limit: i64) -> Result<Vec<String>, Error> {
        // No key holds a byte as high as DEL, so it closes the range of keys that share a prefix.
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT key FROM entry
             WHERE namespace = ?1 AND key >= ?2 AND key < ?2 || char(127) AND key > ?3 ORDER BY key LIMIT ?4",
        )
        .bind(namespace)
        .bind(prefix)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(key,)| key).collect())
    }

    async fn history(&self, namespace: &str, key: &Key) -> Result<Vec<Version>, Error> {
        let rows: Vec<(i64, i64, bool)> = sqlx::query_as(
            "SELECT version, time, 0 AS deleted FROM entry WHERE namespace = ?1 AND key = ?2
             UNION ALL SELECT version, time, deleted FROM history WHERE namespace = ?1 AND key = ?2
             ORDER BY version DESC LIMIT ?3",
        )
        .bind(namespace)
        .bind(key.as_str())
        .bind(HISTORY as i64)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(version).collect())
    }

    async fn at(&self, namespace: &str, key: &Key, version: u64) -> Result<Option<Row>, Error> {
        let row = sqlx::query_as(
            "SELECT version, key_id, value FROM entry WHERE namespace = ?1 AND key = ?2 AND version = ?3
             UNION ALL SELECT version, key_id, value FROM history
                 WHERE namespace = ?1 AND key = ?2 AND version = ?3 AND NOT deleted",
        )
        .bind(namespace)
        .bind(key.as_str())
        .bind(version.cast_signed())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.map(self::row))
    }

    async fn scan(&self, rows: mpsc::Sender<Placed>) -> Result<(), Error> {
        // One statement sees one state of the database, however long it is read.
        let mut entries =
            sqlx::query_as("SELECT 0, namespace, key, version, key_id, value FROM entry ORDER BY namespace, key")
                .fetch(&self.readers)
                .map_ok(placed);
        while let Some(entry) = entries.try_next().await? {
            if rows.send(entry).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn ping(&self) -> Result<(), Error> {
        let _: (i64,) = sqlx::query_as("SELECT 1").fetch_one(&self.readers).await?;
        Ok(())
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn key_ids(&self) -> Result<Vec<String>, Error> {
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT key_id FROM entry UNION SELECT key_id FROM history WHERE NOT deleted")
                .fetch_all(&self.readers)
                .await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    async fn stale(&self, key_id: &str, after: Option<&Placed>) -> Result<Vec<Placed>, Error> {
        let (past, namespace, key, version) = after.map_or((false, "", "", 0), |placed| {
            (placed.past, placed.namespace.as_str(), placed.key.as_str(), placed.row.version)
        });
        let rows = sqlx::query_as(
            "SELECT past, namespace, key, version, key_id, value FROM (
                 SELECT 0 AS past, namespace, key, version, key_id, value FROM entry
                 UNION ALL SELECT 1, namespace, key, version, key_id, value FROM history WHERE NOT deleted)
             WHERE key_id <> ?1 AND (past, namespace, key, version) > (?2, ?3, ?4, ?5)
             ORDER BY past, namespace, key, version LIMIT ?6",
        )
        .bind(key_id)
        .bind(past)
        .bind(namespace)
        .bind(key)
        .bind(version.cast_signed())
        .bind(BATCH)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(placed).collect())
    }

    async fn reseal(&self, rows: &[Placed]) -> Result<(), Error> {
        let mut transaction = self.begin().await?;
        for Placed { past, namespace, key, row } in rows {
            let statement = if *past {
                "UPDATE history SET key_id = ?4, value = ?5 WHERE namespace = ?1 AND key = ?2 AND version = ?3"
            } else {
                "UPDATE entry SET key_id = ?4, value = ?5 WHERE namespace = ?1 AND key = ?2 AND version = ?3"
            };
            sqlx::query(statement)
                .bind(namespace)
                .bind(key)
                .bind(row.version.cast_signed())
                .bind(&row.kept.key_id)
                .bind(row.kept.bytes.as_slice())
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// Nothing if the key is not as the write expects.
async fn apply(
    connection: &mut SqliteConnection,
    space: Space<'_>,
    write: &Write,
    now: Timestamp,
) -> Result<Option<Effect>, sqlx::Error> {
    let key = write.key.as_str();
    let now = now.unix().cast_signed();
    let present: Option<(i64,)> = sqlx::query_as("SELECT version FROM entry WHERE namespace = ?1 AND key = ?2")
        .bind(space.name)
        .bind(key)
        .fetch_optional(&mut *connection)
        .await?;
    if !write.condition.holds(present.map(|(version,)| version.cast_unsigned())) {
        return Ok(None);
    }
    if write.value.is_none() && present.is_none() {
        return Ok(Some(Effect::Absent));
    }
    let (version,): (i64,) =
        sqlx::query_as("UPDATE counter SET last = last + 1 RETURNING last").fetch_one(&mut *connection).await?;
    if space.versioned {
        sqlx::query(
            "INSERT INTO history (namespace, key, version, time, deleted, key_id, value)
             SELECT namespace, key, version, time, 0, key_id, value FROM entry WHERE namespace = ?1 AND key = ?2",
        )
        .bind(space.name)
        .bind(key)
        .execute(&mut *connection)
        .await?;
    }
    let effect = match &write.value {
        Some(Kept { key_id, bytes }) => {
            sqlx::query(
                "INSERT INTO entry (namespace, key, version, time, key_id, value) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (namespace, key) DO UPDATE SET version = ?3, time = ?4, key_id = ?5, value = ?6",
            )
            .bind(space.name)
            .bind(key)
            .bind(version)
            .bind(now)
            .bind(key_id)
            .bind(bytes.as_slice())
            .execute(&mut *connection)
            .await?;
            Effect::Put(version.cast_unsigned())
        }
        None => {
            sqlx::query("DELETE FROM entry WHERE namespace = ?1 AND key = ?2")
                .bind(space.name)
                .bind(key)
                .execute(&mut *connection)
                .await?;
            Effect::Deleted
        }
    };
    if space.versioned {
        record(connection, space.name, key, version, now, write.value.is_none()).await?;
    }
    Ok(Some(effect))
}

/// Records a deletion and forgets the oldest versions.
async fn record(
    connection: &mut SqliteConnection,
    namespace: &str,
    key: &str,
    version: i64,
    now: i64,
    deleted: bool,
) -> Result<(), sqlx::Error> {
    if deleted {
        sqlx::query(
            "INSERT INTO history (namespace, key, version, time, deleted, key_id, value)
             VALUES (?1, ?2, ?3, ?4, 1, '', x'')",
        )
        .bind(namespace)
        .bind(key)
        .bind(version)
        .bind(now)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query(
        "DELETE FROM history WHERE namespace = ?1 AND key = ?2 AND version NOT IN
             (SELECT version FROM history WHERE namespace = ?1 AND key = ?2 ORDER BY version DESC LIMIT ?3)",
    )
    .bind(namespace)
    .bind(key)
    .bind(HISTORY as i64 - 1)
    .execute(connection)
    .await?;
    Ok(())
}

fn prepare(directory: &Path, key: Option<MasterKey>) -> Result<(SqliteConnectOptions, MasterKey), Error> {
    let failed = |source| Error::Directory { path: directory.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let key = key.map_or_else(|| MasterKey::from_file(&directory.join("master.key")), Ok)?;
    let options = SqliteConnectOptions::new()
        .filename(directory.join("trustee.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(5));
    Ok((options, key))
}

/// An in-memory database vanishes with its connection, so connections are never retired.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .idle_timeout(None)
        .max_lifetime(None)
}

fn row((version, key_id, value): (i64, String, Vec<u8>)) -> Row {
    Row { version: version.cast_unsigned(), kept: Kept { key_id, bytes: value.into() } }
}

fn placed((past, namespace, key, version, key_id, value): (bool, String, String, i64, String, Vec<u8>)) -> Placed {
    Placed { past, namespace, key, row: row((version, key_id, value)) }
}

fn version((version, time, deleted): (i64, i64, bool)) -> Version {
    Version { version: version.cast_unsigned(), time: Timestamp::from_unix(time.cast_unsigned()), deleted }
}

const BEGIN: &str = "BEGIN IMMEDIATE";
const READERS: u32 = 4;
const BATCH: i64 = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::If;

    const SPACE: Space<'_> = Space { name: "policies", versioned: true, quiet: false };

    fn write(key: &str, size: usize) -> Write {
        let value = Kept { key_id: "id".to_owned(), bytes: vec![7; size].into() };
        Write { key: Key::parse(key).unwrap(), value: Some(value), condition: If::Any }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let (store, _) = Sqlite::open(directory.path(), None, Arc::default()).await.unwrap();
        store.write(SPACE, vec![write("small", 10)]).await.unwrap();
        let (pages,): (i64,) = sqlx::query_as("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
        let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {}", pages + 4));
        sqlx::query(limit).execute(&store.writer).await.unwrap();

        let full = store.write(SPACE, vec![write("other", 10), write("small", 1 << 20)]).await;

        assert!(matches!(full, Err(Error::Unavailable(_))));
        assert_eq!(store.list("policies", "", "", 10).await.unwrap(), ["small"]);
        let key = Key::parse("small").unwrap();
        assert_eq!(store.get("policies", &key).await.unwrap().unwrap().kept.bytes.len(), 10);
        assert_eq!(store.history("policies", &key).await.unwrap().len(), 1);
        store.write(SPACE, vec![write("small", 11)]).await.unwrap();
    }
}
