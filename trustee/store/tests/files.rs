//! What owners and other programs do to a store of files.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use store::{Changes, Error, Key, Location, MAX_VALUE, Namespace, Store};

const SECRETS: Namespace = Namespace::new("repository");
const POLICIES: Namespace = Namespace::versioned("kbs");

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_an_owner_wrote_as_a_file_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("repository");
    fs::create_dir(&repository).unwrap();
    fs::write(repository.join(r"default\x2Fkey\x2Fk1"), b"preloaded").unwrap();
    fs::write(repository.join("~draft-left-behind"), b"x").unwrap();
    fs::write(repository.join("editor's copy~"), b"x").unwrap();
    fs::create_dir(repository.join("folder")).unwrap();

    let store = Store::open(&Location::LocalFs { directory: folder.path().to_owned() }, None).await.unwrap();

    assert!(!repository.join("~draft-left-behind").exists());
    assert_eq!(names(&store).await, ["default/key/k1"]);
    let entry = store.get(SECRETS, &key("default/key/k1")).await.unwrap().unwrap();
    assert_eq!(entry.value.as_slice(), b"preloaded");
    store.put(SECRETS, &key("default/key/k2"), b"ours").await.unwrap();
    let written = repository.join(r"default\x2Fkey\x2Fk2");
    assert_eq!(fs::read(&written).unwrap(), b"ours");
    assert_eq!(fs::metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);

    // An edit by hand is another version, so that a conditional write does not go over it.
    fs::write(repository.join(r"default\x2Fkey\x2Fk1"), b"edited").unwrap();
    let stale = store.put_if(SECRETS, &key("default/key/k1"), b"x", Some(entry.version)).await;
    assert!(matches!(stale, Err(Error::Conflict { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_by_hand_is_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Location::LocalFs { directory: folder.path().to_owned() }, None).await.unwrap();
    let mut changes = store.changes(POLICIES);
    let policies = folder.path().join("kbs");
    fs::write(policies.join("p.rego"), b"1").unwrap();
    heard(&mut changes).await;
    fs::rename(policies.join("p.rego"), policies.join("q.rego")).unwrap();
    heard(&mut changes).await;

    // As Kubernetes mounts a secret: links to a folder that is exchanged as a whole.
    fs::create_dir(policies.join("..1")).unwrap();
    fs::write(policies.join("..1/mounted"), b"old").unwrap();
    symlink("..1", policies.join("..data")).unwrap();
    symlink("..data/mounted", policies.join("mounted")).unwrap();
    heard(&mut changes).await;
    assert_eq!(store.get(POLICIES, &key("mounted")).await.unwrap().unwrap().value.as_slice(), b"old");
    fs::create_dir(policies.join("..2")).unwrap();
    fs::write(policies.join("..2/mounted"), b"new").unwrap();
    symlink("..2", policies.join("..next")).unwrap();
    fs::rename(policies.join("..next"), policies.join("..data")).unwrap();
    loop {
        heard(&mut changes).await;
        if store.get(POLICIES, &key("mounted")).await.unwrap().unwrap().value.as_slice() == b"new" {
            break;
        }
    }
    assert!(store.healthy());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_json_file_of_upstreams_is_read_and_written_in_its_form() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("repository"), r#"{"default/key/k1": "_-8=", "bare": "_-8"}"#).unwrap();
    let store = Store::open(&Location::LocalJson { directory: folder.path().to_owned() }, None).await.unwrap();
    for name in ["default/key/k1", "bare"] {
        assert_eq!(store.get(SECRETS, &key(name)).await.unwrap().unwrap().value.as_slice(), [0xff, 0xef]);
    }
    let mut changes = store.changes(SECRETS);
    store.put(SECRETS, &key("new"), &[0xff, 0xef]).await.unwrap();
    heard(&mut changes).await;
    let text = fs::read_to_string(folder.path().join("repository")).unwrap();
    assert!(text.contains(r#""new":"_-8=""#), "{text}");

    let version = store.get(SECRETS, &key("new")).await.unwrap().unwrap().version;
    fs::write(folder.path().join("repository"), r#"{"new": "AAAA"}"#).unwrap();
    heard(&mut changes).await;
    assert!(matches!(store.put_if(SECRETS, &key("new"), b"x", version).await, Err(Error::Conflict { .. })));

    for damaged in ["", "[]", r#"{"new": 1}"#] {
        fs::write(folder.path().join("repository"), damaged).unwrap();
        assert!(matches!(store.get(SECRETS, &key("new")).await, Err(Error::DamagedFile(_))));
        assert!(matches!(store.put(SECRETS, &key("k"), b"v").await, Err(Error::DamagedFile(_))));
        assert_eq!(fs::read_to_string(folder.path().join("repository")).unwrap(), damaged);
    }
    fs::write(folder.path().join("repository"), r#"{"new": "*"}"#).unwrap();
    assert!(matches!(store.get(SECRETS, &key("new")).await, Err(Error::DamagedFile(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_name_leads_out_of_the_folder_and_no_file_is_too_large() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Location::LocalFs { directory: folder.path().to_owned() }, None).await.unwrap();
    for name in [".", "..", &"k".repeat(256), &"/".repeat(64)] {
        assert!(matches!(store.put(SECRETS, &key(name), b"v").await, Err(Error::FileName(_))), "{name}");
        assert!(matches!(store.get(SECRETS, &key(name)).await, Err(Error::FileName(_))), "{name}");
    }
    for name in ["../../etc/passwd", "/etc/passwd", "/", &"k".repeat(255)] {
        store.put(SECRETS, &key(name), b"v").await.unwrap();
        assert_eq!(store.get(SECRETS, &key(name)).await.unwrap().unwrap().value.as_slice(), b"v");
    }
    assert_eq!(names(&store).await.len(), 4);

    fs::write(folder.path().join("repository/huge"), vec![0; MAX_VALUE + 1]).unwrap();
    assert!(matches!(store.get(SECRETS, &key("huge")).await, Err(Error::TooLarge { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&Location::LocalFs { directory: folder.path().to_owned() }, None).await.unwrap();
    store.put(SECRETS, &key("a"), b"old").await.unwrap();
    let repository = folder.path().join("repository");
    let too_long = "k".repeat(256);
    let failed = store.put_all(SECRETS, &[(key("a"), b"new".to_vec()), (key(&too_long), b"new".to_vec())]).await;

    assert!(matches!(failed, Err(Error::FileName(_))));
    assert_eq!(store.get(SECRETS, &key("a")).await.unwrap().unwrap().value.as_slice(), b"old");
    assert_eq!(fs::read_dir(&repository).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_place_for_its_history_changes_nothing() {
    for location in [|directory| Location::LocalFs { directory }, |directory| Location::LocalJson { directory }] {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&location(folder.path().to_owned()), None).await.unwrap();
        store.put(POLICIES, &key("p"), b"old").await.unwrap();
        fs::write(folder.path().join(".history/kbs"), b"in the way").unwrap();

        assert!(store.put(POLICIES, &key("p"), b"new").await.is_err());
        assert_eq!(store.get(POLICIES, &key("p")).await.unwrap().unwrap().value.as_slice(), b"old");

        fs::remove_file(folder.path().join(".history/kbs")).unwrap();
        let kept = store.put(POLICIES, &key("p"), b"new").await.unwrap();
        assert_eq!(store.put(POLICIES, &key("p"), b"new").await.unwrap(), kept);
        assert_eq!(store.history(POLICIES, &key("p")).await.unwrap().len(), 2);
    }
}

async fn names(store: &Store) -> Vec<String> {
    store.list(SECRETS, "").await.unwrap().iter().map(ToString::to_string).collect()
}

async fn heard(changes: &mut Changes) {
    tokio::time::timeout(Duration::from_secs(10), changes.changed()).await.expect("a change is told");
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}
