//! The master key is changed while the store is in use.

#![allow(clippy::unwrap_used)]

use postgres_server::{Durability, PostgresServer};
use store::{Error, Key, Location, MasterKey, Namespace, Store};

const SECRETS: Namespace = Namespace::new("repository");
const POLICIES: Namespace = Namespace::versioned("kbs");

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_changes_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Sqlite { directory: folder.path().join("data") };
    replicas_go_on_and_the_old_key_can_go(&location).await;

    let file = std::fs::read(folder.path().join("data/trustee.db")).unwrap();
    assert!(!file.windows(7).any(|w| w == b"value 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_changes_its_key() {
    let server = PostgresServer::start_with(Durability::None);
    let location = Location::Postgres { url: server.url().into(), connections: 3 };
    replicas_go_on_and_the_old_key_can_go(&location).await;
}

async fn replicas_go_on_and_the_old_key_can_go(location: &Location) {
    let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
    let store = Store::open(location, Some(old.clone())).await.unwrap();
    // More than one batch.
    let entries: Vec<_> = (0..450).map(|i| (key(&format!("{i:03}")), format!("value {i}").into_bytes())).collect();
    store.put_all(SECRETS, &entries).await.unwrap();
    let first = store.put(POLICIES, &key("p"), b"value one").await.unwrap();
    store.put(POLICIES, &key("p"), b"value two").await.unwrap();
    let version = store.get(SECRETS, &key("000")).await.unwrap().unwrap().version;
    let replica = Store::open(location, Some(old.clone().and(&new))).await.unwrap();

    assert_eq!(store.rotate(new.clone()).await.unwrap(), 452);

    assert_eq!(store.get(SECRETS, &key("000")).await.unwrap().unwrap().version, version);
    for store in [&store, &replica] {
        assert_eq!(store.get(SECRETS, &key("449")).await.unwrap().unwrap().value.as_slice(), b"value 449");
        assert_eq!(store.at(POLICIES, &key("p"), first).await.unwrap().unwrap().value.as_slice(), b"value one");
    }
    // The replica still seals with the old key, the store with the new one.
    replica.put(SECRETS, &key("late"), b"value").await.unwrap();
    store.put(SECRETS, &key("early"), b"value").await.unwrap();
    assert!(matches!(Store::open(location, Some(new.clone())).await, Err(Error::OtherKey { .. })));
    assert_eq!(store.rotate(new.clone()).await.unwrap(), 1);
    assert_eq!(store.rotate(new.clone()).await.unwrap(), 0);
    replica.close().await;
    store.close().await;

    let store = Store::open(location, Some(new)).await.unwrap();
    assert_eq!(store.list(SECRETS, "").await.unwrap().len(), 452);
    assert_eq!(store.get(SECRETS, &key("late")).await.unwrap().unwrap().value.as_slice(), b"value");
    assert!(matches!(Store::open(location, Some(old)).await, Err(Error::OtherKey { .. })));
}

#[tokio::test]
async fn a_rotation_that_was_cut_off_is_finished_by_another() {
    let folder = tempfile::tempdir().unwrap();
    let location = Location::Sqlite { directory: folder.path().to_owned() };
    let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
    let store = Store::open(&location, Some(old.clone())).await.unwrap();
    store.put(SECRETS, &key("a"), b"value").await.unwrap();
    store.put(SECRETS, &key("b"), b"value").await.unwrap();
    store.close().await;
    // As if the first batch had come to its end and the process with it: one row under each key.
    let half = Store::open(&location, Some(new.clone().and(&old))).await.unwrap();
    half.put(SECRETS, &key("a"), b"value").await.unwrap();
    half.close().await;

    let store = Store::open(&location, Some(old.and(&new))).await.unwrap();
    assert_eq!(store.rotate(new.clone()).await.unwrap(), 1);
    store.close().await;
    let store = Store::open(&location, Some(new)).await.unwrap();
    assert_eq!(store.get(SECRETS, &key("b")).await.unwrap().unwrap().value.as_slice(), b"value");
}

#[tokio::test]
async fn files_have_no_key_to_change() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Location::LocalFs { directory: folder.path().to_owned() }, None).await.unwrap();
    assert!(matches!(store.rotate(MasterKey::generate().unwrap()).await, Err(Error::Plaintext)));
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}
