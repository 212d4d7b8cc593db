//! The tables in PostgreSQL, made at first, and what upstream's tables in the same database hold.
//!
//! Upstream has a table for each namespace, with columns key (text) and value (bytea). Its rows are copied, sealed,
//! in the transaction that makes our tables; hers stay as they are, so that the way back stays open.

use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::clock::Clock;
use crate::error::Error;
use crate::key::Key;
use crate::master_key::MasterKey;
use crate::{LAYOUT, MAX_VALUE};

/// Brings the database to the present layout. Replicas that start at once wait for the first.
pub(super) async fn forward(pool: &PgPool, key: &MasterKey) -> Result<(), Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    let (exists,): (bool,) =
        sqlx::query_as("SELECT to_regclass('cocoon_layout') IS NOT NULL").fetch_one(&mut *transaction).await?;
    if exists {
        let (found,): (i64,) = sqlx::query_as("SELECT layout FROM cocoon_layout").fetch_one(&mut *transaction).await?;
        transaction.rollback().await?;
        return if found == LAYOUT { Ok(()) } else { Err(Error::Newer { found }) };
    }
    sqlx::raw_sql(CREATE).execute(&mut *transaction).await?;
    sqlx::query("INSERT INTO cocoon_layout (layout) VALUES ($1)").bind(LAYOUT).execute(&mut *transaction).await?;
    for table in UPSTREAM {
        if is_upstreams(&mut transaction, table).await? {
            take_over(&mut transaction, key, table).await?;
        }
    }
    Ok(transaction.commit().await?)
}

async fn is_upstreams(connection: &mut PgConnection, table: &str) -> Result<bool, Error> {
    let (columns,): (i64,) = sqlx::query_as(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass($1) AND NOT attisdropped
         AND (attname, atttypid) IN (('key', 'text'::regtype), ('value', 'bytea'::regtype))",
    )
    .bind(table)
    .fetch_one(connection)
    .await?;
    Ok(columns == 2)
}

async fn take_over(connection: &mut PgConnection, master: &MasterKey, table: &'static str) -> Result<(), Error> {
    let now = Clock::system().now().unix().cast_signed();
    let (mut taken, mut left, mut last) = (0_u64, 0_u64, String::new());
    loop {
        // The table is one of the names below.
        let page = format!(
            "SELECT key, value FROM {table} WHERE key COLLATE \"C\" > $1 AND value IS NOT NULL
             ORDER BY key COLLATE \"C\" LIMIT 50"
        );
        let rows: Vec<(String, Vec<u8>)> =
            sqlx::query_as(AssertSqlSafe(page)).bind(&last).fetch_all(&mut *connection).await?;
        let Some((end, _)) = rows.last() else { break };
        last.clone_from(end);
        for (key, value) in rows {
            if Key::parse(&key).is_err() {
                left += 1;
                continue;
            }
            if value.len() > MAX_VALUE {
                return Err(Error::TooLarge { size: value.len() });
            }
            sqlx::query(
                "INSERT INTO cocoon_entry (namespace, key, version, time, key_id, value)
                 VALUES ($1, $2, nextval('cocoon_version'), $3, $4, $5)",
            )
            .bind(table)
            .bind(&key)
            .bind(now)
            .bind(master.id())
            .bind(master.seal(table, &key, &value)?)
            .execute(&mut *connection)
            .await?;
            taken += 1;
        }
    }
    tracing::info!(table, taken, "entries were copied and sealed; the table itself was left as it is");
    if left > 0 {
        tracing::warn!(table, left, "entries were not copied: their keys have characters that no key has");
    }
    Ok(())
}

/// Upstream's tables, each named as its namespace.
const UPSTREAM: [&str; 5] = ["kbs", "repository", "attestation_service_policy", "reference_value", "provisioner"];
/// Any number that nothing else in the database uses.
const LOCK: i64 = 0x636f_636f_6f6e;
/// Keys are compared by their bytes, as in every other place.
const CREATE: &str = r#"
    CREATE TABLE cocoon_layout (layout BIGINT NOT NULL);
    CREATE SEQUENCE cocoon_version;
    CREATE TABLE cocoon_entry (
        namespace TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL,
        time BIGINT NOT NULL, key_id TEXT NOT NULL, value BYTEA NOT NULL, PRIMARY KEY (namespace, key));
    CREATE TABLE cocoon_history (
        namespace TEXT COLLATE "C" NOT NULL, key TEXT COLLATE "C" NOT NULL, version BIGINT NOT NULL,
        time BIGINT NOT NULL, deleted BOOLEAN NOT NULL, key_id TEXT NOT NULL, value BYTEA NOT NULL,
        PRIMARY KEY (namespace, key, version));"#;
