//! The plugin `nebula-ca` with the real `nebula-cert`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use plugins::{Access, Error, Kind, Output, Plugin, Request};
use serde_json::Value;
use store::Store;
use store::clock::Clock;
use tempfile::TempDir;

#[tokio::test]
async fn a_guest_gets_a_certificate_that_the_authority_vouches_for() {
    let folder = TempDir::new().unwrap();
    let plugin = open(folder.path(), "[ca_config]\nname = 'The authority'\nduration = '24h'").await.unwrap();
    let output = get(&*plugin, &["credential"], &[("name", "pod-1"), ("ip", "10.1.2.3/16"), ("groups", "web,db")]);
    let output = output.await.unwrap();
    assert!(output.encrypted);

    let issued: Value = serde_json::from_slice(&output.body).unwrap();
    let file = |member: &str| {
        let path = folder.path().join(member);
        let bytes: Vec<u8> = serde_json::from_value(issued[member].clone()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    };
    let (ca, certificate, key) = (file("ca_crt"), file("node_crt"), file("node_key"));
    assert!(fs::read_to_string(key).unwrap().contains("PRIVATE KEY"));
    let verified = Command::new("nebula-cert").arg("verify").arg("-ca").arg(&ca).arg("-crt").arg(&certificate).output();
    assert!(verified.unwrap().status.success());
    let printed = Command::new("nebula-cert").arg("print").arg("-path").arg(&certificate).output().unwrap().stdout;
    let printed = String::from_utf8(printed).unwrap();
    for part in ["Name: pod-1", "10.1.2.3/16", "\"web\"", "\"db\""] {
        assert!(printed.contains(part), "{printed} lacks {part}");
    }
}

#[tokio::test]
async fn the_authority_stays_and_nothing_else_does() {
    let folder = TempDir::new().unwrap();
    let work = folder.path().join("work");
    let mut authorities = Vec::new();
    for _ in 0..2 {
        let plugin = open(&work, "").await.unwrap();
        let output = get(&*plugin, &["credential"], &[("name", "a"), ("ip", "10.0.0.1/8")]).await.unwrap();
        let issued: Value = serde_json::from_slice(&output.body).unwrap();
        authorities.push(issued["ca_crt"].clone());
    }
    assert_eq!(authorities[0], authorities[1]);
    let left: Vec<_> = fs::read_dir(&work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["ca"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!((mode(&work), mode(&work.join("ca")), mode(&work.join("ca/ca.key"))), (0, 0, 0));

    fs::remove_file(work.join("ca/ca.key")).unwrap();
    let error = open(&work, "").await.err().unwrap();
    assert!(error.to_string().contains("ca.key is missing"), "{error}");
}

#[tokio::test]
async fn many_guests_at_once_all_get_theirs() {
    let folder = TempDir::new().unwrap();
    let plugin = open(folder.path(), "").await.unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for i in 0..12 {
        let plugin = plugin.clone();
        asking.spawn(async move {
            let (name, ip) = (format!("pod-{i}"), format!("10.0.0.{i}/8"));
            let output = get(&*plugin, &["credential"], &[("name", &name), ("ip", &ip)]).await.unwrap();
            let issued: Value = serde_json::from_slice(&output.body).unwrap();
            issued["node_key"].to_string()
        });
    }
    let mut keys = asking.join_all().await;
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 12);
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let folder = TempDir::new().unwrap();
    let plugin = open(folder.path(), "[ca_config]\nips = '10.0.0.0/8'").await.unwrap();
    let good = [("name", "a"), ("ip", "10.0.0.1/8")];
    for (path, query, kind) in [
        (&["credential"][..], &[][..], Kind::BadRequest),
        (&["credential"], &[("name", "a")], Kind::BadRequest),
        (&["credential"], &[("name", "-out-crt=/tmp/x"), ("ip", "10.0.0.1/8")], Kind::BadRequest),
        // Refused by the authority's own bounds.
        (&["credential"], &[("name", "a"), ("ip", "192.168.0.1/16")], Kind::BadRequest),
        (&["credential", ".."], &good, Kind::NotFound),
        (&["..", "ca", "ca.key"], &good, Kind::NotFound),
        (&[], &good, Kind::NotFound),
    ] {
        let error = get(&*plugin, path, query).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{path:?} {query:?}: {error}");
    }
    let (query, body) = (BTreeMap::new(), Bytes::new());
    let request = Request { method: "POST", path: &["credential"], query: &query, body: &body };
    assert_eq!(plugin.access(&request).await.unwrap(), Access::Guest);
    assert_eq!(plugin.handle(&request, None).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_program_that_is_missing_or_another_fails_the_start() {
    let folder = TempDir::new().unwrap();
    for (program, reason) in [("/nowhere/nebula-cert", "can't be run"), ("/bin/echo", "version")] {
        let settings = format!("nebula_cert_bin_path = '{program}'");
        let error = open(folder.path(), &settings).await.err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

async fn open(work_dir: &Path, settings: &str) -> Result<Arc<dyn Plugin>, Error> {
    let config = toml::from_str(&format!("name = 'nebula-ca'\nwork_dir = '{}'\n{settings}", work_dir.display()));
    plugins::open(config.unwrap(), Store::memory().await.unwrap(), Clock::system()).await
}

async fn get(plugin: &dyn Plugin, path: &[&str], query: &[(&str, &str)]) -> Result<Output, Error> {
    let query = query.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    let body = Bytes::new();
    plugin.handle(&Request { method: "GET", path, query: &query, body: &body }, None).await
}
