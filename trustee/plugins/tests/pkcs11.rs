//! The plugin `pkcs11` against SoftHSM.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use plugins::{Access, Error, Kind, Output, Plugin, Request};
use store::Store;
use store::clock::Clock;
use token::{KEY, MODULE, PIN, with_token};

#[path = "../../hsm/tests/token/mod.rs"]
mod token;

#[test]
fn a_secret_is_stored_by_an_administrator_and_read_by_a_guest() {
    with_token("a_secret_is_stored_by_an_administrator_and_read_by_a_guest", |_| {
        run(async {
            let plugin = open(&format!("pin = '{PIN}'")).await.unwrap();
            let path = ["resource", "default", "key", "1"];
            assert_eq!(access(&*plugin, "GET", &path).await.unwrap(), Access::Guest);
            assert_eq!(access(&*plugin, "POST", &path).await.unwrap(), Access::Administrator);
            assert_eq!(access(&*plugin, "DELETE", &path).await.unwrap_err().kind(), Kind::NotFound);

            assert_eq!(ask(&*plugin, "GET", &path, b"").await.unwrap_err().status(), 404);
            let stored = ask(&*plugin, "POST", &path, b"\xff\x00secret").await.unwrap();
            assert!(stored.body.is_empty() && !stored.encrypted);
            let read = ask(&*plugin, "GET", &path, b"").await.unwrap();
            assert_eq!(read.body.as_slice(), b"\xff\x00secret");
            assert!(read.encrypted);

            for bad in [
                &["resource"][..],
                &["resource", "default", "key"],
                &["resource", "default", "key", ".."],
                &["resource", "..", "..", "etc"],
                &["resource", "default", "key", "a/b"],
                &["resource", "default", "key", "\u{fffd}"],
            ] {
                assert_eq!(ask(&*plugin, "GET", bad, b"").await.unwrap_err().status(), 400, "{bad:?}");
                assert_eq!(ask(&*plugin, "POST", bad, b"x").await.unwrap_err().status(), 400, "{bad:?}");
            }
            let large = vec![0; (1 << 20) + 1];
            assert_eq!(ask(&*plugin, "POST", &path, &large).await.unwrap_err().status(), 413);
            // Without lookup_label there is nothing to wrap with.
            assert_eq!(ask(&*plugin, "POST", &["wrap-key"], b"x").await.unwrap_err().status(), 404);
        });
    });
}

#[test]
fn a_key_is_wrapped_by_an_administrator_and_unwrapped_for_a_guest() {
    with_token("a_key_is_wrapped_by_an_administrator_and_unwrapped_for_a_guest", |directory| {
        run(async {
            let pin = directory.join("pin");
            std::fs::write(&pin, PIN).unwrap();
            std::fs::set_permissions(&pin, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            let settings =
                format!("pin_file = '{}'\nlookup_label = '{KEY}'\nrsa_mechanism = 'RsaPkcsTest'", pin.display());
            let plugin = open(&settings).await.unwrap();

            let wrapped = ask(&*plugin, "POST", &["wrap-key"], b"a key").await.unwrap();
            assert!(!wrapped.encrypted);
            let unwrapped = ask(&*plugin, "GET", &["wrap-key"], &wrapped.body).await.unwrap();
            assert_eq!(unwrapped.body.as_slice(), b"a key");
            assert!(unwrapped.encrypted);

            for bad in [&b""[..], b"x", &[0; 256], &wrapped.body[1..]] {
                let error = ask(&*plugin, "GET", &["wrap-key"], bad).await.unwrap_err();
                assert_eq!(error.status(), 400, "{error}");
            }
            assert_eq!(ask(&*plugin, "GET", &["wrap-key"], &[0; 5000]).await.unwrap_err().status(), 413);
            assert_eq!(ask(&*plugin, "POST", &["wrap-key"], &[0; 500]).await.unwrap_err().status(), 400);
            assert_eq!(ask(&*plugin, "GET", &["wrap-key", "x"], b"").await.unwrap_err().status(), 404);
            assert_eq!(ask(&*plugin, "GET", &[], b"").await.unwrap_err().status(), 404);
        });
    });
}

#[test]
fn a_token_that_can_not_be_opened_fails_the_start() {
    with_token("a_token_that_can_not_be_opened_fails_the_start", |_| {
        run(async {
            for (settings, reason) in [
                ("", "one of pin and pin_file"),
                ("pin = 'a'\npin_file = 'b'", "one of pin and pin_file"),
                ("pin = 'not-the-pin'", "refused the PIN"),
                ("pin = '12345678'\nslot_index = 9", "slot index 9"),
                ("pin_file = '/nowhere'", "/nowhere"),
            ] {
                let error = open(settings).await.err().unwrap().to_string();
                assert!(error.contains(reason) && !error.contains("not-the-pin"), "{error}");
            }
        });
    });
}

fn run(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work);
}

async fn open(settings: &str) -> Result<Arc<dyn Plugin>, Error> {
    let config = toml::from_str(&format!("name = 'pkcs11'\nmodule = '{MODULE}'\n{settings}")).unwrap();
    plugins::open(config, Store::memory().await.unwrap(), Clock::system()).await
}

async fn access(plugin: &dyn Plugin, method: &str, path: &[&str]) -> Result<Access, Error> {
    let (query, body) = (BTreeMap::new(), Bytes::new());
    plugin.access(&Request { method, path, query: &query, body: &body }).await
}

async fn ask(plugin: &dyn Plugin, method: &str, path: &[&str], body: &[u8]) -> Result<Output, Error> {
    let (query, body) = (BTreeMap::new(), Bytes::copy_from_slice(body));
    plugin.handle(&Request { method, path, query: &query, body: &body }, None).await
}
