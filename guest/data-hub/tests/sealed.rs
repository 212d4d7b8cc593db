//! Sealed secrets through the service: which are opened, and which refused for what.

#![allow(clippy::unwrap_used)]

#[path = "../../attestation-agent/tests/double/mod.rs"]
mod double;
mod guest;

use axum::Router;
use axum::http::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use guest::{Guest, KEK, OPTIONS, packet};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use wire::key_provider;
use wire::layer::AnnotationPacket;
use wire::resource::ResourceUri;
use wire::sealed_secret::{Envelope, KeyId, Payload, Provider, SealedSecret, SealingKey, Vault};

#[tokio::test]
async fn a_vault_and_an_envelope_of_the_key_broker_are_opened() {
    let guest = Guest::start("").await;
    let key = guest.signing_key("default/signing-key/1");
    guest.kbs.put("resource/default/key/secret", b"in the vault");
    guest.kbs.put("resource/default/key/kek", &KEK);
    let envelope = Envelope::for_key_broker(b"in the envelope", &KEK, &uri("kbs:///default/key/kek")).unwrap();

    for (payload, expected) in
        [(vault("kbs:///default/key/secret"), &b"in the vault"[..]), (Payload::Envelope(envelope), b"in the envelope")]
    {
        let sealed = seal(&payload, &key, "kbs:///default/signing-key/1");
        for text in [sealed.as_str(), sealed.strip_prefix("sealed.").unwrap(), &format!("sealed.{sealed}\n")] {
            assert_eq!(guest.unseal(text).await.unwrap(), expected);
        }
    }
}

#[tokio::test]
async fn what_is_not_the_owners_is_refused_with_its_cause() {
    let guest = Guest::start("").await;
    let key = guest.signing_key("default/signing-key/1");
    let forger = guest.signing_key("default/key/any");
    guest.kbs.put("resource/default/signing-key/broken", b"not a key");
    guest.kbs.deny("resource/default/signing-key/denied", 403);
    guest.kbs.put("resource/default/key/secret", b"secret");
    let payload = vault("kbs:///default/key/secret");
    let good = seal(&payload, &key, "kbs:///default/signing-key/1");
    let part = |n: usize| good.split('.').nth(n).unwrap();
    let header = |header: Value| format!("sealed.{}.{}.{}", encode(&header), part(2), part(3));

    for (text, reason) in [
        (seal(&payload, &forger, "kbs:///default/key/any"), "its key kbs:///default/key/any is no trust anchor"),
        (seal(&payload, &forger, "kbs:///default/signing-key/1"), "its signature is not of the key that it names"),
        (seal(&payload, &key, "kbs:///default/signing-key/none"), "verification key kbs:///default/signing-key/none: "),
        (seal(&payload, &key, "kbs:///default/signing-key/denied"), "PolicyDeny"),
        (seal(&payload, &key, "kbs:///default/signing-key/broken"), "the JWK can't be used"),
        (seal(&payload, &key, "absent-file"), "absent-file: "),
        (format!("sealed.{}.{}.{}", part(1), encode(&json!({})), part(3)), "its signature is not of the key"),
        (header(json!({"alg": "none", "kid": "kbs:///default/signing-key/1"})), "\"none\"; only ES256"),
        (header(json!({"alg": "HS256", "kid": "kbs:///default/signing-key/1"})), "\"HS256\"; only ES256"),
        (format!("sealed.{}.{}", part(1), part(2)), "a JWS of three parts"),
        (format!("sealed.x.{}.y", part(2)), "its header is not"),
        (seal(&vault("kbs:///default/key/none"), &key, "kbs:///default/signing-key/1"), "404"),
        (seal(&foreign("ehsm"), &key, "kbs:///default/signing-key/1"), "its provider is \"ehsm\"; next: use kbs"),
        (seal(&foreign("aws"), &key, "kbs:///default/signing-key/1"), "AWS: provider_settings"),
    ] {
        let (code, words) = guest.unseal(&text).await.unwrap_err();
        assert_eq!(code, "INTERNAL");
        assert!(words.starts_with("[CDH] [ERROR]: Unseal Secret failed: sealed secret: "), "{words}");
        assert!(words.contains(reason), "{words} has no {reason:?}");
    }
    assert!(guest.client().await.unseal(b"sealed.\xff").await.unwrap_err().1.contains("it is not text"));
}

#[tokio::test]
async fn only_listed_anchors_count_where_there_is_a_list() {
    let given = SealingKey::generate().unwrap();
    let jwk = String::from_utf8(given.public_jwk(Some("given"))).unwrap();
    let listed = format!("[sealed_secret]\ntrust_anchors = [\"kbs:///owner/key/seal\", \"my-file\", '{jwk}']\n");
    let guest = Guest::start(&listed).await;
    guest.kbs.put("resource/default/key/secret", b"secret");
    let payload = vault("kbs:///default/key/secret");
    let (named, unlisted) = (guest.signing_key("owner/key/seal"), guest.signing_key("default/signing-key/1"));
    let in_file = SealingKey::generate().unwrap();
    guest.file("sealed-secret/my-file", &in_file.public_jwk(None));
    guest.file("sealed-secret/other-file", &in_file.public_jwk(None));

    for (key, kid) in [(&named, "kbs:///owner/key/seal"), (&in_file, "my-file"), (&given, "given")] {
        assert_eq!(guest.unseal(&seal(&payload, key, kid)).await.unwrap(), b"secret", "{kid}");
    }
    for (key, kid) in [(&unlisted, "kbs:///default/signing-key/1"), (&in_file, "other-file"), (&named, "given")] {
        assert!(guest.unseal(&seal(&payload, key, kid)).await.is_err(), "{kid}");
    }
}

#[tokio::test]
async fn without_verification_the_third_of_four_parts_is_opened() {
    let guest = Guest::prepared("", |config| config.skip_sealed_secret_verification = true).await;
    guest.kbs.put("resource/default/key/secret", b"secret");
    let payload = encode(&serde_json::from_slice(&vault("kbs:///default/key/secret").to_json().unwrap()).unwrap());

    assert_eq!(guest.unseal(&format!("sealed.fakejwsheader.{payload}.fakesignature")).await.unwrap(), b"secret");
    for text in [format!("x.{payload}.y"), format!("sealed.sealed.x.{payload}.y"), "sealed.x.e30.y".to_owned()] {
        assert!(guest.unseal(&text).await.is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_service_of_a_cloud_decrypts_keys_and_keeps_secrets() {
    let service = cloud().await;
    let guest = Guest::prepared("", |config| config.places.kms_endpoint = Some(service)).await;
    let key = guest.signing_key("default/signing-key/1");
    let credential = br#"{"access_key_id":"AKID","secret_access_key":"s"}"#;
    guest.file("kbs/kms-credential/aws/credential.json", credential);
    let settings = json!({ "region": "eu-west-1" });
    let seal = |payload| seal(&payload, &key, "kbs:///default/signing-key/1");

    let mut envelope = Envelope::for_key_broker(b"in the envelope", &KEK, &uri("kbs:///a/b/c")).unwrap();
    // The cloud's way to wrap is its own; this one's is to add a byte.
    envelope.encrypted_key = [envelope.unwrap_key(&KEK).unwrap().as_slice(), b"!"].concat();
    envelope.provider = Provider::Aws;
    envelope.key_id = "alias/key".to_owned();
    envelope.provider_settings = settings.as_object().unwrap().clone();
    assert_eq!(guest.unseal(&seal(Payload::Envelope(envelope))).await.unwrap(), b"in the envelope");

    let mut vault = Vault::in_key_broker(&uri("kbs:///a/b/c"));
    (vault.provider, vault.name) = (Provider::Aws, "db".to_owned());
    vault.provider_settings = settings.as_object().unwrap().clone();
    assert_eq!(guest.unseal(&seal(Payload::Vault(vault))).await.unwrap(), b"secret of db");

    let mut layer: Value = serde_json::from_slice(&packet("kbs:///a/b/c").to_json().unwrap()).unwrap();
    layer["provider"] = "aws".into();
    layer["kid"] = "alias/key".into();
    layer["provider_settings"] = settings;
    layer["wrapped_data"] = STANDARD.encode([OPTIONS, b"!"].concat()).into();
    let output = guest.unwrap(&AnnotationPacket::parse(layer.to_string().as_bytes()).unwrap()).await.unwrap();
    assert_eq!(*key_provider::parse_unwrap_output(&output).unwrap(), OPTIONS);
}

impl Guest {
    /// A key whose public half is this resource.
    fn signing_key(&self, path: &str) -> SealingKey {
        let key = SealingKey::generate().unwrap();
        self.kbs.put(&format!("resource/{path}"), &key.public_jwk(None));
        key
    }
}

/// Stands for KMS and Secrets Manager: what is decrypted loses its last byte. Signatures are tested with their client.
async fn cloud() -> String {
    let answer = |headers: HeaderMap, body: axum::body::Bytes| async move {
        let request: Value = serde_json::from_slice(&body).unwrap();
        match headers["x-amz-target"].to_str().unwrap() {
            "TrentService.Decrypt" => {
                assert_eq!(request["KeyId"], "alias/key");
                let wrapped = STANDARD.decode(request["CiphertextBlob"].as_str().unwrap()).unwrap();
                json!({ "Plaintext": STANDARD.encode(wrapped.strip_suffix(b"!").unwrap()) }).to_string()
            }
            _ => json!({ "SecretString": format!("secret of {}", request["SecretId"].as_str().unwrap()) }).to_string(),
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(hyper_util::rt::TokioIo::new(stream), service),
            );
        }
    });
    url
}

fn vault(name: &str) -> Payload {
    Payload::Vault(Vault::in_key_broker(&uri(name)))
}

fn foreign(provider: &str) -> Payload {
    let mut vault = Vault::in_key_broker(&uri("kbs:///a/b/c"));
    vault.provider = Provider::named(provider);
    Payload::Vault(vault)
}

fn seal(payload: &Payload, key: &SealingKey, kid: &str) -> String {
    SealedSecret::seal(payload, key, &KeyId::parse(kid).unwrap()).unwrap()
}

fn encode(document: &Value) -> String {
    URL_SAFE_NO_PAD.encode(document.to_string())
}

fn uri(text: &str) -> ResourceUri {
    ResourceUri::parse(text).unwrap()
}
