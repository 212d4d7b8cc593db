//! One write in PostgreSQL, and what it leaves in the history.

use sqlx::{PgConnection, PgExecutor};

use crate::HISTORY;
use crate::backend::{Effect, If, Kept, Write};

/// Does one write in one statement. Nothing if the key is not as it expects.
pub(super) async fn apply(
    executor: impl PgExecutor<'_>,
    namespace: &str,
    write: &Write,
    now: i64,
) -> Result<Option<Effect>, sqlx::Error> {
    let key = write.key.as_str();
    let Some(Kept { key_id, bytes }) = &write.value else {
        let query = match write.condition {
            If::Any => sqlx::query_as("DELETE FROM cocoon_entry WHERE namespace = $1 AND key = $2 RETURNING version"),
            If::Version(_) => sqlx::query_as(
                "DELETE FROM cocoon_entry WHERE namespace = $1 AND key = $2 AND version = $3 RETURNING version",
            ),
            If::Absent => sqlx::query_as("SELECT version FROM cocoon_entry WHERE namespace = $1 AND key = $2"),
        };
        let query = query.bind(namespace).bind(key);
        let query = match write.condition {
            If::Version(version) => query.bind(version.cast_signed()),
            If::Any | If::Absent => query,
        };
        let row: Option<(i64,)> = query.fetch_optional(executor).await?;
        return Ok(match (write.condition, row) {
            (If::Any, None) | (If::Absent, None) => Some(Effect::Absent),
            (If::Any | If::Version(_), Some(_)) => Some(Effect::Deleted),
            (If::Absent, Some(_)) | (If::Version(_), None) => None,
        });
    };
    let query = match write.condition {
        If::Any => sqlx::query_as(
            "INSERT INTO cocoon_entry (namespace, key, version, time, key_id, value)
             VALUES ($1, $2, nextval('cocoon_version'), $3, $4, $5)
             ON CONFLICT (namespace, key) DO UPDATE
             SET version = excluded.version, time = $3, key_id = $4, value = $5 RETURNING version",
        ),
        If::Absent => sqlx::query_as(
            "INSERT INTO cocoon_entry (namespace, key, version, time, key_id, value)
             VALUES ($1, $2, nextval('cocoon_version'), $3, $4, $5) ON CONFLICT DO NOTHING RETURNING version",
        ),
        If::Version(_) => sqlx::query_as(
            "UPDATE cocoon_entry SET version = nextval('cocoon_version'), time = $3, key_id = $4, value = $5
             WHERE namespace = $1 AND key = $2 AND version = $6 RETURNING version",
        ),
    };
    let query = query.bind(namespace).bind(key).bind(now).bind(key_id).bind(bytes.as_slice());
    let query = match write.condition {
        If::Version(version) => query.bind(version.cast_signed()),
        If::Any | If::Absent => query,
    };
    let row: Option<(i64,)> = query.fetch_optional(executor).await?;
    Ok(row.map(|(version,)| Effect::Put(version.cast_unsigned())))
}

/// Copies what is about to be overwritten to the history. Writers of one key wait here for each other, or two that
/// find it absent would lose the first one's version.
pub(super) async fn keep(connection: &mut PgConnection, namespace: &str, key: &str) -> Result<(), sqlx::Error> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0))")
        .bind(namespace)
        .bind(key)
        .execute(&mut *connection)
        .await?;
    sqlx::query(
        "INSERT INTO cocoon_history (namespace, key, version, time, deleted, key_id, value)
         SELECT namespace, key, version, time, FALSE, key_id, value FROM cocoon_entry
         WHERE namespace = $1 AND key = $2",
    )
    .bind(namespace)
    .bind(key)
    .execute(connection)
    .await?;
    Ok(())
}

/// Records a deletion and forgets the oldest versions.
pub(super) async fn record(
    connection: &mut PgConnection,
    namespace: &str,
    key: &str,
    effect: &Effect,
    now: i64,
) -> Result<(), sqlx::Error> {
    if matches!(effect, Effect::Deleted) {
        sqlx::query(
            "INSERT INTO cocoon_history (namespace, key, version, time, deleted, key_id, value)
             VALUES ($1, $2, nextval('cocoon_version'), $3, TRUE, '', '')",
        )
        .bind(namespace)
        .bind(key)
        .bind(now)
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query(
        "DELETE FROM cocoon_history WHERE namespace = $1 AND key = $2 AND version NOT IN
             (SELECT version FROM cocoon_history WHERE namespace = $1 AND key = $2 ORDER BY version DESC LIMIT $3)",
    )
    .bind(namespace)
    .bind(key)
    .bind(HISTORY as i64 - 1)
    .execute(connection)
    .await?;
    Ok(())
}
