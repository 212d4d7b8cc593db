//! What is sealed opens, and what is not what it should be is refused with its cause.

use super::*;
use proptest::prelude::*;
use serde_json::json;

#[test]
fn a_vault_is_sealed_and_verified() {
    let key = SealingKey::generate().unwrap();
    let payload = Payload::Vault(Vault::in_key_broker(&uri("kbs:///one/2/trois")));

    let text = SealedSecret::seal(&payload, &key, &kid()).unwrap();

    assert!(text.starts_with("sealed.") && text.split('.').count() == 4, "{text}");
    for text in [text.as_str(), &text["sealed.".len()..], &format!("sealed.{text}\n")] {
        let sealed = SealedSecret::parse(text).unwrap();
        assert_eq!(sealed.kid(), &kid());
        assert_eq!(sealed.verify(&public(&key)).unwrap(), payload);
    }
    assert_eq!(Payload::parse_unverified(&text).unwrap(), payload);
}

#[test]
fn a_changed_or_foreign_secret_is_refused() {
    let (key, other) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
    let seal = |name: &str, key: &SealingKey| {
        SealedSecret::seal(&Payload::Vault(Vault::in_key_broker(&uri(name))), key, &kid()).unwrap()
    };
    let (meant, swapped) = (seal("kbs:///a/b/c", &key), seal("kbs:///a/b/d", &key));
    let part = |text: &str, n: usize| text.split('.').nth(n).unwrap().to_owned();
    let spliced = format!("{}.{}.{}", part(&meant, 1), part(&swapped, 2), part(&meant, 3));

    assert_eq!(SealedSecret::parse(&spliced).unwrap().verify(&public(&key)), Err(Error::Forged));
    assert_eq!(SealedSecret::parse(&seal("kbs:///a/b/c", &other)).unwrap().verify(&public(&key)), Err(Error::Forged));
    let zeros = format!("{}.{}.{}", part(&meant, 1), part(&meant, 2), encoding::to_url(&[0; 64]));
    assert_eq!(SealedSecret::parse(&zeros).unwrap().verify(&public(&key)), Err(Error::Forged));
}

#[test]
fn every_wrong_text_has_its_own_cause() {
    let good = json!({"alg": "ES256", "kid": "kbs:///a/b/c"});
    let signature = encoding::to_url(&[1; 64]);
    let text = |header: &serde_json::Value| format!("sealed.{}.e30.{signature}", part(header));
    let algorithm = |name: &str| Error::Algorithm(name.to_owned());
    for (text, error) in [
        (String::new(), Error::Parts),
        ("sealed.".to_owned(), Error::Parts),
        ("sealed.a.b".to_owned(), Error::Parts),
        ("sealed.a.b.c.d".to_owned(), Error::Parts),
        ("sealed.*.b.c".to_owned(), Error::Header),
        (text(&json!([])), Error::Header),
        (text(&json!({"kid": "x"})), Error::Header),
        (text(&json!({"alg": "none", "kid": "x"})), algorithm("none")),
        (text(&json!({"alg": "HS256", "kid": "x"})), algorithm("HS256")),
        (text(&json!({"alg": "es256", "kid": "x"})), algorithm("es256")),
        (text(&json!({"alg": "ES384", "kid": "x"})), algorithm("ES384")),
        (text(&json!({"alg": "RS256\u{1b}", "kid": "x"})), algorithm("RS256\\u{1b}")),
        (text(&json!({"alg": "ES256"})), Error::NoKeyId),
        (text(&json!({"alg": "ES256", "kid": "x", "crit": ["b64"], "b64": false})), Error::Critical),
        (text(&json!({"alg": "ES256", "kid": "../x"})), Error::KeyId("../x".to_owned())),
        (text(&json!({"alg": "ES256", "kid": "https://x/y"})), Error::KeyId("https://x/y".to_owned())),
        (format!("sealed.{}.e30.{}", part(&good), encoding::to_url(&[1; 63])), Error::Signature),
        (format!("sealed.{}.e30.", part(&good)), Error::Signature),
        ("a".repeat(MAX_TEXT + 1), Error::TooLarge),
    ] {
        assert_eq!(SealedSecret::parse(&text).unwrap_err(), error, "{}", &text[..text.len().min(200)]);
    }
    let twice = encoding::to_url(br#"{"alg":"none","alg":"ES256","kid":"x"}"#);
    assert_eq!(SealedSecret::parse(&format!("{twice}.e30.{signature}")).unwrap_err(), Error::Header);
}

#[test]
fn without_verification_there_are_four_parts_and_the_third_counts() {
    let payload = part(&vault());
    for text in [format!("sealed.fakejwsheader.{payload}.fakesignature"), format!("sealed..{payload}.")] {
        assert!(matches!(Payload::parse_unverified(&text).unwrap(), Payload::Vault(_)), "{text}");
    }
    for text in [
        format!("fakejwsheader.{payload}.fakesignature"),
        format!("sealed.sealed.x.{payload}.y"),
        format!("Sealed.x.{payload}.y"),
        format!("sealed.x.{payload}"),
    ] {
        assert_eq!(Payload::parse_unverified(&text).unwrap_err(), Error::UnverifiedParts, "{text}");
    }
}

#[test]
fn a_payload_is_checked_member_by_member() {
    let change = |mut document: serde_json::Value, member: &str, value: serde_json::Value| {
        document[member] = value;
        document
    };
    for (document, error) in [
        (change(vault(), "version", json!("0.2.0")), Error::Version("0.2.0".to_owned())),
        (change(vault(), "type", json!("safe")), Error::Type("safe".to_owned())),
        (change(envelope(), "wrap_type", json!("A128GCM")), Error::WrapType("A128GCM".to_owned())),
        (change(envelope(), "iv", json!("AAAA")), Error::Iv { wrap_type: "A256GCM", expected: 12, found: 3 }),
        (
            change(envelope(), "wrap_type", json!("A256CTR")),
            Error::Iv { wrap_type: "A256CTR", expected: 16, found: 12 },
        ),
        (change(envelope(), "encrypted_key", json!("y")), Error::Encoding("encrypted_key")),
        (change(envelope(), "encrypted_data", json!("*")), Error::Encoding("encrypted_data")),
    ] {
        assert_eq!(Payload::parse(document.to_string().as_bytes()).unwrap_err(), error, "{document}");
    }
    for (document, reason) in [
        (json!([]), "expected"),
        (json!({"type": "vault"}), "version"),
        (change(vault(), "name", json!(7)), "invalid type"),
        (json!({"version": "0.1.0", "type": "vault", "name": "x"}), "provider"),
        (json!({"version": "0.1.0", "type": "envelope", "provider": "kbs"}), "key_id"),
    ] {
        let error = Payload::parse(document.to_string().as_bytes()).unwrap_err();
        assert!(matches!(&error, Error::Payload(cause) if cause.contains(reason)), "{error}");
    }
    let bare = json!({"version": "0.1.0", "type": "vault", "name": "kbs:///a/b/c", "provider": "KBS", "more": 1});
    let parsed = Payload::parse(bare.to_string().as_bytes()).unwrap();
    assert_eq!(parsed, Payload::Vault(Vault::in_key_broker(&uri("kbs:///a/b/c"))));
}

#[test]
fn providers_are_known_in_any_case() {
    for (name, provider) in [
        ("kbs", Provider::Kbs),
        ("Aliyun", Provider::Aliyun),
        ("AWS", Provider::Aws),
        ("eHSM", Provider::Other("ehsm".to_owned())),
    ] {
        assert_eq!(Provider::named(name), provider);
        assert_eq!(Provider::named(&provider.to_string()), provider);
    }
}

#[test]
fn an_envelope_opens_with_its_key_alone() {
    let kek = [7; 32];
    let envelope = Envelope::for_key_broker(b"the secret", &kek, &uri("kbs:///a/key/1")).unwrap();
    let Payload::Envelope(read) = Payload::parse(&Payload::Envelope(envelope.clone()).to_json().unwrap()).unwrap()
    else {
        panic!("an envelope became something else")
    };
    assert_eq!(read, envelope);

    let data_key = read.unwrap_key(&kek).unwrap();
    assert_eq!(*read.open(&data_key).unwrap(), b"the secret");

    assert_eq!(read.unwrap_key(&[8; 32]).unwrap_err(), Error::Unwrap);
    assert_eq!(read.unwrap_key(&kek[1..]).unwrap_err(), Error::Kek);
    assert_eq!(read.open(&[8; 32]).unwrap_err(), Error::Decrypt);
    assert_eq!(read.open(&[8; 16]).unwrap_err(), Error::DataKey);
    let mut changed = read.clone();
    changed.encrypted_data[0] ^= 1;
    assert_eq!(changed.open(&data_key).unwrap_err(), Error::Decrypt);
    let nonceless = Envelope { annotations: serde_json::Map::new(), ..read };
    assert_eq!(nonceless.unwrap_key(&kek).unwrap_err(), Error::KeyIv);
}

#[test]
fn counter_mode_is_read() {
    // NIST SP 800-38A, F.5.5, CTR-AES256: the first block.
    let hex = |text: &str| hex::decode(text).unwrap();
    let document = json!({
        "version": "0.1.0", "type": "envelope", "provider": "aliyun", "key_id": "k", "encrypted_key": "",
        "encrypted_data": encoding::to_standard(&hex("601ec313775789a5b7a7f504bbf3d228")),
        "wrap_type": "A256CTR", "iv": encoding::to_standard(&hex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")),
    });
    let Payload::Envelope(envelope) = Payload::parse(document.to_string().as_bytes()).unwrap() else {
        panic!("an envelope became something else")
    };

    let secret = envelope.open(&hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")).unwrap();

    assert_eq!(*secret, hex("6bc1bee22e409f96e93d7e117393172a"));
}

#[test]
fn a_key_travels_as_a_jwk_and_unfit_ones_are_refused() {
    let key = SealingKey::generate().unwrap();
    let again = SealingKey::parse(&key.to_jwk(Some("k")).unwrap()).unwrap();
    assert_eq!(again.public_jwk(None), key.public_jwk(None));
    let jwk: serde_json::Value = serde_json::from_slice(&key.public_jwk(Some("k"))).unwrap();
    assert_eq!((&jwk["kty"], &jwk["kid"], jwk.get("d")), (&json!("EC"), &json!("k"), None));

    let other: serde_json::Value = serde_json::from_slice(&SealingKey::generate().unwrap().public_jwk(None)).unwrap();
    for (member, value, reason) in [
        ("kty", json!("oct"), "not a key on P-256"),
        ("crv", json!("P-384"), "not a key on P-256"),
        ("alg", json!("ECDH-ES"), "alg"),
        ("use", json!("enc"), "use"),
        ("x", json!(null), "no x"),
        ("x", other["y"].clone(), "not a point"),
        ("y", json!("AAAA"), "32 bytes"),
        ("y", json!("*"), "32 bytes"),
    ] {
        let mut changed = jwk.clone();
        changed[member] = value;
        let error = VerifyingKey::parse(changed.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{member}: {error}");
    }
    assert_eq!(SealingKey::parse(&key.public_jwk(None)).unwrap_err(), Error::Jwk("it has no private half (d)"));
    let mut foreign: serde_json::Value = serde_json::from_slice(&key.to_jwk(None).unwrap()).unwrap();
    foreign["x"] = other["x"].clone();
    foreign["y"] = other["y"].clone();
    assert!(SealingKey::parse(foreign.to_string().as_bytes()).is_err());
    assert_eq!(format!("{key:?}"), "SealingKey { .. }");
}

#[test]
fn a_key_is_named_by_a_resource_or_a_plain_file_name() {
    for kid in ["kbs:///default/signing-key/1", "kbs+x:///a/b", "my-key.jwk", "K_1"] {
        assert_eq!(KeyId::parse(kid).unwrap().to_string(), kid);
    }
    let long = "a".repeat(256);
    for kid in ["", ".", "..", ".hidden", "a/b", "../a", "/etc/passwd", "a b", "a\0", "kbs://", "file:///a", &long] {
        assert!(KeyId::parse(kid).is_err(), "{kid:?} passed");
    }
}

#[test]
fn upstreams_own_keys_and_payloads_are_read() {
    let Ok(folder) = std::path::Path::new("../../../shared/vectors/sealed-secret").canonicalize() else {
        eprintln!("skipped: shared/vectors is absent");
        return;
    };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    for name in ["test-key.json", "test-key-2.json"] {
        let key = SealingKey::parse(&read(name)).unwrap();
        let payload = Payload::parse(&read("vault-2.json")).unwrap();
        let text = SealedSecret::seal(&payload, &key, &kid()).unwrap();
        // As upstream stores it: the file with both halves.
        let verified = SealedSecret::parse(&text).unwrap().verify(&VerifyingKey::parse(&read(name)).unwrap()).unwrap();
        assert_eq!(verified, Payload::Vault(Vault::in_key_broker(&uri("kbs:///one/2/trois"))));
    }
    assert!(
        matches!(Payload::parse(&read("vault-1.json")).unwrap(), Payload::Vault(v) if v.provider == Provider::Aliyun)
    );
    // Its members hold placeholders, which are not what they should be.
    let mut envelope: serde_json::Value = serde_json::from_slice(&read("envelope-1.json")).unwrap();
    assert_eq!(Payload::parse(envelope.to_string().as_bytes()).unwrap_err(), Error::Encoding("iv"));
    envelope["iv"] = json!("AAAAAAAAAAAAAAAA");
    for member in ["encrypted_key", "encrypted_data"] {
        assert_eq!(Payload::parse(envelope.to_string().as_bytes()).unwrap_err(), Error::Encoding(member));
        envelope[member] = json!("AAAA");
    }
    assert!(
        matches!(Payload::parse(envelope.to_string().as_bytes()).unwrap(), Payload::Envelope(e) if e.key_id == "xxx")
    );
}

proptest! {
    #[test]
    fn any_secret_survives_sealing(secret in proptest::collection::vec(any::<u8>(), 0..500)) {
        let (key, kek) = (SealingKey::generate().unwrap(), [3; 32]);
        let envelope = Envelope::for_key_broker(&secret, &kek, &uri("kbs:///a/b/c")).unwrap();
        let text = SealedSecret::seal(&Payload::Envelope(envelope), &key, &kid()).unwrap();
        let Payload::Envelope(envelope) = SealedSecret::parse(&text).unwrap().verify(&public(&key)).unwrap() else {
            panic!("an envelope became something else")
        };
        prop_assert_eq!(&*envelope.open(&envelope.unwrap_key(&kek).unwrap()).unwrap(), &secret);
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        let _ = SealedSecret::parse(&text);
        let _ = Payload::parse_unverified(&text);
        let _ = Payload::parse_unverified(&format!("sealed.x.{}.y", encoding::to_url(text.as_bytes())));
        let _ = Payload::parse(text.as_bytes());
        let _ = SealingKey::parse(text.as_bytes());
        let _ = VerifyingKey::parse(text.as_bytes());
        let _ = KeyId::parse(&text);
    }
}

fn vault() -> serde_json::Value {
    json!({
        "version": "0.1.0", "type": "vault", "name": "kbs:///one/2/trois", "provider": "kbs",
        "provider_settings": {}, "annotations": {},
    })
}

fn envelope() -> serde_json::Value {
    json!({
        "version": "0.1.0", "type": "envelope", "key_id": "k", "encrypted_key": "AAAA", "encrypted_data": "AAAA",
        "wrap_type": "A256GCM", "iv": "AAAAAAAAAAAAAAAA", "provider": "aliyun", "provider_settings": {},
        "annotations": {},
    })
}

fn part(document: &serde_json::Value) -> String {
    encoding::to_url(document.to_string().as_bytes())
}

fn public(key: &SealingKey) -> VerifyingKey {
    VerifyingKey::parse(&key.public_jwk(None)).unwrap()
}

fn kid() -> KeyId {
    KeyId::parse("kbs:///default/signing-key/1").unwrap()
}

fn uri(text: &str) -> ResourceUri {
    ResourceUri::parse(text).unwrap()
}
