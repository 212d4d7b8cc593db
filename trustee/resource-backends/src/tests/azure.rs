//! Azure Key Vault and its tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::double::{Double, Reply, Seen};
use super::{LIMITS, SECRET, clock, environment, keeps_resources, pass, path, put, value};
use crate::azure::{Azure, Config};
use crate::{Backend, Condition, Error, Kind};

#[derive(Default)]
struct State {
    secrets: BTreeMap<String, Value>,
    deleted: BTreeMap<String, Value>,
    /// How often a write still meets a secret that is being recovered.
    busy: u32,
    tokens: u64,
    writes: u64,
    url: String,
}

fn give(state: &Mutex<State>, seen: &Seen) -> Reply {
    let lasts = match seen.path.as_str() {
        "/tenant/oauth2/v2.0/token" => {
            assert_eq!(seen.field("grant_type"), "client_credentials");
            assert_eq!(seen.field("client_id"), "app");
            assert_eq!(seen.field("scope"), "https://vault.azure.net/.default");
            let kind = seen.field("client_assertion_type");
            match (seen.field("client_secret").as_str(), seen.field("client_assertion").as_str()) {
                ("app-secret", "") => {}
                ("", "a.b.c") if kind == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" => {}
                _ => return Reply::json(401, &json!({ "error": "invalid_client", "error_description": SECRET })),
            }
            json!(3599)
        }
        "/metadata/identity/oauth2/token" => {
            assert_eq!(seen.header("metadata"), "true");
            assert_eq!(seen.parameter("api-version"), "2018-02-01");
            assert_eq!(seen.parameter("resource"), "https://vault.azure.net");
            json!("86400")
        }
        other => panic!("{other} gives no tokens"),
    };
    let mut state = state.lock().unwrap();
    state.tokens += 1;
    Reply::json(200, &json!({ "access_token": format!("token-{}", state.tokens), "expires_in": lasts }))
}

fn answer(state: &Mutex<State>, seen: &Seen) -> Reply {
    let mut parts = seen.path.splitn(4, '/').skip(1);
    let kind = parts.next().unwrap();
    if !kind.ends_with("secrets") {
        return give(state, seen);
    }
    let mut state = state.lock().unwrap();
    let refusal = |status: u16, code: &str, inner: Value| {
        Reply::json(status, &json!({ "error": { "code": code, "message": SECRET, "innererror": inner } }))
    };
    if seen.header("authorization") != format!("Bearer token-{}", state.tokens) {
        return refusal(401, "Unauthorized", Value::Null);
    }
    assert_eq!(seen.parameter("api-version"), "7.4");
    // Key Vault knows no case.
    let name = parts.next().unwrap_or_default().to_lowercase();
    assert!(name.len() <= 127 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{name}");
    let url = state.url.clone();
    let absent = || refusal(404, "SecretNotFound", Value::Null);
    match (seen.method.as_str(), kind, name.as_str(), parts.next()) {
        ("GET", "secrets", "", None) => {
            let from = seen.parameter("skip").parse().unwrap_or(0);
            let page: Vec<Value> = state
                .secrets
                .keys()
                .skip(from)
                .take(2)
                .map(|name| json!({ "id": format!("{url}/secrets/{name}") }))
                .collect();
            let more = from + 2 < state.secrets.len();
            let next = more.then(|| format!("{url}/secrets?api-version=7.4&skip={}", from + 2));
            Reply::json(200, &json!({ "value": page, "nextLink": next }))
        }
        ("GET", "secrets", name, None) => {
            state.secrets.get(name).map_or_else(absent, |secret| Reply::json(200, secret))
        }
        ("PUT", "secrets", name, None) => {
            if state.deleted.contains_key(name) {
                return refusal(409, "Conflict", json!({ "code": "ObjectIsDeletedButRecoverable" }));
            }
            if state.busy > 0 {
                state.busy -= 1;
                return refusal(409, "Conflict", json!({ "code": "ObjectIsBeingRecovered" }));
            }
            state.writes += 1;
            let mut secret = seen.json();
            secret["id"] = json!(format!("{url}/secrets/{name}/version{}", state.writes));
            state.secrets.insert(name.to_owned(), secret.clone());
            Reply::json(200, &secret)
        }
        ("DELETE", "secrets", name, None) => match state.secrets.remove(name) {
            None => absent(),
            Some(secret) => {
                state.deleted.insert(name.to_owned(), secret);
                Reply::json(200, &json!({}))
            }
        },
        ("POST", "deletedsecrets", name, Some("recover")) => {
            let secret = state.deleted.remove(name).unwrap();
            state.secrets.insert(name.to_owned(), secret);
            state.busy = 2;
            Reply::json(200, &json!({}))
        }
        other => panic!("{other:?} is not of the service"),
    }
}

struct Lab {
    double: Double,
    state: Arc<Mutex<State>>,
    seconds: Arc<std::sync::atomic::AtomicU64>,
    azure: Azure,
}

/// A key vault, and a broker with this configuration; the machine has a managed identity.
async fn lab(more: &str) -> Lab {
    let state = Arc::new(Mutex::new(State::default()));
    let double = Double::start({
        let state = state.clone();
        move |seen| answer(&state, seen)
    })
    .await;
    state.lock().unwrap().url = double.url.clone();
    let (seconds, clock) = clock();
    let variables = environment(&[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &double.url)]);
    let more = more.replace("URL", &double.url);
    let config: Config = toml::from_str(&format!("vault_url = \"{}\"\n{more}", double.url)).unwrap();
    let azure = Azure::new(config, &variables, &clock, LIMITS).await.unwrap();
    Lab { double, state, seconds, azure }
}

#[tokio::test]
async fn resources_are_kept_as_the_machine() {
    let lab = lab("").await;
    keeps_resources(&lab.azure).await;
    assert_eq!(lab.double.count("/token"), 1);
    for condition in [Condition::Absent, Condition::Version("1".to_owned())] {
        let outcome = lab.azure.put(&path("a/b/c"), b"v", &condition).await;
        assert!(matches!(outcome, Err(Error::ConditionUnsupported { .. })));
        let outcome = lab.azure.delete(&path("a/b/c"), &condition).await;
        assert!(matches!(outcome, Err(Error::ConditionUnsupported { .. })));
    }
    let large = vec![0; 19_201];
    assert!(matches!(lab.azure.put(&path("a/b/c"), &large, &Condition::Any).await, Err(Error::TooLarge { .. })));
    let long = path(&format!("a/b/{}", "c".repeat(122)));
    assert!(matches!(lab.azure.get(&long).await, Err(Error::Name { .. })));
}

#[tokio::test]
async fn an_application_logs_in_with_a_secret_or_a_federated_token() {
    let folder = tempfile::tempdir().unwrap();
    let application = "tenant_id = \"tenant\"\nclient_id = \"app\"\nauthority_url = \"URL/\"\n";
    for (key, content) in [("client_secret_file", "app-secret\n"), ("federated_token_file", "a.b.c")] {
        let file = folder.path().join(key);
        std::fs::write(&file, content).unwrap();
        let lab = lab(&format!("{application}{key} = \"{}\"", file.display())).await;
        put(&lab.azure, "default/key/1", b"v").await;
        pass(&lab.seconds, 3600);
        assert_eq!(value(&lab.azure, "default/key/1").await.unwrap(), b"v");
        assert_eq!(lab.double.count("/token"), 2);

        std::fs::write(&file, "wrong").unwrap();
        pass(&lab.seconds, 3600);
        let error = lab.azure.get(&path("default/key/1")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("no token was given") && !error.to_string().contains(SECRET), "{error}");
    }
}

#[tokio::test]
async fn texts_of_others_are_read_and_versions_told() {
    let lab = lab("").await;
    let secret =
        json!({ "value": "plain text", "id": "https://v/secrets/default-1key-11/abc123", "contentType": null });
    lab.state.lock().unwrap().secrets.insert("default-1key-11".to_owned(), secret);
    let found = lab.azure.get(&path("default/key/1")).await.unwrap().unwrap();
    assert_eq!((found.value.as_slice(), found.version.as_deref()), (&b"plain text"[..], Some("abc123")));
}

#[tokio::test]
async fn a_list_goes_to_no_other_address() {
    let lab = lab("").await;
    for name in ["a-1b-1c", "a-1b-1d", "a-1b-1e"] {
        lab.state.lock().unwrap().secrets.insert(name.to_owned(), json!({}));
    }
    assert_eq!(lab.azure.list(None).await.unwrap().len(), 3);
    lab.state.lock().unwrap().url = "https://elsewhere".to_owned();
    let error = lab.azure.list(None).await.unwrap_err();
    assert!(error.to_string().contains("another address"), "{error}");
}

#[tokio::test]
async fn an_incomplete_application_is_refused_at_the_start() {
    let azure = async |text: &str| {
        let config: Config = toml::from_str(&format!("vault_url = \"https://v\"\n{text}")).unwrap();
        Azure::new(config, &environment(&[]), &clock().1, LIMITS).await.err().unwrap()
    };
    let secret = "client_secret_file = \"f\"\n";
    for (text, key) in [
        (secret.to_owned(), "tenant_id"),
        (format!("{secret}tenant_id = \"t\""), "client_id"),
        (format!("{secret}tenant_id = \"t/../u\"\nclient_id = \"c\""), "tenant_id"),
        (format!("{secret}federated_token_file = \"g\""), "client_secret_file"),
        (format!("{secret}tenant_id = \"t\"\nauthority_url = \"x\""), "authority_url"),
    ] {
        let error = azure(&text).await;
        assert!(matches!(&error, Error::Config { key: found, .. } if *found == key), "{key}: {error}");
    }
}
