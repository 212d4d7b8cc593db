//! The own store as a place of resources.

use store::{Key, Namespace, Store};

use super::{clock, keeps_resources, listed, makes_once, path, put, value};
use crate::{Condition, Config, Error, Kind};

#[tokio::test]
async fn resources_lie_where_upstream_looks_for_them() {
    let store = Store::memory().await.unwrap();
    let backend = crate::open(Config::default(), store.clone(), clock().1).await.unwrap();
    keeps_resources(&*backend).await;
    makes_once(&*backend).await;

    let key = Key::parse("default/key/1").unwrap();
    let entry = store.get(Namespace::new("repository"), &key).await.unwrap().unwrap();
    assert_eq!(entry.value.as_slice(), b"again");
}

#[tokio::test]
async fn a_version_can_be_replaced_and_removed_once() {
    let store = Store::memory().await.unwrap();
    let backend = crate::open(Config::default(), store, clock().1).await.unwrap();
    let at = path("default/key/1");
    let first = put(&*backend, "default/key/1", b"1").await.unwrap();
    assert_eq!(backend.get(&at).await.unwrap().unwrap().version, Some(first.clone()));

    let first = Condition::Version(first);
    let second = Condition::Version(backend.put(&at, b"2", &first).await.unwrap().unwrap());
    for late in [&first, &Condition::Version("none of ours".to_owned())] {
        let error = backend.put(&at, b"3", late).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
        assert!(matches!(backend.delete(&at, late).await, Err(Error::Conflict { .. })));
    }
    assert!(matches!(backend.delete(&at, &Condition::Absent).await, Err(Error::Conflict { .. })));
    assert!(backend.delete(&at, &second).await.unwrap());
    assert_eq!(value(&*backend, "default/key/1").await, None);
}

#[tokio::test]
async fn a_list_goes_on_where_a_page_ends_and_leaves_out_what_is_no_resource() {
    let store = Store::memory().await.unwrap();
    let mut entries: Vec<_> =
        (0..2500).map(|n| (Key::parse(&format!("many/key/{n:04}")).unwrap(), b"v".to_vec())).collect();
    entries.push((Key::parse("many/stray").unwrap(), b"v".to_vec()));
    store.put_all(Namespace::new("repository"), &entries).await.unwrap();
    let backend = crate::open(Config::default(), store, clock().1).await.unwrap();
    let paths = listed(&*backend, Some("many")).await;
    assert_eq!((paths.len(), paths.last().unwrap().as_str()), (2500, "many/key/2499"));
}
