//! Alibaba Cloud KMS: an instance's gateway and the public interface.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::double::{Double, Reply, Seen};
use super::{
    CLIENT_KEY, CLIENT_KEY_PASSWORD, CLIENT_KEY_PUBLIC, LIMITS, SECRET, canonical_hash, clock, keeps_resources, keyed,
    makes_once, path, put, sha256, value,
};
use crate::aliyun::{Config, open};
use crate::{Backend, Condition, Error, Kind};

/// The gateway's check of a request, and its answer from one secret that is called `tag`.
fn gateway(seen: &Seen) -> Reply {
    let digest = sha256(&seen.body).to_uppercase();
    assert_eq!(seen.header("content-sha256"), digest);
    assert_eq!(seen.header("date"), "Fri, 15 Jan 2027 08:00:00 GMT");
    let mut lines = String::new();
    for name in ["x-kms-acccesskeyid", "x-kms-apiname", "x-kms-apiversion", "x-kms-signaturemethod"] {
        lines += &format!("{name}:{}\n", seen.header(name));
    }
    let text =
        format!("POST\n{digest}\n{}\n{}\n{lines}{}", seen.header("content-type"), seen.header("date"), seen.path);
    let signature = STANDARD.decode(seen.header("authorization").strip_prefix("Bearer ").unwrap()).unwrap();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, STANDARD.decode(CLIENT_KEY_PUBLIC).unwrap());
    key.verify(text.as_bytes(), &signature).expect("the client key's signature");
    assert_eq!((seen.header("x-kms-acccesskeyid"), seen.header("x-kms-apiname")), ("KAAP.1", "GetSecretValue"));

    match seen.body.as_slice() {
        // SecretData, SecretDataType, VersionId.
        b"\x0a\x03tag" => Reply::text(200, "\x0a\x03tag\x1a\x05value\x22\x04text\x32\x02v1"),
        b"\x0a\x03bin" => Reply::text(200, "\x1a\x04/wA=\x22\x06binary"),
        b"\x0a\x04none" => Reply::text(404, "\x08\x13\x12\x1aForbidden.ResourceNotFound"),
        b"\x0a\x06denied" => Reply::text(403, &format!("\x12\x12Forbidden.NoAccess\x1a\x0c{SECRET}")),
        _ => Reply::text(200, "\x1a\x7f"),
    }
}

async fn instance(double: &Double, certificate: &str, password: &str) -> Result<Arc<dyn Backend>, Error> {
    let client_key = json!({ "KeyId": "KAAP.1", "PrivateKeyData": CLIENT_KEY });
    let config: Config = serde_json::from_value(json!({
        "client_key": client_key.to_string(), "kms_instance_id": "kst-1", "password": password,
        "cert_pem": certificate, "endpoint_url": double.url,
    }))
    .unwrap();
    open(config, &clock().1, LIMITS).await
}

#[tokio::test]
async fn an_instance_is_read_with_its_client_key() {
    let (double, certificate) = Double::start_tls(gateway).await;
    let backend = instance(&double, &certificate, &format!("{CLIENT_KEY_PASSWORD}\n")).await.unwrap();
    let found = backend.get(&path("default/key/tag")).await.unwrap().unwrap();
    assert_eq!((found.value.as_slice(), found.version.as_deref()), (&b"value"[..], Some("v1")));
    assert_eq!(value(&*backend, "default/key/bin").await.unwrap(), [0xff, 0]);
    assert_eq!(value(&*backend, "default/key/none").await, None);

    let error = backend.get(&path("default/key/denied")).await.unwrap_err();
    assert!(error.to_string().contains("403 Forbidden.NoAccess") && !error.to_string().contains(SECRET), "{error}");
    let error = backend.get(&path("default/key/broken")).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    for outcome in [
        backend.put(&path("a/b/c"), b"v", &Condition::Any).await.map(|_| ()),
        backend.delete(&path("a/b/c"), &Condition::Any).await.map(|_| ()),
        backend.list(None).await.map(|_| ()),
    ] {
        assert_eq!(outcome.unwrap_err().kind(), Kind::BadRequest);
    }
}

#[tokio::test]
async fn a_client_key_that_can_t_be_opened_is_refused_at_the_start() {
    let (double, certificate) = Double::start_tls(gateway).await;
    let error = instance(&double, &certificate, "wrong").await.err().unwrap();
    assert!(matches!(error, Error::Config { key: "client_key", .. }), "{error}");
    let error = instance(&double, "no certificate", CLIENT_KEY_PASSWORD).await.err().unwrap();
    assert!(matches!(error, Error::Config { key: "cert_pem", .. }), "{error}");
    let error = open(toml::from_str("region_id = \"r\"").unwrap(), &clock().1, LIMITS).await.err().unwrap();
    assert!(error.to_string().contains("access_key_id"), "{error}");
}

#[derive(Default)]
struct State {
    secrets: BTreeMap<String, (Value, bool)>,
    nonces: BTreeSet<String>,
}

/// The check of the signature, written from the vendor's description and not from the signer.
fn is_signed(seen: &Seen) -> bool {
    let header = seen.header("authorization").strip_prefix("ACS3-HMAC-SHA256 ").unwrap();
    let parts: BTreeMap<&str, &str> = header.split(',').map(|part| part.split_once('=').unwrap()).collect();
    assert_eq!((parts["Credential"], seen.header("x-acs-content-sha256")), ("LTAI", sha256(&seen.body).as_str()));
    let signed = parts["SignedHeaders"];
    for needed in ["host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce"] {
        assert!(signed.split(';').any(|name| name == needed), "{needed} is not signed");
    }
    let text = format!("ACS3-HMAC-SHA256\n{}", canonical_hash(seen, signed));
    parts["Signature"] == hex::encode(keyed(b"key-secret", &text))
}

fn interface(state: &Mutex<State>, seen: &Seen) -> Reply {
    let mut state = state.lock().unwrap();
    let refusal = |status: u16, code: &str| Reply::json(status, &json!({ "Code": code, "Message": SECRET }));
    assert!(is_signed(seen), "the signature is wrong");
    assert!(state.nonces.insert(seen.header("x-acs-signature-nonce").to_owned()), "a nonce came twice");
    assert_eq!((seen.header("x-acs-version"), seen.query.as_str()), ("2016-01-20", ""));
    let name = seen.field("SecretName");
    let action = seen.header("x-acs-action");
    match (action, state.secrets.get(&name).cloned()) {
        ("ListSecrets", _) => {
            let (page, size) = (seen.field("PageNumber"), seen.field("PageSize"));
            assert_eq!((page.as_str(), size.as_str()), ("1", "100"));
            let names = state.secrets.iter().filter(|(_, (_, deleted))| !deleted);
            let names: Vec<Value> = names.map(|(name, _)| json!({ "SecretName": name })).collect();
            Reply::json(200, &json!({ "SecretList": { "Secret": names }, "TotalCount": names.len() }))
        }
        ("CreateSecret", Some((_, false))) => refusal(409, "Rejected.ResourceExist"),
        ("RestoreSecret", Some((secret, _))) => {
            state.secrets.insert(name, (secret, false));
            Reply::json(200, &json!({}))
        }
        (_, Some((_, true))) => refusal(409, "Rejected.ResourceInDeleting"),
        ("GetSecretValue", Some((secret, _))) => Reply::json(200, &secret),
        ("DeleteSecret", Some((secret, _))) => {
            state.secrets.insert(name, (secret, true));
            Reply::json(200, &json!({}))
        }
        ("CreateSecret", None) | ("PutSecretValue", Some(_)) => {
            let fields = ["SecretData", "SecretDataType", "VersionId"];
            let secret = fields.iter().map(|field| ((*field).to_owned(), json!(seen.field(field)))).collect();
            state.secrets.insert(name, (Value::Object(secret), false));
            Reply::json(200, &json!({}))
        }
        (_, None) => refusal(404, "Forbidden.ResourceNotFound"),
        (other, _) => panic!("{other} is not an action of the service"),
    }
}

#[tokio::test]
async fn the_public_interface_keeps_resources_under_signed_requests() {
    let state = Arc::new(Mutex::new(State::default()));
    let double = Double::start({
        let state = state.clone();
        let stumbled = std::sync::atomic::AtomicBool::new(false);
        move |seen| match stumbled.swap(true, std::sync::atomic::Ordering::Relaxed) {
            false => Reply::status(500),
            true => interface(&state, seen),
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "key-secret\n").unwrap();
    let config = format!(
        "region_id = \"cn-shanghai\"\naccess_key_id = \"LTAI\"\naccess_key_secret_file = \"{}\"\n\
         endpoint_url = \"{}\"\nnaming = \"path\"",
        file.display(),
        double.url
    );
    let backend = open(toml::from_str(&config).unwrap(), &clock().1, LIMITS).await.unwrap();
    keeps_resources(&*backend).await;
    makes_once(&*backend).await;
    let kinds: Vec<String> =
        double.seen().iter().map(|seen| seen.field("SecretDataType")).filter(|kind| !kind.is_empty()).collect();
    assert!(kinds.contains(&"text".to_owned()) && kinds.contains(&"binary".to_owned()));

    let versioned = Condition::Version("v".to_owned());
    assert!(matches!(backend.put(&path("a/b/c"), b"v", &versioned).await, Err(Error::ConditionUnsupported { .. })));
    assert!(matches!(backend.delete(&path("a/b/c"), &versioned).await, Err(Error::ConditionUnsupported { .. })));
    let large = vec![0; 30_721];
    assert!(matches!(backend.put(&path("a/b/c"), &large, &Condition::Any).await, Err(Error::TooLarge { .. })));
    put(&*backend, "a/b/c", b"v").await;
}
