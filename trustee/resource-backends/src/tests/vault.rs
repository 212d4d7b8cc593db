//! Vault: both versions of its KV engine, its logins, and what it refuses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::double::{Double, Reply, Seen};
use super::{LIMITS, SECRET, clock, keeps_resources, listed, makes_once, pass, path, put, value};
use crate::http::Limits;
use crate::vault::{Config, Vault};
use crate::{Backend, Condition, Error, Kind};

/// A Vault with the mounts `kv1` and `kv2`, whose tokens are `token-<n>`; the good one is that of the last login.
#[derive(Default)]
struct State {
    secrets: BTreeMap<String, (u64, Value)>,
    /// Paths whose latest version was deleted in Vault.
    deleted: Vec<String>,
    logins: u64,
    renewals: u64,
}

fn answer(state: &Mutex<State>, seen: &Seen) -> Reply {
    let mut state = state.lock().unwrap();
    assert_eq!(seen.header("x-vault-request"), "true");
    let path = seen.path.strip_prefix("/v1/").unwrap();
    let granted = |token: String, lasts: u64| {
        Reply::json(200, &json!({ "auth": { "client_token": token, "lease_duration": lasts, "renewable": true } }))
    };
    match path {
        "auth/kubernetes/login" if seen.json() == json!({ "role": "trustee", "jwt": "a.b.c" }) => {
            state.logins += 1;
            return granted(format!("token-{}", state.logins), 3600);
        }
        "auth/team/approle/login" if seen.json() == json!({ "role_id": "r", "secret_id": "s" }) => {
            state.logins += 1;
            return granted(format!("token-{}", state.logins), 3600);
        }
        "auth/token/renew-self" if seen.header("x-vault-token") == "token-0" => {
            state.renewals += 1;
            return granted("token-0".to_owned(), 100);
        }
        _ if path.starts_with("auth/") => return Reply::json(400, &json!({ "errors": ["no"] })),
        _ => {}
    }
    if seen.header("x-vault-token") != format!("token-{}", state.logins) {
        return Reply::json(403, &json!({ "errors": ["permission denied"] }));
    }
    if path.contains("forbidden") {
        return Reply::json(403, &json!({ "errors": [format!("no {SECRET} for you")] }));
    }
    let not_found = || Reply::json(404, &json!({ "errors": [] }));
    if seen.query == "list=true" {
        let folder = path.strip_prefix("kv1/").or_else(|| path.strip_prefix("kv2/metadata/")).unwrap();
        let mut keys: Vec<String> = state
            .secrets
            .keys()
            .filter_map(|key| key.strip_prefix(folder))
            .map(|rest| rest.split_inclusive('/').next().unwrap().to_owned())
            .collect();
        keys.dedup();
        return if keys.is_empty() { not_found() } else { Reply::json(200, &json!({ "data": { "keys": keys } })) };
    }
    if let Some(key) = path.strip_prefix("kv2/metadata/") {
        return match (seen.method.as_str(), state.secrets.contains_key(key)) {
            (_, false) => not_found(),
            ("GET", true) => Reply::json(200, &json!({ "data": { "versions": {} } })),
            _ => {
                state.secrets.remove(key);
                Reply::status(204)
            }
        };
    }
    let (key, second) = match path.strip_prefix("kv2/data/") {
        Some(key) => (key.to_owned(), true),
        None => (path.strip_prefix("kv1/").unwrap().to_owned(), false),
    };
    match seen.method.as_str() {
        "GET" => match state.secrets.get(&key) {
            None => not_found(),
            Some((version, _)) if state.deleted.contains(&key) => {
                Reply::json(404, &json!({ "data": { "data": null, "metadata": { "version": version } } }))
            }
            Some((version, data)) if second => {
                Reply::json(200, &json!({ "data": { "data": data, "metadata": { "version": version } } }))
            }
            Some((_, data)) => Reply::json(200, &json!({ "data": data })),
        },
        "POST" => {
            let body = seen.json();
            let version = state.secrets.get(&key).map_or(0, |(version, _)| *version);
            if let Some(cas) = body["options"]["cas"].as_u64()
                && cas != version
            {
                let text = "check-and-set parameter did not match the current version";
                return Reply::json(400, &json!({ "errors": [text] }));
            }
            let data = if second { body["data"].clone() } else { body };
            state.secrets.insert(key.clone(), (version + 1, data));
            state.deleted.retain(|deleted| *deleted != key);
            if second { Reply::json(200, &json!({ "data": { "version": version + 1 } })) } else { Reply::status(204) }
        }
        "DELETE" => {
            state.secrets.remove(&key);
            Reply::status(204)
        }
        other => panic!("{other} is not a method of Vault"),
    }
}

struct Lab {
    double: Double,
    state: Arc<Mutex<State>>,
    seconds: Arc<std::sync::atomic::AtomicU64>,
    vault: Vault,
    _folder: tempfile::TempDir,
}

/// A Vault, and a broker with this configuration; `FOLDER` in it is one with the files `jwt`, `secret` and `token`.
async fn lab(config: &str) -> Lab {
    let state = Arc::new(Mutex::new(State::default()));
    let double = Double::start({
        let state = state.clone();
        move |seen| answer(&state, seen)
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [("jwt", "a.b.c\n"), ("secret", "s\n"), ("token", "token-0\n")] {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let (seconds, clock) = clock();
    let config = config.replace("FOLDER", folder.path().to_str().unwrap());
    let config: Config = toml::from_str(&format!("vault_url = \"{}\"\n{config}", double.url)).unwrap();
    let vault = Vault::new(config, &clock, LIMITS).await.unwrap();
    Lab { double, state, seconds, vault, _folder: folder }
}

const FIRST: &str = "token = \"token-0\"\nmount_path = \"kv1\"\n";
const SECOND: &str = "token = \"token-0\"\nmount_path = \"kv2\"\nkv_version = 2\n";
const KUBERNETES: &str = "mount_path = \"kv2\"\nkv_version = 2\nlogin = { method = \"kubernetes\", role = \"trustee\", \
                          jwt_file = \"FOLDER/jwt\" }\n";

#[tokio::test]
async fn both_versions_keep_resources() {
    for config in [FIRST, SECOND] {
        keeps_resources(&lab(config).await.vault).await;
    }
}

#[tokio::test]
async fn what_upstream_wrote_is_read_and_what_is_written_upstream_reads() {
    let lab = lab(FIRST).await;
    let held = |data: Value| lab.state.lock().unwrap().secrets.insert("r/t/k".to_owned(), (1, data));
    for (data, expected) in [
        (json!({ "data": "text", "other": 1 }), &b"text"[..]),
        (json!({ "data": [0, 255] }), &[0, 255]),
        (json!({ "data": "" }), b""),
    ] {
        held(data);
        assert_eq!(value(&lab.vault, "r/t/k").await.unwrap(), expected);
    }
    held(json!({ "value": SECRET }));
    let error = lab.vault.get(&path("r/t/k")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }) && !error.to_string().contains(SECRET), "{error}");

    put(&lab.vault, "r/t/k", b"text").await;
    assert_eq!(lab.state.lock().unwrap().secrets["r/t/k"].1, json!({ "data": "text" }));
    put(&lab.vault, "r/t/k", &[0xff]).await;
    assert_eq!(lab.state.lock().unwrap().secrets["r/t/k"].1, json!({ "data": [255] }));
}

#[tokio::test]
async fn the_second_version_checks_conditions_and_the_first_says_that_it_can_t() {
    let second = lab(SECOND).await;
    makes_once(&second.vault).await;
    let at = path("once/key/1");
    let version = second.vault.get(&at).await.unwrap().unwrap().version.unwrap();
    let condition = Condition::Version(version);
    assert_eq!(second.vault.put(&at, b"2", &condition).await.unwrap(), Some("2".to_owned()));
    for late in [condition, Condition::Version("0".to_owned()), Condition::Version("x".to_owned())] {
        assert_eq!(second.vault.put(&at, b"3", &late).await.unwrap_err().kind(), Kind::Conflict);
    }

    let first = lab(FIRST).await;
    let outcome = first.vault.put(&at, b"1", &Condition::Absent).await;
    assert!(matches!(outcome, Err(Error::ConditionUnsupported { operation: "write", .. })));
    let outcome = second.vault.delete(&at, &Condition::Version("2".to_owned())).await;
    assert!(matches!(outcome, Err(Error::ConditionUnsupported { operation: "delete", .. })));
}

#[tokio::test]
async fn what_was_deleted_in_vault_is_absent_and_can_be_made_again() {
    let lab = lab(SECOND).await;
    put(&lab.vault, "once/key/1", b"old").await;
    lab.state.lock().unwrap().deleted.push("once/key/1".to_owned());
    assert_eq!(value(&lab.vault, "once/key/1").await, None);
    makes_once(&lab.vault).await;
}

#[tokio::test]
async fn a_list_leaves_out_what_lies_elsewhere() {
    let lab = lab(SECOND).await;
    for key in ["a/b/c", "a/b/c/d", "a/b", "top", "a/.hidden/c", "a/with space/c", "b/c/d"] {
        lab.state.lock().unwrap().secrets.insert(key.to_owned(), (1, json!({ "data": "x" })));
    }
    assert_eq!(listed(&lab.vault, None).await, ["a/b/c", "b/c/d"]);
    assert_eq!(listed(&lab.vault, Some("b")).await, ["b/c/d"]);
    let before = lab.double.seen().len();
    assert_eq!(listed(&lab.vault, Some("../sys")).await, [""; 0]);
    assert_eq!(lab.double.seen().len(), before);
}

#[tokio::test]
async fn a_revoked_token_leads_to_one_login_and_a_forbidden_path_to_none() {
    let lab = lab(KUBERNETES).await;
    put(&lab.vault, "r/t/k", b"v").await;
    assert_eq!(lab.double.count("/login"), 1);

    // Someone revokes the token.
    lab.state.lock().unwrap().logins += 10;
    pass(&lab.seconds, 60);
    assert_eq!(value(&lab.vault, "r/t/k").await.unwrap(), b"v");
    assert_eq!(lab.double.count("/login"), 2);

    for _ in 0..3 {
        let error = lab.vault.get(&path("r/forbidden/k")).await.unwrap_err();
        assert!(matches!(error, Error::Denied { status: 403, .. }), "{error}");
        assert!(!error.to_string().contains(SECRET), "{error}");
    }
    assert_eq!(lab.double.count("/login"), 2);
}

#[tokio::test]
async fn a_session_is_renewed_before_its_end() {
    let lab = lab(KUBERNETES).await;
    put(&lab.vault, "r/t/k", b"v").await;
    pass(&lab.seconds, 3299);
    put(&lab.vault, "r/t/k", b"v").await;
    assert_eq!(lab.double.count("/login"), 1);
    pass(&lab.seconds, 1);
    put(&lab.vault, "r/t/k", b"v").await;
    assert_eq!(lab.double.count("/login"), 2);
    assert!(lab.double.seen().iter().all(|seen| seen.header("x-vault-token") != "token-1" || seen.method != "DELETE"));
}

#[tokio::test]
async fn a_role_logs_in_with_its_secret_in_its_namespace() {
    let lab = lab("mount_path = \"kv1\"\nnamespace = \"team/a\"\nlogin = { method = \"approle\", role_id = \"r\", \
         secret_id_file = \"FOLDER/secret\", mount = \"team/approle\" }")
    .await;
    put(&lab.vault, "r/t/k", b"v").await;
    assert!(lab.double.seen().iter().all(|seen| seen.header("x-vault-namespace") == "team/a"));
    assert_eq!(lab.double.seen()[0].header("x-vault-token"), "");
}

#[tokio::test]
async fn a_fixed_token_is_renewed_and_a_file_is_read_again() {
    let fixed = lab(SECOND).await;
    put(&fixed.vault, "r/t/k", b"v").await;
    pass(&fixed.seconds, 80);
    put(&fixed.vault, "r/t/k", b"v").await;
    assert_eq!(fixed.state.lock().unwrap().renewals, 2);

    let file = lab("token_file = \"FOLDER/token\"\nmount_path = \"kv1\"\n").await;
    put(&file.vault, "r/t/k", b"v").await;
    file.state.lock().unwrap().logins = 7;
    std::fs::write(file._folder.path().join("token"), "token-7").unwrap();
    pass(&file.seconds, 10);
    assert_eq!(value(&file.vault, "r/t/k").await.unwrap(), b"v");
    assert_eq!(file.state.lock().unwrap().renewals, 0);
}

#[tokio::test]
async fn a_refused_login_says_so_and_tells_no_secret() {
    let lab = lab(&KUBERNETES.replace("trustee", "stranger")).await;
    let error = lab.vault.get(&path("r/t/k")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("login at auth/kubernetes was refused"), "{error}");
    assert!(!error.to_string().contains("a.b.c"), "{error}");
}

#[tokio::test]
async fn an_answer_that_is_not_vaults_is_told_without_its_words() {
    let double = Double::start(|_| Reply::text(200, &format!("{{\"data\": \"{SECRET}\""))).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "t").unwrap();
    let config = format!("vault_url = \"{}\"\ntoken_file = \"{}\"", double.url, token.display());
    let vault = Vault::new(toml::from_str(&config).unwrap(), &clock().1, LIMITS).await.unwrap();
    let error = vault.get(&path("r/t/k")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
}

#[tokio::test]
async fn only_a_trusted_vault_is_spoken_to() {
    let state = Mutex::new(State::default());
    let (double, authority) = Double::start_tls(move |seen| answer(&state, seen)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, authority).unwrap();
    let open = async |more: &str| {
        let config = format!("vault_url = \"{}\"\ntoken = \"token-0\"\nmount_path = \"kv1\"\n{more}", double.url);
        // Long enough for a handshake, and soon over where the certificate is refused.
        let limits = Limits { total: Duration::from_secs(1), ..LIMITS };
        Vault::new(toml::from_str(&config).unwrap(), &clock().1, limits).await.unwrap()
    };
    let error = open("").await.get(&path("r/t/k")).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    assert_eq!(double.seen().len(), 0);

    let trusting = open(&format!("ca_certs = [\"{}\"]", file.display())).await;
    assert_eq!(value(&trusting, "r/t/k").await, None);
    let careless = open("verify_ssl = false").await;
    assert_eq!(value(&careless, "r/t/k").await, None);
}

#[tokio::test]
async fn a_configuration_that_can_t_work_is_refused_at_the_start() {
    for (config, key) in [
        ("token = \"t\"\nkv_version = 3", "kv_version"),
        ("", "token"),
        ("token = \"t\"\ntoken_file = \"f\"", "token"),
        ("token = \"t\"\nmount_path = \"../sys\"", "mount_path"),
        ("token = \"t\"\nnamespace = \"a\\nb\"", "namespace"),
        ("login = { method = \"kubernetes\", role = \"r\", mount = \"a?b\" }", "login.mount"),
    ] {
        let config: Config = toml::from_str(&format!("vault_url = \"https://v\"\n{config}")).unwrap();
        let error = Vault::new(config, &clock().1, LIMITS).await.err().unwrap();
        assert!(matches!(&error, Error::Config { key: found, .. } if *found == key), "{key}: {error}");
    }
}
