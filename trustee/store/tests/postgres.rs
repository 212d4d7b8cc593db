//! What only a database of several replicas has: takeover, races between replicas, a server that goes away.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postgres_server::{Durability, PostgresServer};
use store::{Changes, Error, Key, Location, MasterKey, Namespace, Store};

const SECRETS: Namespace = Namespace::new("repository");
const POLICIES: Namespace = Namespace::versioned("kbs");
const REFERENCES: Namespace = Namespace::new("reference_value");

fn location(url: &str) -> Location {
    Location::Postgres { url: url.to_owned().into(), connections: 3 }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_upstream_left_is_copied_once_and_sealed() {
    let server = PostgresServer::start_with(Durability::None);
    let url = server.url();
    server.psql_in(
        &url,
        "CREATE TABLE kbs (key TEXT PRIMARY KEY, value BYTEA); CREATE TABLE repository (LIKE kbs INCLUDING ALL);
         CREATE TABLE reference_value (LIKE kbs INCLUDING ALL); CREATE TABLE provisioner (something INT);
         INSERT INTO kbs VALUES ('resource-policy.rego', 'package policy');
         INSERT INTO repository VALUES ('default/key/1', 'a secret of some length'), ('ungültig', 'x'), ('null', NULL);
         INSERT INTO repository SELECT 'many/key/' || n, 'v' FROM generate_series(1, 120) AS n;
         INSERT INTO reference_value VALUES ('launch', '{\"version\":\"0.1.0\",\"name\":\"launch\",\"value\":1}')",
    );
    let before = server.psql_in(&url, "SELECT * FROM repository ORDER BY key");
    let master = MasterKey::generate().unwrap();

    let store = Store::open(&location(&url), Some(master.clone())).await.unwrap();

    let secret = store.get(SECRETS, &key("default/key/1")).await.unwrap().unwrap();
    assert_eq!(secret.value.as_slice(), b"a secret of some length");
    assert_eq!(store.list(SECRETS, "").await.unwrap().len(), 121);
    assert!(store.get(POLICIES, &key("resource-policy.rego")).await.unwrap().is_some());
    assert!(store.get(REFERENCES, &key("launch")).await.unwrap().is_some());
    assert_eq!(server.psql_in(&url, "SELECT * FROM repository ORDER BY key"), before);
    let sealed = server.psql_in(&url, "SELECT encode(value, 'escape') FROM cocoon_entry");
    assert!(!sealed.contains("secret"));

    store.delete(SECRETS, &key("default/key/1")).await.unwrap();
    store.close().await;
    let store = Store::open(&location(&url), Some(master)).await.unwrap();
    assert!(store.get(SECRETS, &key("default/key/1")).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_start_at_once_make_one_database_and_hear_each_other() {
    let server = PostgresServer::start_with(Durability::None);
    let url = server.url();
    let master = MasterKey::generate().unwrap();
    let opened = futures::future::join_all((0..6).map(|_| {
        let (url, master) = (url.clone(), master.clone());
        tokio::spawn(async move { Store::open(&location(&url), Some(master)).await.unwrap() })
    }));
    let replicas: Vec<Store> = opened.await.into_iter().map(Result::unwrap).collect();
    assert_eq!(server.psql_in(&url, "SELECT layout FROM cocoon_layout"), "2");

    let mut changes = replicas[1].changes(POLICIES);
    replicas[0].put(POLICIES, &key("p"), b"package policy").await.unwrap();
    heard(&mut changes).await;
    assert_eq!(replicas[1].get(POLICIES, &key("p")).await.unwrap().unwrap().value.as_slice(), b"package policy");

    // Both write the same keys in another order: neither waits for the other for ever.
    let forth: Vec<_> = (0..50).map(|i| (key(&format!("{i}")), vec![1])).collect();
    let back: Vec<_> = forth.iter().rev().cloned().collect();
    for _ in 0..5 {
        let (a, b) = tokio::join!(replicas[2].put_all(SECRETS, &forth), replicas[3].put_all(SECRETS, &back));
        a.unwrap();
        b.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_used_again_without_a_restart() {
    let mut server = PostgresServer::start();
    let store = Store::open(&location(&server.url()), Some(MasterKey::generate().unwrap())).await.unwrap();
    store.put(SECRETS, &key("k"), b"v").await.unwrap();
    let mut changes = store.changes(POLICIES);

    // A restart that nobody waits for: lost connections are replaced, and a read does not notice.
    server.stop();
    server.start_again();
    assert_eq!(store.get(SECRETS, &key("k")).await.unwrap().unwrap().value.as_slice(), b"v");
    // Whatever happened meanwhile may have changed anything.
    heard(&mut changes).await;
    assert!(store.healthy());
    store.put(SECRETS, &key("k"), b"w").await.unwrap();

    server.crash();
    let failed = store.put(SECRETS, &key("k"), b"x").await;
    assert!(matches!(failed, Err(Error::Unavailable(_))));
    assert!(store.ping().await.is_err());
    assert!(!store.healthy());

    server.start_again();
    heard(&mut changes).await;
    assert!(store.healthy());
    assert_eq!(store.get(SECRETS, &key("k")).await.unwrap().unwrap().value.as_slice(), b"w");
    store.put(POLICIES, &key("p"), b"v").await.unwrap();
    heard(&mut changes).await;
}

#[tokio::test]
async fn what_can_not_be_used_is_refused_without_the_password() {
    let server = PostgresServer::start_with(Durability::None);
    let master = MasterKey::generate().unwrap();
    assert!(matches!(Store::open(&location(&server.url()), None).await, Err(Error::NoKey)));
    for url in ["no url", "postgres://user:pass word@[::/x", "mysql://u:hunter2@host/x"] {
        let error = Store::open(&location(url), Some(master.clone())).await.err().unwrap();
        assert!(matches!(error, Error::Url), "{url}: {error}");
    }
    let wrong = server.url().replace("only-for-tests", "hunter2");
    let error = Store::open(&location(&wrong), Some(master.clone())).await.err().unwrap();
    assert!(matches!(error, Error::Unavailable(_)));
    assert!(!format!("{error} {error:?} {:?}", location(&wrong)).contains("hunter2"));

    Store::open(&location(&server.url()), Some(master.clone())).await.unwrap().close().await;
    server.psql_in(&server.url(), "UPDATE cocoon_layout SET layout = 3");
    let later = Store::open(&location(&server.url()), Some(master.clone())).await;
    assert!(matches!(later, Err(Error::Newer { found: 3 })));
    let back = Store::migrate_back(&location(&server.url()), Some(master), 1).await;
    assert!(matches!(back, Err(Error::NoSuchLayout { wanted: 1 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_prove_its_name_where_that_is_asked() {
    let mut server = PostgresServer::start_with(Durability::None);
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let asking = |name: &str, trusted: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, trusted).unwrap();
        format!("{}?sslmode=verify-full&sslrootcert={}", server.url(), path.display())
    };
    let (good, bad) = (asking("own.pem", &own.cert.pem()), asking("other.pem", &other.cert.pem()));
    let master = MasterKey::generate().unwrap();

    assert!(Store::open(&location(&good), Some(master.clone())).await.is_err());
    server.enable_tls(&own.cert.pem(), &own.signing_key.serialize_pem());

    let store = Store::open(&location(&good), Some(master.clone())).await.unwrap();
    store.put(SECRETS, &key("k"), b"v").await.unwrap();
    let encrypted = server.psql(
        "SELECT count(*) > 0 FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
        WHERE ssl AND application_name = 'trustee'",
    );
    assert_eq!(encrypted, "t");
    assert!(Store::open(&location(&bad), Some(master)).await.is_err());
}

async fn heard(changes: &mut Changes) {
    tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.expect("a change is told");
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}
