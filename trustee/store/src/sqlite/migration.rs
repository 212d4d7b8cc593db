//! The layouts of the SQLite database, and the way from each to the next and back.
//!
//! Layout 1 had namespaces of our own; since layout 2 they bear upstream's names. A value is sealed for its
//! namespace, so it is sealed anew when that changes. Each step is one transaction.

use sqlx::sqlite::SqlitePool;
use sqlx::{Sqlite, Transaction};

use crate::LAYOUT;
use crate::error::Error;
use crate::master_key::MasterKey;

/// Brings the database to the present layout.
pub(super) async fn forward(writer: &SqlitePool, key: &MasterKey) -> Result<(), Error> {
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    let found = layout(&mut transaction).await?;
    match found {
        LAYOUT => return Ok(transaction.rollback().await?),
        0 => _ = sqlx::raw_sql(CREATE).execute(&mut *transaction).await?,
        1 => check_key(&mut transaction, key).await?,
        found => return Err(Error::Newer { found }),
    }
    sqlx::raw_sql(TO_2).execute(&mut *transaction).await?;
    for (old, new) in RENAMED {
        rename(&mut transaction, key, old, new).await?;
    }
    transaction.commit().await?;
    if found == 1 {
        tracing::info!("the database has been taken from layout 1 to 2");
    }
    Ok(())
}

/// Takes the database from the present layout to an earlier one.
pub(super) async fn back(writer: &SqlitePool, key: &MasterKey, wanted: i64) -> Result<(), Error> {
    if wanted != 1 {
        return Err(Error::NoSuchLayout { wanted });
    }
    let mut transaction = writer.begin_with("BEGIN IMMEDIATE").await?;
    match layout(&mut transaction).await? {
        LAYOUT => check_key(&mut transaction, key).await?,
        1 => return Ok(transaction.rollback().await?),
        0 => return Err(Error::NoSuchLayout { wanted }),
        found => return Err(Error::Newer { found }),
    }
    for (old, new) in RENAMED {
        rename(&mut transaction, key, new, old).await?;
    }
    sqlx::raw_sql(BACK_TO_1).execute(&mut *transaction).await?;
    transaction.commit().await?;
    tracing::info!("the database has been taken back from layout 2 to 1; its history is gone");
    Ok(())
}

async fn layout(transaction: &mut Transaction<'_, Sqlite>) -> Result<i64, Error> {
    let (layout,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(&mut **transaction).await?;
    Ok(layout)
}

async fn check_key(transaction: &mut Transaction<'_, Sqlite>, key: &MasterKey) -> Result<(), Error> {
    let ids: Vec<(String,)> = sqlx::query_as("SELECT DISTINCT key_id FROM entry").fetch_all(&mut **transaction).await?;
    match ids.into_iter().find(|(id,)| !key.knows(id)) {
        Some((id,)) => Err(Error::OtherKey { sealed_with: id, given: key.id().to_owned() }),
        None => Ok(()),
    }
}

/// Moves all entries of a namespace to another, a few at a time so that memory is bounded.
async fn rename(
    transaction: &mut Transaction<'_, Sqlite>,
    master: &MasterKey,
    from: &str,
    to: &str,
) -> Result<(), Error> {
    loop {
        let rows: Vec<(String, String, Vec<u8>)> =
            sqlx::query_as("SELECT key, key_id, value FROM entry WHERE namespace = ?1 LIMIT 50")
                .bind(from)
                .fetch_all(&mut **transaction)
                .await?;
        if rows.is_empty() {
            return Ok(());
        }
        for (key, key_id, sealed) in rows {
            let value = master
                .open(&key_id, from, &key, &sealed)
                .map_err(|_| Error::Damaged { namespace: from.to_owned(), key: key.clone() })?;
            sqlx::query("UPDATE entry SET namespace = ?3, key_id = ?4, value = ?5 WHERE namespace = ?1 AND key = ?2")
                .bind(from)
                .bind(&key)
                .bind(to)
                .bind(master.id())
                .bind(master.seal(to, &key, &value)?)
                .execute(&mut **transaction)
                .await?;
        }
    }
}

/// Namespaces of layout 1 and what they are called in layout 2.
const RENAMED: [(&str, &str); 5] = [
    ("resource", "repository"),
    ("resource-policy", "kbs"),
    ("attestation-policy", "attestation_service_policy"),
    ("reference-value", "reference_value"),
    ("key", "signing-key"),
];
const CREATE: &str = "CREATE TABLE entry (
    namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, key_id TEXT NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (namespace, key)) STRICT";
const TO_2: &str = "
    ALTER TABLE entry ADD COLUMN time INTEGER NOT NULL DEFAULT 0;
    UPDATE entry SET time = unixepoch();
    CREATE TABLE history (
        namespace TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, time INTEGER NOT NULL,
        deleted INTEGER NOT NULL, key_id TEXT NOT NULL, value BLOB NOT NULL,
        PRIMARY KEY (namespace, key, version)) STRICT;
    CREATE TABLE counter (last INTEGER NOT NULL) STRICT;
    INSERT INTO counter SELECT coalesce(max(version), 0) FROM entry;
    PRAGMA user_version = 2";
const BACK_TO_1: &str = "
    DROP TABLE history;
    DROP TABLE counter;
    ALTER TABLE entry DROP COLUMN time;
    PRAGMA user_version = 1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Namespace};
    use crate::{Location, Store};
    use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
    use std::path::Path;

    const RESOURCES: Namespace = Namespace::new("repository");
    const POLICIES: Namespace = Namespace::versioned("kbs");

    async fn raw(directory: &Path) -> SqlitePool {
        let options = SqliteConnectOptions::new().filename(directory.join("trustee.db")).create_if_missing(true);
        SqlitePoolOptions::new().connect_with(options).await.unwrap()
    }

    /// A database as the first release wrote it.
    async fn layout_1(directory: &Path, key: &MasterKey) {
        let database = raw(directory).await;
        sqlx::raw_sql(CREATE).execute(&database).await.unwrap();
        sqlx::raw_sql("PRAGMA user_version = 1").execute(&database).await.unwrap();
        for (namespace, name, version, value) in ENTRIES {
            sqlx::query("INSERT INTO entry (namespace, key, version, key_id, value) VALUES (?, ?, ?, ?, ?)")
                .bind(namespace)
                .bind(name)
                .bind(version)
                .bind(key.id())
                .bind(key.seal(namespace, name, value.as_bytes()).unwrap())
                .execute(&database)
                .await
                .unwrap();
        }
        database.close().await;
    }

    const ENTRIES: [(&str, &str, i64, &str); 5] = [
        ("resource", "default/key/1", 7, "secret"),
        ("resource-policy", "resource-policy.rego", 1, "package policy"),
        ("attestation-policy", "default_cpu.rego", 1, "package policy"),
        ("reference-value", "launch", 1, "{}"),
        ("session", "000", 1, "token"),
    ];

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    #[tokio::test]
    async fn a_database_of_the_first_release_is_taken_over_and_can_go_back() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Sqlite { directory: directory.path().to_owned() };
        let master = MasterKey::generate().unwrap();
        layout_1(directory.path(), &master).await;

        let store = Store::open(&location, Some(master.clone())).await.unwrap();
        let entry = store.get(RESOURCES, &key("default/key/1")).await.unwrap().unwrap();
        assert_eq!((entry.value.as_slice(), entry.version), (b"secret".as_slice(), 7));
        let policy = key("resource-policy.rego");
        assert!(store.put(POLICIES, &policy, b"package other").await.unwrap() > 7);
        assert_eq!(store.history(POLICIES, &policy).await.unwrap().len(), 2);
        store.close().await;

        Store::migrate_back(&location, Some(master.clone()), 1).await.unwrap();
        Store::migrate_back(&location, Some(master.clone()), 1).await.unwrap();

        let database = raw(directory.path()).await;
        let rows: Vec<(String, String, Vec<u8>)> =
            sqlx::query_as("SELECT namespace, key, value FROM entry ORDER BY rowid")
                .fetch_all(&database)
                .await
                .unwrap();
        for ((namespace, key, value), (old, name, _, text)) in rows.iter().zip(ENTRIES) {
            assert_eq!((namespace.as_str(), key.as_str()), (old, name));
            let text = if old == "resource-policy" { "package other" } else { text };
            assert_eq!(master.open(master.id(), namespace, key, value).unwrap().as_slice(), text.as_bytes());
        }
        let (layout,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(&database).await.unwrap();
        let (tables,): (i64,) = sqlx::query_as("SELECT count(*) FROM sqlite_schema WHERE type = 'table'")
            .fetch_one(&database)
            .await
            .unwrap();
        assert_eq!((layout, tables, rows.len()), (1, 1, ENTRIES.len()));
        database.close().await;

        let store = Store::open(&location, Some(master)).await.unwrap();
        assert!(store.get(RESOURCES, &key("default/key/1")).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn another_key_or_a_later_layout_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let location = Location::Sqlite { directory: directory.path().to_owned() };
        let master = MasterKey::generate().unwrap();
        layout_1(directory.path(), &master).await;

        let other = MasterKey::generate().unwrap();
        assert!(matches!(Store::open(&location, Some(other)).await, Err(Error::OtherKey { .. })));
        Store::open(&location, Some(master.clone())).await.unwrap().close().await;

        let wanted = Store::migrate_back(&location, Some(master.clone()), 2).await;
        assert!(matches!(wanted, Err(Error::NoSuchLayout { wanted: 2 })));
        let database = raw(directory.path()).await;
        sqlx::raw_sql("PRAGMA user_version = 3").execute(&database).await.unwrap();
        database.close().await;
        assert!(matches!(Store::open(&location, Some(master.clone())).await, Err(Error::Newer { found: 3 })));
        let back = Store::migrate_back(&location, Some(master), 1).await;
        assert!(matches!(back, Err(Error::Newer { found: 3 })));
    }
}
