//! Tests against doubles of the services, which check every request as the services do.

mod aliyun;
mod aws;
mod azure;
mod double;
mod gcp;
mod http;
mod own_store;
mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::{digest, hmac};
use store::clock::Clock;
use wire::resource::ResourcePath;

use crate::http::Limits;
use crate::{Backend, Condition, Environment, Error};
use double::Seen;

/// A client key as Alibaba Cloud gives it out, made with
/// `openssl pkcs12 -export -legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40`.
pub(crate) const CLIENT_KEY: &str = include_str!("../../../wire/core/src/pkcs12/client-key.p12.base64");
pub(crate) const CLIENT_KEY_PASSWORD: &str = "f1e2d3c4";
/// Its public key, an RSAPublicKey.
const CLIENT_KEY_PUBLIC: &str = include_str!("../../../wire/core/src/pkcs12/client-key.public.base64");

/// Short pauses, and deadlines that a busy machine meets.
const LIMITS: Limits =
    Limits { attempt: Duration::from_secs(10), total: Duration::from_secs(20), first_pause: Duration::from_millis(2) };

/// Something that no text may show.
const SECRET: &str = "s3cr3t-v4lue";

fn path(text: &str) -> ResourcePath {
    ResourcePath::parse(text).unwrap()
}

fn clock() -> (Arc<AtomicU64>, Clock) {
    let seconds = Arc::new(AtomicU64::new(1_800_000_000));
    let clock = Clock::set_by(seconds.clone());
    (seconds, clock)
}

fn pass(seconds: &AtomicU64, more: u64) {
    seconds.fetch_add(more, Ordering::Relaxed);
}

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables: BTreeMap<String, String> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Environment(Box::new(move |name| variables.get(name).cloned()))
}

async fn value(backend: &dyn Backend, at: &str) -> Option<Vec<u8>> {
    backend.get(&path(at)).await.unwrap().map(|resource| resource.value.to_vec())
}

async fn put(backend: &dyn Backend, at: &str, value: &[u8]) -> Option<String> {
    backend.put(&path(at), value, &Condition::Any).await.unwrap()
}

async fn listed(backend: &dyn Backend, repository: Option<&str>) -> Vec<String> {
    backend.list(repository).await.unwrap().iter().map(ToString::to_string).collect()
}

/// What every place does the same way, whatever it can do besides.
async fn keeps_resources(backend: &dyn Backend) {
    assert_eq!(value(backend, "default/key/1").await, None);
    assert!(!backend.delete(&path("default/key/1"), &Condition::Any).await.unwrap());

    put(backend, "default/key/1", SECRET.as_bytes()).await;
    put(backend, "default/key/1", b"second").await;
    put(backend, "default/Key/1", &[0, 0xff, 0x80]).await;
    put(backend, "other/key/a_b.c-d", "text with \"ü\" and \n".as_bytes()).await;
    assert_eq!(value(backend, "default/key/1").await.unwrap(), b"second");
    assert_eq!(value(backend, "default/Key/1").await.unwrap(), [0, 0xff, 0x80]);
    assert_eq!(value(backend, "other/key/a_b.c-d").await.unwrap(), "text with \"ü\" and \n".as_bytes());

    assert_eq!(listed(backend, None).await, ["default/Key/1", "default/key/1", "other/key/a_b.c-d"]);
    assert_eq!(listed(backend, Some("other")).await, ["other/key/a_b.c-d"]);
    assert_eq!(listed(backend, Some("oth")).await, [""; 0]);

    assert!(backend.delete(&path("default/key/1"), &Condition::Any).await.unwrap());
    assert_eq!(value(backend, "default/key/1").await, None);
    put(backend, "default/key/1", b"again").await;
    assert_eq!(value(backend, "default/key/1").await.unwrap(), b"again");
}

/// A write under a condition that can only be met once.
async fn makes_once(backend: &dyn Backend) {
    let (at, absent) = (path("once/key/1"), Condition::Absent);
    backend.put(&at, b"first", &absent).await.unwrap();
    assert!(matches!(backend.put(&at, b"later", &absent).await, Err(Error::Conflict { .. })));
    assert_eq!(value(backend, "once/key/1").await.unwrap(), b"first");
}

/// The signature check of the services that hash a canonical request: rebuilt from what arrived.
fn canonical_hash(seen: &Seen, signed_headers: &str) -> String {
    let mut lines = String::new();
    for name in signed_headers.split(';') {
        lines += &format!("{name}:{}\n", seen.header(name));
    }
    let parts = [&*seen.method, &seen.path, &seen.query, &lines, signed_headers, &sha256(&seen.body)];
    sha256(parts.join("\n").as_bytes())
}

fn sha256(data: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, data))
}

fn keyed(key: &[u8], data: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes()).as_ref().to_vec()
}
