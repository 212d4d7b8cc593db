//! AWS: keys and secrets, and what becomes of refusals.

use aws_lc_rs::{digest, hmac};
use serde_json::{Value, json};
use wire::sealed_secret::Provider;

use super::double::{Double, Seen};
use super::{Guest, named};
use crate::Error;

/// Checks the signature with the secret, from what came.
fn service(seen: &Seen) -> (u16, Vec<u8>) {
    let authorization = seen.header("authorization").strip_prefix("AWS4-HMAC-SHA256 ").unwrap().to_owned();
    let field = |name: &str| authorization.split(", ").find_map(|f| f.strip_prefix(name)).unwrap().to_owned();
    let (credential, names) = (field("Credential="), field("SignedHeaders="));
    let scope = credential.strip_prefix("AKID/").unwrap();
    let lines: String = names.split(';').map(|name| format!("{name}:{}\n", seen.header(name))).collect();
    let canonical = format!("{}\n{}\n\n{lines}\n{names}\n{}", seen.method, seen.uri.path(), sha256(&seen.body));
    let text = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{}", seen.header("x-amz-date"), sha256(canonical.as_bytes()));
    let key = scope.split('/').fold(format!("AWS4{SECRET}").into_bytes(), |key, part| hmac(&key, part.as_bytes()));
    assert_eq!(field("Signature="), hex::encode(hmac(&key, text.as_bytes())));
    assert_eq!(names, "content-type;host;x-amz-date;x-amz-security-token;x-amz-target");
    assert_eq!(seen.header("x-amz-security-token"), "the-token");

    let request: Value = serde_json::from_slice(&seen.body).unwrap();
    let answer = match seen.header("x-amz-target") {
        "TrentService.Decrypt" => {
            assert!(scope.ends_with("/eu-west-1/kms/aws4_request"), "{scope}");
            match request["KeyId"].as_str().unwrap() {
                "alias/k" => {
                    assert_eq!(request, json!({ "KeyId": "alias/k", "CiphertextBlob": "AQID" }));
                    json!({ "Plaintext": "c2VjcmV0" })
                }
                "alias/context" => {
                    assert_eq!(request["EncryptionContext"], json!({ "purpose": "cdh" }));
                    json!({ "Plaintext": "YQ==" })
                }
                "alias/odd" => json!({ "Plaintext": "*" }),
                _ => {
                    let refusal = json!({ "__type": "com.x#AccessDeniedException", "message": SECRET });
                    return (400, refusal.to_string().into_bytes());
                }
            }
        }
        "secretsmanager.GetSecretValue" => {
            assert!(scope.ends_with("/eu-west-1/secretsmanager/aws4_request"), "{scope}");
            match request["SecretId"].as_str().unwrap() {
                "text" => {
                    assert_eq!(request, json!({ "SecretId": "text" }));
                    json!({ "SecretString": "value" })
                }
                "binary" => {
                    let expected = json!({ "SecretId": "binary", "VersionId": "v1", "VersionStage": "AWSPREVIOUS" });
                    assert_eq!(request, expected);
                    json!({ "SecretBinary": "/wA=" })
                }
                _ => json!({ "Name": "nothing" }),
            }
        }
        other => panic!("{other}"),
    };
    (200, answer.to_string().into_bytes())
}

#[tokio::test]
async fn a_key_decrypts_with_its_context() {
    let guest = guest().await;
    for (name, annotations, expected) in [
        ("alias/k", json!({}), "secret"),
        ("alias/context", json!({ "encryption_context": { "purpose": "cdh" } }), "a"),
    ] {
        let settings = settings();
        let plain = guest.kms.decrypt(&Provider::Aws, named(name, &settings, &annotations), &[1, 2, 3]).await.unwrap();
        assert_eq!(*plain, expected.as_bytes());
    }
}

#[tokio::test]
async fn a_secret_is_text_or_binary_and_of_the_version_asked_for() {
    let guest = guest().await;
    let version = json!({ "version_id": "v1", "version_stage": "AWSPREVIOUS" });
    for (name, annotations, expected) in
        [("text", json!({ "version_id": "", "version_stage": "" }), &b"value"[..]), ("binary", version, &[0xff, 0])]
    {
        let settings = settings();
        let secret = guest.kms.secret(&Provider::Aws, named(name, &settings, &annotations)).await.unwrap();
        assert_eq!(*secret, expected);
    }
}

#[tokio::test]
async fn each_failure_has_its_cause_and_no_secret() {
    let guest = guest().await;
    let (settings, none) = (settings(), json!({}));
    let error = guest.kms.decrypt(&Provider::Aws, named("alias/x", &settings, &none), &[1]).await.unwrap_err();
    assert!(matches!(&error, Error::Refused { status: 400, code, .. } if code == "AccessDeniedException"), "{error}");
    assert!(error.to_string().starts_with("AWS kms in eu-west-1 answered 400 "), "{error}");
    assert!(!error.to_string().contains(SECRET), "{error}");
    let error = guest.kms.decrypt(&Provider::Aws, named("alias/odd", &settings, &none), &[1]).await.unwrap_err();
    assert!(matches!(error, Error::Answer { .. }), "{error}");
    let error = guest.kms.secret(&Provider::Aws, named("empty", &settings, &none)).await.unwrap_err();
    assert!(matches!(error, Error::Answer { cause: "there is no secret in it", .. }), "{error}");

    for (settings, annotations, reason) in [
        (json!({}), json!({}), "region"),
        (json!({ "region": "evil.example/" }), json!({}), "characters"),
        (json!({ "region": "eu-west-1" }), json!({ "encryption_context": 7 }), "annotations"),
    ] {
        let error = guest.kms.decrypt(&Provider::Aws, named("k", &settings, &annotations), &[1]).await.unwrap_err();
        assert!(matches!(error, Error::Settings { .. }) && error.to_string().contains(reason), "{error}");
    }
    guest.credential("aws/credential.json", &format!("{{\"secret_access_key\": \"{SECRET}\"}}"));
    let error = guest.kms.secret(&Provider::Aws, named("text", &settings, &none)).await.unwrap_err().to_string();
    assert!(error.contains("credential.json: it is not JSON with access_key_id") && !error.contains(SECRET), "{error}");
    let error = guest.kms.secret(&Provider::Other("ehsm".into()), named("s", &none, &none)).await.unwrap_err();
    assert!(error.to_string().contains("\"ehsm\" is not supported; next: use kbs, aliyun or aws"), "{error}");
}

async fn guest() -> Guest {
    let guest = Guest::new(&Double::start(service).await.url);
    let credential = json!({ "access_key_id": "AKID", "secret_access_key": SECRET, "session_token": "the-token" });
    guest.credential("aws/credential.json", &credential.to_string());
    guest
}

fn sha256(data: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, data))
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data).as_ref().to_vec()
}

fn settings() -> Value {
    json!({ "region": "eu-west-1" })
}

const SECRET: &str = "wJalrXUtnFEMI";
