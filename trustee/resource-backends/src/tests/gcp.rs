//! Google Cloud Secret Manager and its tokens.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::double::{Double, Reply, Seen};
use super::{LIMITS, SECRET, clock, environment, keeps_resources, makes_once, pass, path, put, value};
use crate::gcp::{Config, Gcp};
use crate::{Backend, Condition, Error, Kind};

static KEY: LazyLock<KeyPair> = LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());

#[derive(Default)]
struct State {
    /// The versions of each secret.
    secrets: BTreeMap<String, Vec<String>>,
    tokens: u64,
    /// Every further version is refused.
    full: bool,
}

/// Gives tokens out to whoever signs with the key, or is the machine.
fn give(state: &Mutex<State>, seen: &Seen) -> Reply {
    if seen.path == "/token" {
        assert_eq!(seen.field("grant_type"), "urn:ietf:params:oauth:grant-type:jwt-bearer");
        let assertion = seen.field("assertion");
        let (signed, signature) = assertion.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, KEY.public_key().as_ref());
        key.verify(signed.as_bytes(), &signature).expect("the key's signature");
        let [header, claims] = [0, 1].map(|part| {
            let part = URL_SAFE_NO_PAD.decode(signed.split('.').nth(part).unwrap()).unwrap();
            serde_json::from_slice::<Value>(&part).unwrap()
        });
        assert_eq!(header, json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" }));
        assert_eq!(claims["iss"], "trustee@p.iam.gserviceaccount.com");
        assert_eq!(claims["aud"], format!("http://{}/token", seen.header("host")));
        assert_eq!(claims["exp"].as_u64().unwrap(), claims["iat"].as_u64().unwrap() + 3600);
    } else {
        assert_eq!(seen.path, "/computeMetadata/v1/instance/service-accounts/default/token");
        assert_eq!(seen.header("metadata-flavor"), "Google");
    }
    let mut state = state.lock().unwrap();
    state.tokens += 1;
    Reply::json(200, &json!({ "access_token": format!("ya29.{}", state.tokens), "expires_in": 3599 }))
}

fn answer(state: &Mutex<State>, seen: &Seen) -> Reply {
    let Some(rest) = seen.path.strip_prefix("/v1/projects/p/secrets") else { return give(state, seen) };
    let mut state = state.lock().unwrap();
    let refusal = |code: u16, status: &str| {
        Reply::json(code, &json!({ "error": { "code": code, "message": SECRET, "status": status } }))
    };
    if seen.header("authorization") != format!("Bearer ya29.{}", state.tokens) {
        return refusal(401, "UNAUTHENTICATED");
    }
    let full = |name: &str| format!("projects/1/secrets/{name}");
    match (seen.method.as_str(), rest.trim_start_matches('/')) {
        ("GET", "") => {
            let from = seen.parameter("pageToken").parse().unwrap_or(0);
            let page: Vec<Value> =
                state.secrets.keys().skip(from).take(2).map(|name| json!({ "name": full(name) })).collect();
            let next = if from + 2 < state.secrets.len() { (from + 2).to_string() } else { String::new() };
            Reply::json(200, &json!({ "secrets": page, "nextPageToken": next }))
        }
        ("POST", "") => {
            assert_eq!(seen.json(), json!({ "replication": { "automatic": {} } }));
            let name = seen.parameter("secretId");
            if state.secrets.contains_key(&name) {
                return refusal(409, "ALREADY_EXISTS");
            }
            state.secrets.insert(name.clone(), Vec::new());
            Reply::json(200, &json!({ "name": full(&name) }))
        }
        ("POST", action) => {
            let is_full = state.full;
            match state.secrets.get_mut(action.strip_suffix(":addVersion").unwrap()) {
                None => refusal(404, "NOT_FOUND"),
                Some(_) if is_full => refusal(400, "FAILED_PRECONDITION"),
                Some(versions) => {
                    versions.push(seen.json()["payload"]["data"].as_str().unwrap().to_owned());
                    Reply::json(200, &json!({ "name": format!("{}/versions/{}", full("x"), versions.len()) }))
                }
            }
        }
        ("GET", access) => {
            let (name, version) = access.strip_suffix(":access").unwrap().split_once("/versions/").unwrap();
            let versions = state.secrets.get(name).cloned().unwrap_or_default();
            let number = version.parse().unwrap_or(versions.len());
            match versions.get(number.wrapping_sub(1)) {
                None => refusal(404, "NOT_FOUND"),
                Some(data) => {
                    let name = format!("{}/versions/{number}", full(name));
                    Reply::json(200, &json!({ "name": name, "payload": { "data": data } }))
                }
            }
        }
        ("DELETE", name) => match state.secrets.remove(name) {
            None => refusal(404, "NOT_FOUND"),
            Some(_) => Reply::json(200, &json!({})),
        },
        (method, rest) => panic!("{method} {rest} is not of the service"),
    }
}

struct Lab {
    double: Double,
    state: Arc<Mutex<State>>,
    seconds: Arc<std::sync::atomic::AtomicU64>,
    gcp: Gcp,
}

/// The service, and a broker whose token comes from the metadata server.
async fn lab(more: &str) -> Lab {
    let state = Arc::new(Mutex::new(State::default()));
    let double = Double::start({
        let state = state.clone();
        move |seen| answer(&state, seen)
    })
    .await;
    let (seconds, clock) = clock();
    let host = double.url.strip_prefix("http://").unwrap();
    let gcp = Gcp::new(config(&double, more), &environment(&[("GCE_METADATA_HOST", host)]), &clock, LIMITS).await;
    Lab { gcp: gcp.unwrap(), double, state, seconds }
}

fn config(double: &Double, more: &str) -> Config {
    toml::from_str(&format!("project_id = \"p\"\nendpoint_url = \"{}\"\n{more}", double.url)).unwrap()
}

fn key_file(token_uri: &str) -> Value {
    let der: Pkcs8V1Der<'_> = KEY.as_der().unwrap();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()));
    json!({ "type": "service_account", "client_email": "trustee@p.iam.gserviceaccount.com", "private_key": pem,
            "private_key_id": "key-1", "token_uri": token_uri })
}

#[tokio::test]
async fn resources_are_kept_with_a_token_of_the_machine() {
    let lab = lab("naming = \"path\"").await;
    keeps_resources(&lab.gcp).await;
    makes_once(&lab.gcp).await;
    assert_eq!(lab.double.count("/token"), 1);
    let versioned = Condition::Version("1".to_owned());
    assert!(matches!(lab.gcp.put(&path("a/b/c"), b"v", &versioned).await, Err(Error::ConditionUnsupported { .. })));
    assert!(matches!(lab.gcp.delete(&path("a/b/c"), &versioned).await, Err(Error::ConditionUnsupported { .. })));
    let large = vec![0; 65_537];
    assert!(matches!(lab.gcp.put(&path("a/b/c"), &large, &Condition::Any).await, Err(Error::TooLarge { .. })));
}

#[tokio::test]
async fn a_service_accounts_key_is_exchanged_for_a_token_until_it_ends() {
    let lab = lab("").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    std::fs::write(&file, key_file(&format!("{}/token", lab.double.url)).to_string()).unwrap();
    let variables = environment(&[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]);
    let (seconds, clock) = clock();
    let gcp = Gcp::new(config(&lab.double, ""), &variables, &clock, LIMITS).await.unwrap();
    put(&gcp, "default/key/1", b"v").await;
    pass(&seconds, 3600);
    put(&gcp, "default/key/1", b"v").await;
    assert_eq!(lab.double.seen().iter().filter(|seen| seen.path == "/token").count(), 2);
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let lab = lab("").await;
    put(&lab.gcp, "default/key/1", b"v").await;
    lab.state.lock().unwrap().tokens += 1;
    pass(&lab.seconds, 60);
    assert_eq!(value(&lab.gcp, "default/key/1").await.unwrap(), b"v");

    lab.state.lock().unwrap().tokens += 1;
    let error = lab.gcp.get(&path("default/key/1")).await.unwrap_err();
    assert!(matches!(error, Error::Denied { status: 401, .. }), "{error}");
    assert!(!error.to_string().contains(SECRET), "{error}");
}

#[tokio::test]
async fn upstreams_naming_and_a_fixed_version_are_read() {
    let lab = lab("version = \"1\"").await;
    let versions = vec![STANDARD.encode("one"), STANDARD.encode("two")];
    lab.state.lock().unwrap().secrets.insert("tag".to_owned(), versions);
    assert_eq!(value(&lab.gcp, "default/key/tag").await.unwrap(), b"one");
    assert_eq!(value(&lab.gcp, "other/key/tag").await.unwrap(), b"one");
    assert_eq!(lab.gcp.list(None).await.unwrap_err().kind(), Kind::BadRequest);
}

#[tokio::test]
async fn a_write_that_fails_leaves_no_empty_secret() {
    let lab = lab("naming = \"path\"").await;
    lab.state.lock().unwrap().full = true;
    let error = lab.gcp.put(&path("a/b/c"), b"v", &Condition::Absent).await.unwrap_err();
    assert!(error.to_string().contains("FAILED_PRECONDITION"), "{error}");
    assert!(lab.state.lock().unwrap().secrets.is_empty());
}

#[tokio::test]
async fn a_key_file_that_can_t_be_used_is_refused_without_its_words() {
    let double = Double::start(|_| Reply::status(200)).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    let with = |key: &str, value: Value| {
        let mut file = key_file("https://oauth2.googleapis.com/token");
        file[key] = value;
        file.to_string()
    };
    for (content, cause) in [
        (format!("{SECRET} is not JSON"), "not a service account's key in JSON"),
        (with("type", json!("authorized_user")), "not the key of a service account"),
        (with("private_key", json!(SECRET)), "not PKCS #8"),
        (with("token_uri", json!("ftp://a")), "neither http nor https"),
    ] {
        std::fs::write(&file, content).unwrap();
        let config = config(&double, &format!("credentials_file = \"{}\"", file.display()));
        let error = Gcp::new(config, &environment(&[]), &clock().1, LIMITS).await.err().unwrap();
        assert!(error.to_string().contains(cause) && !error.to_string().contains(SECRET), "{error}");
    }
    let config = toml::from_str("project_id = \"../other\"").unwrap();
    let error = Gcp::new(config, &environment(&[]), &clock().1, LIMITS).await.err().unwrap();
    assert!(matches!(error, Error::Config { key: "project_id", .. }), "{error}");
}
