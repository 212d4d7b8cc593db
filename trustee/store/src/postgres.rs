//! Entries in one PostgreSQL database that any number of replicas share.
//!
//! What is read is asked again where the connection was lost, and a transaction is begun again. What is written is
//! not written again: nobody knows then whether it was done, and so it is an error for the caller.

mod listener;
mod migration;
mod write;

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::mpsc;

use crate::HISTORY;
use crate::backend::{Backend, Kept, Placed, Row, Space, Version, Write, Written};
use crate::changes::Bell;
use crate::clock::{Clock, Timestamp};
use crate::error::Error;
use crate::key::Key;
use crate::master_key::MasterKey;
use listener::Listener;
use write::{apply, keep, record};

pub(crate) struct Postgres {
    pool: PgPool,
    listener: Listener,
    /// How often a read is asked: each connection may have been lost without a sign.
    attempts: u32,
}

impl Postgres {
    pub async fn open(url: &str, connections: u32, key: &MasterKey, bell: Arc<Bell>) -> Result<Self, Error> {
        // The driver looks at no scheme, and its parser's own words could hold parts of the password.
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(Error::Url);
        }
        let options = PgConnectOptions::from_str(url).map_err(|_| Error::Url)?;
        let options = options.application_name("trustee").disable_statement_logging();
        let connections = connections.max(1);
        let pool = pool(connections).connect_with(options.clone()).await?;
        migration::forward(&pool, key).await?;
        let listener = Listener::start(pool_of_listener(options), bell).await?;
        Ok(Self { pool, listener, attempts: connections + 1 })
    }

    async fn retried<T, F>(&self, read: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, sqlx::Error>>,
    {
        let mut attempt = 1;
        loop {
            match read().await {
                Err(error) if attempt < self.attempts && is_lost(&error) => attempt += 1,
                done => return Ok(done?),
            }
        }
    }

    async fn write_together(&self, space: Space<'_>, writes: Vec<Write>, now: i64) -> Result<Written, Error> {
        // Nothing is asked before the transaction has begun: it may be begun again.
        let mut transaction = self.retried(|| self.pool.begin()).await?;
        let mut effects = Vec::with_capacity(writes.len());
        // All replicas take the rows in the same order, so that none waits for one that waits for it.
        let mut order: Vec<usize> = (0..writes.len()).collect();
        order.sort_by(|a, b| writes[*a].key.cmp(&writes[*b].key));
        for i in order {
            let write = &writes[i];
            if space.versioned {
                keep(&mut transaction, space.name, write.key.as_str()).await?;
            }
            let Some(effect) = apply(&mut *transaction, space.name, write, now).await? else {
                transaction.rollback().await?;
                return Ok(Written::Conflict(write.key.clone()));
            };
            if space.versioned {
                record(&mut transaction, space.name, write.key.as_str(), &effect, now).await?;
            }
            effects.push((i, effect));
        }
        if !space.quiet {
            sqlx::query("SELECT pg_notify($1, $2)")
                .bind(listener::CHANNEL)
                .bind(space.name)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        effects.sort_by_key(|(i, _)| *i);
        Ok(Written::Done(effects.into_iter().map(|(_, effect)| effect).collect()))
    }
}

#[async_trait]
impl Backend for Postgres {
    async fn get(&self, namespace: &str, key: &Key) -> Result<Option<Row>, Error> {
        let read = || {
            sqlx::query_as("SELECT version, key_id, value FROM cocoon_entry WHERE namespace = $1 AND key = $2")
                .bind(namespace)
                .bind(key.as_str())
                .fetch_optional(&self.pool)
        };
        Ok(self.retried(read).await?.map(row))
    }

    async fn write(&self, space: Space<'_>, writes: Vec<Write>) -> Result<Written, Error> {
        let now = Clock::system().now().unix().cast_signed();
        if let ([write], false, true) = (&writes[..], space.versioned, space.quiet) {
            return Ok(match apply(&self.pool, space.name, write, now).await? {
                Some(effect) => Written::Done(vec![effect]),
                None => Written::Conflict(write.key.clone()),
            });
        }
        self.write_together(space, writes, now).await
    }

    async fn delete_before(&self, space: Space<'_>, bound: &Key) -> Result<u64, Error> {
        let mut transaction = self.retried(|| self.pool.begin()).await?;
        let done = sqlx::query("DELETE FROM cocoon_entry WHERE namespace = $1 AND key < $2")
            .bind(space.name)
            .bind(bound.as_str())
            .execute(&mut *transaction)
            .await?;
        if done.rows_affected() > 0 && !space.quiet {
            sqlx::query("SELECT pg_notify($1, $2)")
                .bind(listener::CHANNEL)
                .bind(space.name)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(done.rows_affected())
    }

    async fn list(&self, namespace: &str, prefix: &str, after: &str, limit: i64) -> Result<Vec<String>, Error> {
        // No key holds a byte as high as DEL, so it closes the range of keys that share a prefix.
        let read = || {
            sqlx::query_as(
                "SELECT key FROM cocoon_entry
                 WHERE namespace = $1 AND key >= $2 AND key < $2 || chr(127) AND key > $3 ORDER BY key LIMIT $4",
            )
            .bind(namespace)
            .bind(prefix)
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
        };
        let rows: Vec<(String,)> = self.retried(read).await?;
        Ok(rows.into_iter().map(|(key,)| key).collect())
    }

    async fn history(&self, namespace: &str, key: &Key) -> Result<Vec<Version>, Error> {
        let read = || {
            sqlx::query_as(
                "SELECT version, time, FALSE AS deleted FROM cocoon_entry WHERE namespace = $1 AND key = $2
                 UNION ALL SELECT version, time, deleted FROM cocoon_history WHERE namespace = $1 AND key = $2
                 ORDER BY version DESC LIMIT $3",
            )
            .bind(namespace)
            .bind(key.as_str())
            .bind(HISTORY as i64)
            .fetch_all(&self.pool)
        };
        let rows: Vec<(i64, i64, bool)> = self.retried(read).await?;
        Ok(rows.into_iter().map(version).collect())
    }

    async fn at(&self, namespace: &str, key: &Key, version: u64) -> Result<Option<Row>, Error> {
        let read = || {
            sqlx::query_as(
                "SELECT version, key_id, value FROM cocoon_entry WHERE namespace = $1 AND key = $2 AND version = $3
                 UNION ALL SELECT version, key_id, value FROM cocoon_history
                     WHERE namespace = $1 AND key = $2 AND version = $3 AND NOT deleted",
            )
            .bind(namespace)
            .bind(key.as_str())
            .bind(version.cast_signed())
            .fetch_optional(&self.pool)
        };
        Ok(self.retried(read).await?.map(row))
    }

    async fn scan(&self, rows: mpsc::Sender<Placed>) -> Result<(), Error> {
        // One statement sees one state of the database, however long it is read.
        let mut entries = sqlx::query_as(
            "SELECT FALSE, namespace, key, version, key_id, value FROM cocoon_entry ORDER BY namespace, key",
        )
        .fetch(&self.pool)
        .map_ok(placed);
        while let Some(entry) = entries.try_next().await? {
            if rows.send(entry).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn ping(&self) -> Result<(), Error> {
        let _: (i32,) = self.retried(|| sqlx::query_as("SELECT 1").fetch_one(&self.pool)).await?;
        Ok(())
    }

    async fn close(&self) {
        self.listener.close().await;
        self.pool.close().await;
    }

    fn healthy(&self) -> bool {
        self.listener.is_up()
    }

    async fn key_ids(&self) -> Result<Vec<String>, Error> {
        let read = || {
            sqlx::query_as("SELECT key_id FROM cocoon_entry UNION SELECT key_id FROM cocoon_history WHERE NOT deleted")
                .fetch_all(&self.pool)
        };
        let rows: Vec<(String,)> = self.retried(read).await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    async fn stale(&self, key_id: &str, after: Option<&Placed>) -> Result<Vec<Placed>, Error> {
        let (past, namespace, key, version) = after.map_or((false, "", "", 0), |placed| {
            (placed.past, placed.namespace.as_str(), placed.key.as_str(), placed.row.version)
        });
        let read = || {
            sqlx::query_as(
                "SELECT past, namespace, key, version, key_id, value FROM (
                     SELECT FALSE AS past, namespace, key, version, key_id, value FROM cocoon_entry
                     UNION ALL SELECT TRUE, namespace, key, version, key_id, value FROM cocoon_history
                         WHERE NOT deleted) AS rows
                 WHERE key_id <> $1 AND (past, namespace, key, version) > ($2, $3, $4, $5)
                 ORDER BY past, namespace, key, version LIMIT $6",
            )
            .bind(key_id)
            .bind(past)
            .bind(namespace)
            .bind(key)
            .bind(version.cast_signed())
            .bind(BATCH)
            .fetch_all(&self.pool)
        };
        Ok(self.retried(read).await?.into_iter().map(placed).collect())
    }

    async fn reseal(&self, rows: &[Placed]) -> Result<(), Error> {
        let mut transaction = self.retried(|| self.pool.begin()).await?;
        for Placed { past, namespace, key, row } in rows {
            let statement = if *past {
                "UPDATE cocoon_history SET key_id = $4, value = $5 WHERE namespace = $1 AND key = $2 AND version = $3"
            } else {
                "UPDATE cocoon_entry SET key_id = $4, value = $5 WHERE namespace = $1 AND key = $2 AND version = $3"
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

fn pool(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(5))
        // A question before each use would double the way of every statement.
        .test_before_acquire(false)
        .before_acquire(|connection, state| {
            Box::pin(async move {
                if state.idle_for > Duration::from_secs(1) {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
}

/// Its one connection is for good.
fn pool_of_listener(options: PgConnectOptions) -> PgPool {
    PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(5))
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_lazy_with(options)
}

/// Whether the connection is gone, or was told to go because the server stops or has crashed.
fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P")),
        _ => false,
    }
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

const BATCH: i64 = 200;
