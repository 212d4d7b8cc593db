//! Alibaba Cloud: an instance's gateway, and the public interface with keys of a role and of a file.

use std::collections::BTreeMap;

use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use aws_lc_rs::{digest, hmac};
use axum::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wire::sealed_secret::Provider;

use super::double::{Double, Seen};
use super::{CLIENT_KEY, CLIENT_KEY_PASSWORD, CLIENT_KEY_PUBLIC, Guest, named};
use crate::Error;

/// The gateway's check of a request, and its answer.
fn gateway(seen: &Seen) -> (u16, Vec<u8>) {
    let digest = hex::encode_upper(digest::digest(&digest::SHA256, &seen.body));
    assert_eq!(seen.header("content-sha256"), digest);
    let mut lines = String::new();
    for name in ["x-kms-acccesskeyid", "x-kms-apiname", "x-kms-apiversion", "x-kms-signaturemethod"] {
        lines += &format!("{name}:{}\n", seen.header(name));
    }
    let text =
        format!("POST\n{digest}\n{}\n{}\n{lines}{}", seen.header("content-type"), seen.header("date"), seen.uri.path());
    let signature = STANDARD.decode(seen.header("authorization").strip_prefix("Bearer ").unwrap()).unwrap();
    let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, STANDARD.decode(CLIENT_KEY_PUBLIC).unwrap());
    key.verify(text.as_bytes(), &signature).expect("the client key's signature");
    assert_eq!((seen.header("x-kms-acccesskeyid"), seen.header("x-kms-apiversion")), ("KAAP.1", "dkms-gcs-0.2"));

    let answer: &[u8] = match (seen.header("x-kms-apiname"), &seen.body[..]) {
        // CiphertextBlob, KeyId, Algorithm, Iv; KeyId, Plaintext, RequestId.
        ("Decrypt", b"\x0a\x03\x01\x02\x03\x12\x03key\x1a\x07AES_GCM\x2a\x02\x07\x08") => {
            b"\x0a\x03key\x12\x05plain\x1a\x01r"
        }
        // SecretName, VersionStage, VersionId; SecretData, SecretDataType.
        ("GetSecretValue", b"\x0a\x03tag\x12\x09ACSPrevio\x1a\x02v1") => b"\x0a\x03tag\x1a\x05value\x22\x04text",
        ("GetSecretValue", b"\x0a\x03bin") => b"\x1a\x04/wA=\x22\x06binary",
        ("GetSecretValue", b"\x0a\x03odd") => b"\x1a\x7f",
        (_, body) if body.windows(4).any(|part| part == b"none") => {
            return (404, b"\x08\x13\x12\x1aForbidden.ResourceNotFound\x1a\x06secret".to_vec());
        }
        other => panic!("{other:?}"),
    };
    (200, answer.to_vec())
}

#[tokio::test]
async fn a_client_key_decrypts_and_fetches() {
    let guest = instance().await;
    let (settings, iv) = (client_key(), json!({ "iv": "Bwg=" }));
    let plain = guest.kms.decrypt(&Provider::Aliyun, named("key", &settings, &iv), &[1, 2, 3]).await.unwrap();
    assert_eq!(*plain, b"plain");

    let version = json!({ "version_stage": "ACSPrevio", "version_id": "v1" });
    let secret = guest.kms.secret(&Provider::Aliyun, named("tag", &settings, &version)).await.unwrap();
    assert_eq!(*secret, b"value");
    let secret = guest.kms.secret(&Provider::Aliyun, named("bin", &settings, &json!({}))).await.unwrap();
    assert_eq!(*secret, [0xff, 0]);

    // As the console gives the password out.
    guest.credential("aliyun/password_KAAP.1.json", &format!("{CLIENT_KEY_PASSWORD}\n"));
    assert!(guest.kms.secret(&Provider::Aliyun, named("bin", &settings, &json!({}))).await.is_ok());
}

#[tokio::test]
async fn a_gateway_that_refuses_or_can_not_be_trusted_is_named() {
    let guest = instance().await;
    let (settings, none) = (client_key(), json!({}));
    let error = guest.kms.secret(&Provider::Aliyun, named("none", &settings, &none)).await.unwrap_err();
    let expected = "the KMS instance kst-1 answered 404 Forbidden.ResourceNotFound; next: ";
    assert!(error.to_string().starts_with(expected), "{error}");
    let error = guest.kms.secret(&Provider::Aliyun, named("odd", &settings, &none)).await.unwrap_err();
    assert!(matches!(error, Error::Answer { .. }), "{error}");

    let another = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem();
    guest.credential("aliyun/PrivateKmsCA_kst-1.pem", &another);
    let error = guest.kms.secret(&Provider::Aliyun, named("bin", &settings, &none)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    guest.credential("aliyun/PrivateKmsCA_kst-1.pem", "no PEM");
    let error = guest.kms.secret(&Provider::Aliyun, named("bin", &settings, &none)).await.unwrap_err().to_string();
    assert!(error.contains("PrivateKmsCA_kst-1.pem: it is not a certificate authority's PEM"), "{error}");

    guest.credential("aliyun/password_KAAP.1.json", "wrong");
    let error = guest.kms.secret(&Provider::Aliyun, named("bin", &settings, &none)).await.unwrap_err().to_string();
    assert!(error.contains("clientKey_KAAP.1.json: ") && error.contains("; next: fill the file"), "{error}");
}

/// The public interface and the metadata service at once.
fn public(seen: &Seen) -> (u16, Vec<u8>) {
    if seen.uri.path() == "/latest/meta-data/ram/security-credentials/the-role" {
        let given = json!({ "AccessKeyId": "ak", "AccessKeySecret": "sk", "SecurityToken": "t/+=", "Code": "Success" });
        return (200, given.to_string().into_bytes());
    }
    assert_eq!(seen.method, Method::POST);
    let (query, signature) = seen.uri.query().unwrap().rsplit_once("&Signature=").unwrap();
    let text = format!("POST&%2F&{}", query.replace('%', "%25").replace('=', "%3D").replace('&', "%26"));
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"sk&");
    let expected = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
    assert_eq!(signature.replace("%2B", "+").replace("%2F", "/").replace("%3D", "="), expected);

    let query: BTreeMap<&str, &str> = query.split('&').map(|pair| pair.split_once('=').unwrap()).collect();
    assert!(query["SignatureNonce"].len() == 32 && query["Timestamp"].ends_with('Z'));
    let fixed = ["Action", "Version", "AccessKeyId", "SecurityToken", "RegionId"].map(|name| query[name]);
    assert_eq!(fixed, ["GetSecretValue", "2016-01-20", "ak", "t%2F%2B%3D", "cn-hangzhou"]);
    match query["SecretName"] {
        "my%20secret" => (200, json!({ "SecretData": "value", "SecretDataType": "text" }).to_string().into_bytes()),
        _ => (404, json!({ "Code": "Forbidden.ResourceNotFound", "Message": query }).to_string().into_bytes()),
    }
}

#[tokio::test]
async fn a_role_and_a_token_fetch_secrets_and_decrypt_nothing() {
    let guest = Guest::new(&Double::start(public).await.url);
    let role = json!({ "ecs_ram_role_name": "the-role", "region_id": "cn-hangzhou" });
    guest.credential("aliyun/ecsRamRole.json", &role.to_string());
    guest.credential("sts", "ak:sk:t/+=\n");
    let path = guest.folder.path().join("kms-credential/sts");
    let token = json!({ "client_type": "sts_token", "token_path": path, "region_id": "cn-hangzhou" });
    let none = json!({});
    for settings in [json!({ "client_type": "ecs_ram_role" }), token] {
        let secret = guest.kms.secret(&Provider::Aliyun, named("my secret", &settings, &none)).await.unwrap();
        assert_eq!(*secret, b"value");
        let error = guest.kms.secret(&Provider::Aliyun, named("other", &settings, &none)).await.unwrap_err();
        let expected = "Alibaba Cloud KMS in cn-hangzhou answered 404 Forbidden.ResourceNotFound; next: ";
        assert!(error.to_string().starts_with(expected), "{error}");
        let error = guest.kms.decrypt(&Provider::Aliyun, named("k", &settings, &none), &[1]).await.unwrap_err();
        assert!(matches!(error, Error::CannotDecrypt { .. }), "{error}");
    }
}

#[tokio::test]
async fn settings_lead_nowhere_but_to_credentials() {
    let guest = Guest::new("http://127.0.0.1:9");
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(outside.path(), "ak:sk:token").unwrap();
    let up = format!("{}/../{}", guest.folder.path().display(), outside.path().display());
    for (settings, reason) in [
        (json!({}), "client_type"),
        (json!({ "client_type": "password" }), "password"),
        (json!({ "client_type": "sts_token", "token_path": outside.path(), "region_id": "x" }), "is not below"),
        (json!({ "client_type": "sts_token", "token_path": up, "region_id": "x" }), "is not below"),
        (json!({ "client_type": "sts_token", "token_path": "sts", "region_id": "x" }), "is not below"),
        (json!({ "client_type": "client_key", "client_key_id": "../x", "kms_instance_id": "i" }), "characters"),
        (
            json!({ "client_type": "client_key", "client_key_id": "x", "kms_instance_id": "evil.example/" }),
            "characters",
        ),
    ] {
        let error = guest.kms.secret(&Provider::Aliyun, named("s", &settings, &json!({}))).await.unwrap_err();
        assert!(matches!(error, Error::Settings { .. }) && error.to_string().contains(reason), "{settings}: {error}");
    }
}

async fn instance() -> Guest {
    let double = Double::start_tls(gateway).await;
    let guest = Guest::new(&double.url);
    let key = json!({ "KeyId": "KAAP.1", "PrivateKeyData": CLIENT_KEY });
    guest.credential("aliyun/clientKey_KAAP.1.json", &key.to_string());
    let password = json!({ "ClientKeyPassword": CLIENT_KEY_PASSWORD });
    guest.credential("aliyun/password_KAAP.1.json", &password.to_string());
    guest.credential("aliyun/PrivateKmsCA_kst-1.pem", &double.authority);
    guest
}

fn client_key() -> Value {
    json!({ "client_type": "client_key", "client_key_id": "KAAP.1", "kms_instance_id": "kst-1" })
}
