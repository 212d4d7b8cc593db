//! What every place that holds a store must do alike: each case runs on all of them.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use postgres_server::{Durability, PostgresServer};
use store::backup::Target;
use store::{Changes, Error, HISTORY, If, Key, Location, MAX_LIST, MAX_VALUE, MasterKey, Namespace, Store};
use tempfile::TempDir;

const SECRETS: Namespace = Namespace::new("repository");
const OTHERS: Namespace = Namespace::new("reference_value");
const POLICIES: Namespace = Namespace::versioned("kbs");
const SESSIONS: Namespace = Namespace::quiet("session");

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        async fn all(place: &Place) {
            $(
                println!("{}: {}", place.name, stringify!($case));
                $case(&place.empty()).await;
            )*
        }
    };
}

cases! {
    what_was_put_is_read_until_it_is_deleted,
    a_conditional_write_loses_against_an_earlier_one,
    a_conditional_delete_loses_against_a_later_write,
    no_version_comes_back_after_a_deletion_of_another_value,
    several_writes_are_done_together_or_not_at_all,
    keys_are_listed_by_prefix_and_page,
    what_sorts_before_a_bound_is_deleted,
    versions_are_kept_with_their_values,
    the_oldest_versions_are_forgotten,
    one_of_many_conditional_writers_wins,
    followers_hear_of_writes,
    a_second_opening_finds_everything,
    a_backup_goes_through,
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    all(&Place::new("sqlite", |folder, _| Location::Sqlite { directory: folder.to_owned() })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    let mut place = Place::new("memory", |_, _| Location::Memory);
    place.forgets = true;
    all(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_fs_conforms() {
    let mut place = Place::new("local fs", |folder, _| Location::LocalFs { directory: folder.to_owned() });
    place.plain = true;
    all(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local_json_conforms() {
    let mut place = Place::new("local json", |folder, _| Location::LocalJson { directory: folder.to_owned() });
    place.plain = true;
    all(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_conforms() {
    let mut place = Place::new("postgres", |_, url| Location::Postgres { url: url.to_owned().into(), connections: 4 });
    place.server = Some(PostgresServer::start_with(Durability::None));
    all(&place).await;
}

async fn what_was_put_is_read_until_it_is_deleted(lab: &Lab<'_>) {
    let store = lab.open().await;
    let first = store.put(SECRETS, &key("a/b/c"), b"one").await.unwrap();
    let second = store.put(SECRETS, &key("a/b/c"), b"two").await.unwrap();
    assert_ne!(first, second);

    let entry = store.get(SECRETS, &key("a/b/c")).await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (b"two".as_slice(), second));
    assert!(store.get(OTHERS, &key("a/b/c")).await.unwrap().is_none());
    store.put(SESSIONS, &key("0"), b"").await.unwrap();
    assert_eq!(store.get(SESSIONS, &key("0")).await.unwrap().unwrap().value.as_slice(), b"");

    assert!(store.delete(SECRETS, &key("a/b/c")).await.unwrap());
    assert!(!store.delete(SECRETS, &key("a/b/c")).await.unwrap());
    assert!(store.get(SECRETS, &key("a/b/c")).await.unwrap().is_none());

    let largest = vec![b'x'; MAX_VALUE];
    store.put(SECRETS, &key("large"), &largest).await.unwrap();
    assert_eq!(store.get(SECRETS, &key("large")).await.unwrap().unwrap().value.len(), MAX_VALUE);
    let too_large = store.put(SECRETS, &key("large"), &vec![0; MAX_VALUE + 1]).await;
    assert!(matches!(too_large, Err(Error::TooLarge { .. })));
    store.ping().await.unwrap();
    assert!(store.healthy());
}

async fn a_conditional_write_loses_against_an_earlier_one(lab: &Lab<'_>) {
    let store = lab.open().await;
    for namespace in [SECRETS, POLICIES, SESSIONS] {
        let k = key("k");
        let first = store.put_if(namespace, &k, b"1", None).await.unwrap();
        assert!(is_conflict(store.put_if(namespace, &k, b"x", None).await));
        let second = store.put_if(namespace, &k, b"2", Some(first)).await.unwrap();
        assert!(is_conflict(store.put_if(namespace, &k, b"x", Some(first)).await));
        assert!(is_conflict(store.put_if(namespace, &key("other"), b"x", If::Version(second)).await));
        assert_eq!(store.get(namespace, &k).await.unwrap().unwrap().value.as_slice(), b"2");
        assert_eq!(store.list(namespace, "").await.unwrap().len(), 1);
    }
    assert_eq!(store.history(POLICIES, &key("k")).await.unwrap().len(), 2);
}

async fn a_conditional_delete_loses_against_a_later_write(lab: &Lab<'_>) {
    let store = lab.open().await;
    for namespace in [SECRETS, POLICIES, SESSIONS] {
        let first = store.put(namespace, &key("k"), b"1").await.unwrap();
        let second = store.put(namespace, &key("k"), b"2").await.unwrap();
        assert!(is_conflict(store.delete_if(namespace, &key("k"), first).await));
        assert!(is_conflict(store.delete_if(namespace, &key("k"), If::Absent).await));
        assert!(store.delete_if(namespace, &key("k"), second).await.unwrap());
        assert!(is_conflict(store.delete_if(namespace, &key("k"), second).await));
        assert!(!store.delete_if(namespace, &key("k"), If::Absent).await.unwrap());
    }
}

async fn no_version_comes_back_after_a_deletion_of_another_value(lab: &Lab<'_>) {
    let store = lab.open().await;
    let before = store.put(SECRETS, &key("k"), b"before").await.unwrap();
    store.delete(SECRETS, &key("k")).await.unwrap();
    let after = store.put(SECRETS, &key("k"), b"after").await.unwrap();
    assert_ne!(before, after);
    assert!(is_conflict(store.put_if(SECRETS, &key("k"), b"x", Some(before)).await));
}

async fn several_writes_are_done_together_or_not_at_all(lab: &Lab<'_>) {
    let store = lab.open().await;
    let entries = |value: &[u8]| -> Vec<(Key, Vec<u8>)> {
        ["b", "a", "c", "a"].iter().map(|k| (key(k), value.to_vec())).collect()
    };
    store.put_all(SECRETS, &entries(b"1")).await.unwrap();
    assert_eq!(names(store.list(SECRETS, "").await.unwrap()), ["a", "b", "c"]);
    store.put_all(SECRETS, &[]).await.unwrap();

    let mut bad = entries(b"2");
    bad.push((key("d"), vec![0; MAX_VALUE + 1]));
    assert!(matches!(store.put_all(SECRETS, &bad).await, Err(Error::TooLarge { .. })));
    assert_eq!(store.get(SECRETS, &key("a")).await.unwrap().unwrap().value.as_slice(), b"1");
}

async fn keys_are_listed_by_prefix_and_page(lab: &Lab<'_>) {
    let store = lab.open().await;
    let keys = ["B", "a-b", "a.b", "a/1", "a/2", "a/3", "a_b", "ab", "b"];
    let entries: Vec<_> = keys.iter().rev().map(|k| (key(k), b"v".to_vec())).collect();
    store.put_all(SECRETS, &entries).await.unwrap();

    // By bytes, whatever a database's language says.
    assert_eq!(names(store.list(SECRETS, "").await.unwrap()), keys);
    assert_eq!(names(store.list(SECRETS, "a/").await.unwrap()), ["a/1", "a/2", "a/3"]);
    assert!(store.list(SECRETS, "nothing").await.unwrap().is_empty());
    assert!(store.list(OTHERS, "").await.unwrap().is_empty());

    let page = |after: &'static str, limit| {
        let store = store.clone();
        async move { names(store.list_after(SECRETS, "a/", Some(&key(after)), limit).await.unwrap()) }
    };
    assert_eq!(page("a/1", 1).await, ["a/2"]);
    assert_eq!(page("a/1", MAX_LIST as usize * 2).await, ["a/2", "a/3"]);
    assert_eq!(page("B", 2).await, ["a/1", "a/2"]);
    assert!(page("a/3", 9).await.is_empty());
    assert!(page("a/1", 0).await.is_empty());
}

async fn what_sorts_before_a_bound_is_deleted(lab: &Lab<'_>) {
    let store = lab.open().await;
    let entries: Vec<_> = ["001", "002", "003"].iter().map(|k| (key(k), b"v".to_vec())).collect();
    store.put_all(SESSIONS, &entries).await.unwrap();
    store.put(SECRETS, &key("001"), b"v").await.unwrap();
    assert_eq!(store.delete_before(SESSIONS, &key("003")).await.unwrap(), 2);
    assert_eq!(store.delete_before(SESSIONS, &key("003")).await.unwrap(), 0);
    assert_eq!(names(store.list(SESSIONS, "").await.unwrap()), ["003"]);
    assert_eq!(names(store.list(SECRETS, "").await.unwrap()), ["001"]);
}

async fn versions_are_kept_with_their_values(lab: &Lab<'_>) {
    let store = lab.open().await;
    let k = key("policy.rego");
    assert!(store.history(POLICIES, &k).await.unwrap().is_empty());
    let first = store.put(POLICIES, &k, b"first").await.unwrap();
    let second = store.put(POLICIES, &k, b"second").await.unwrap();
    store.delete(POLICIES, &k).await.unwrap();
    assert!(!store.delete(POLICIES, &k).await.unwrap());
    let third = store.put(POLICIES, &k, b"third").await.unwrap();

    let history = store.history(POLICIES, &k).await.unwrap();
    let deletion = history[1];
    let told: Vec<_> = history.iter().map(|v| (v.version, v.deleted)).collect();
    assert_eq!(told, [(third, false), (deletion.version, true), (second, false), (first, false)]);
    assert!(history.iter().all(|v| v.time.unix() > 1_700_000_000));
    for (version, value) in [(first, "first"), (second, "second"), (third, "third")] {
        assert_eq!(store.at(POLICIES, &k, version).await.unwrap().unwrap().value.as_slice(), value.as_bytes());
    }
    assert!(store.at(POLICIES, &k, deletion.version).await.unwrap().is_none());
    assert!(store.at(POLICIES, &key("other"), first).await.unwrap().is_none());
    assert!(store.at(POLICIES, &k, first ^ 0xffff).await.unwrap().is_none());

    store.put(SECRETS, &k, b"first").await.unwrap();
    store.put(SECRETS, &k, b"second").await.unwrap();
    assert_eq!(store.history(SECRETS, &k).await.unwrap().len(), 1);
}

async fn the_oldest_versions_are_forgotten(lab: &Lab<'_>) {
    let store = lab.open().await;
    let k = key("policy.rego");
    let first = store.put(POLICIES, &k, b"0").await.unwrap();
    let second = store.put(POLICIES, &k, b"1").await.unwrap();
    for i in 2..=HISTORY {
        store.put(POLICIES, &k, i.to_string().as_bytes()).await.unwrap();
    }
    let history = store.history(POLICIES, &k).await.unwrap();
    assert_eq!((history.len(), history[HISTORY - 1].version), (HISTORY, second));
    assert!(store.at(POLICIES, &k, first).await.unwrap().is_none());
    assert!(store.at(POLICIES, &k, second).await.unwrap().is_some());
}

async fn one_of_many_conditional_writers_wins(lab: &Lab<'_>) {
    let store = lab.open().await;
    let others = if lab.place.forgets { store.clone() } else { lab.open().await };
    for namespace in [SECRETS, POLICIES, SESSIONS] {
        let mut tasks = tokio::task::JoinSet::new();
        for i in 0..10_u8 {
            let store = if i % 2 == 0 { store.clone() } else { others.clone() };
            tasks.spawn(async move { store.put_if(namespace, &key("race"), &[i], None).await });
        }
        let results = tasks.join_all().await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        assert!(results.into_iter().filter(Result::is_err).all(is_conflict));
    }
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..20_u8 {
        let store = if i % 2 == 0 { store.clone() } else { others.clone() };
        tasks.spawn(async move { store.put(POLICIES, &key("all"), &[i]).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(store.history(POLICIES, &key("all")).await.unwrap().len(), 20);
}

async fn followers_hear_of_writes(lab: &Lab<'_>) {
    let store = lab.open().await;
    let mut changes = store.changes(SECRETS);
    let mut others = store.changes(OTHERS);
    store.put(SECRETS, &key("k"), b"v").await.unwrap();
    heard(&mut changes).await;
    store.delete(SECRETS, &key("k")).await.unwrap();
    heard(&mut changes).await;
    store.put_all(OTHERS, &[(key("a"), b"v".to_vec()), (key("b"), b"v".to_vec())]).await.unwrap();
    heard(&mut others).await;
    store.delete_before(OTHERS, &key("b")).await.unwrap();
    heard(&mut others).await;
}

async fn a_second_opening_finds_everything(lab: &Lab<'_>) {
    if lab.place.forgets {
        return;
    }
    let store = lab.open().await;
    let version = store.put(POLICIES, &key("a/b"), b"value").await.unwrap();
    store.close().await;
    let store = lab.open().await;
    let entry = store.get(POLICIES, &key("a/b")).await.unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (b"value".as_slice(), version));
    store.close().await;
    if lab.place.plain {
        assert!(matches!(Store::open(&lab.location, Some(lab.master.clone())).await, Err(Error::Plaintext)));
    } else {
        let other = MasterKey::generate().unwrap();
        assert!(matches!(Store::open(&lab.location, Some(other)).await, Err(Error::OtherKey { .. })));
    }
}

async fn a_backup_goes_through(lab: &Lab<'_>) {
    let store = lab.open().await;
    let entries: Vec<_> = (0..300).map(|i| (key(&format!("key/{i:03}")), vec![b'v'; 1000])).collect();
    store.put_all(SECRETS, &entries).await.unwrap();
    store.put(POLICIES, &key("p"), b"policy").await.unwrap();
    let mut file = Vec::new();
    assert_eq!(store.export(&mut file, Some(&lab.master)).await.unwrap(), 301);
    let again = store.import(std::io::Cursor::new(&file), Some(&lab.master), Target::Empty).await;
    assert!(matches!(again, Err(Error::Backup(_))));

    let empty = lab.place.empty();
    let other = empty.open().await;
    other.import(std::io::Cursor::new(&file), Some(&lab.master), Target::Empty).await.unwrap();
    assert_eq!(other.list(SECRETS, "").await.unwrap().len(), 300);
    assert_eq!(other.get(POLICIES, &key("p")).await.unwrap().unwrap().value.as_slice(), b"policy");
}

/// A kind of place.
struct Place {
    name: &'static str,
    location: fn(&std::path::Path, &str) -> Location,
    server: Option<PostgresServer>,
    /// It takes no master key.
    plain: bool,
    /// A second opening finds nothing.
    forgets: bool,
}

/// One place of its kind, empty at first.
struct Lab<'a> {
    place: &'a Place,
    location: Location,
    master: MasterKey,
    _folder: TempDir,
}

impl Place {
    fn new(name: &'static str, location: fn(&std::path::Path, &str) -> Location) -> Self {
        Self { name, location, server: None, plain: false, forgets: false }
    }

    fn empty(&self) -> Lab<'_> {
        let folder = tempfile::tempdir().unwrap();
        let url = self.server.as_ref().map(PostgresServer::new_database).unwrap_or_default();
        let location = (self.location)(&folder.path().join("data"), &url);
        Lab { place: self, location, master: MasterKey::generate().unwrap(), _folder: folder }
    }
}

impl Lab<'_> {
    async fn open(&self) -> Store {
        Store::open(&self.location, (!self.place.plain).then(|| self.master.clone())).await.unwrap()
    }
}

async fn heard(changes: &mut Changes) {
    tokio::time::timeout(Duration::from_secs(10), changes.changed()).await.expect("a change is told");
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn names(keys: Vec<Key>) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}

fn is_conflict<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Conflict { .. }))
}
