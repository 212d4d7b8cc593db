//! Encrypted layers: the forms in which their keys come, and every part of them that somebody may change.

use super::*;
use wire::layer::PublicOptions;

fn archive() -> Vec<u8> {
    Archive::new().file("motd", b"hello").file("data", &b"some text that repeats itself, ".repeat(9000)).done()
}

/// The layers that a changed part could slip through: nothing but the digests notices it in the first.
fn layers() -> [Layer; 3] {
    [Layer::tar(&archive()), Layer::gzip(&archive()), Layer::zstd(&archive())]
}

async fn pull(layer: Layer) -> Result<String, (Stage, String)> {
    let registry = RegistryDouble::with(&[layer]).await;
    let guest = Guest::new(&registry);
    match guest.unpack(&registry).await {
        Ok(layers) => Ok(read(&layers[0].join("motd"))),
        Err(Error::Layer { stage, cause, .. }) => {
            assert_eq!(guest.layer_dirs(), 0, "{cause}");
            Err((stage, cause))
        }
        Err(other) => panic!("{other}"),
    }
}

/// Changes what the key encryption key protects, and wraps it again.
fn rewrap(layer: &mut Layer, change: impl FnOnce(&mut Value)) {
    let name = format!("{PROVIDER_ANNOTATION_PREFIX}attestation-agent");
    let packet = STANDARD.decode(layer.annotations[&name].as_str().unwrap()).unwrap();
    let options = AnnotationPacket::parse(&packet).unwrap().unwrap(&KEK).unwrap();
    let mut options: Value = serde_json::from_slice(&options).unwrap();
    change(&mut options);
    let kid = "kbs:///default/key/k1".parse().unwrap();
    let packet = AnnotationPacket::wrap(&KEK, &kid, options.to_string().as_bytes()).unwrap();
    layer.annotations[&name] = STANDARD.encode(packet.to_json().unwrap()).into();
}

/// Changes what lies beside the layer for everybody to read.
fn republish(layer: &mut Layer, change: impl FnOnce(&mut Value)) {
    let options = STANDARD.decode(layer.annotations[PUBLIC_OPTIONS_ANNOTATION].as_str().unwrap()).unwrap();
    let mut options: Value = serde_json::from_slice(&options).unwrap();
    change(&mut options);
    layer.annotations[PUBLIC_OPTIONS_ANNOTATION] = STANDARD.encode(options.to_string()).into();
}

fn middle(bytes: &mut [u8]) -> &mut u8 {
    let middle = bytes.len() / 2;
    &mut bytes[middle]
}

/// Flips one bit of a value in base64.
fn flip(value: &mut Value) {
    let mut bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
    bytes[0] ^= 1;
    *value = STANDARD.encode(bytes).into();
}

#[tokio::test]
async fn a_layer_with_any_part_changed_is_refused() {
    type Change = fn(&mut Layer);
    let changes: [(&str, Change, &[Stage]); 12] = [
        ("first byte", |layer| layer.blob[0] ^= 1, &[Stage::Decrypt]),
        ("middle byte", |layer| *middle(&mut layer.blob) ^= 0x80, &[Stage::Decrypt]),
        ("last byte", |layer| *layer.blob.last_mut().unwrap() ^= 1, &[Stage::Decrypt]),
        ("cut", |layer| layer.blob.truncate(layer.blob.len() - 1), &[Stage::Decrypt]),
        ("longer", |layer| layer.blob.push(0), &[Stage::Decrypt]),
        ("HMAC", |layer| republish(layer, |options| flip(&mut options["hmac"])), &[Stage::Decrypt]),
        ("no HMAC", |layer| republish(layer, |options| options["hmac"] = Value::Null), &[Stage::Key]),
        ("cipher", |layer| republish(layer, |options| options["cipher"] = "AES_256_GCM".into()), &[Stage::Key]),
        ("key", |layer| rewrap(layer, |options| flip(&mut options["symkey"])), &[Stage::Decrypt]),
        ("nonce", |layer| rewrap(layer, |options| flip(&mut options["cipheroptions"]["nonce"])), &[Stage::Decrypt]),
        // The HMAC does not cover the nonce, and nothing but the diff id covers the plaintext.
        (
            "nonce without a digest",
            |layer| {
                rewrap(layer, |options| {
                    flip(&mut options["cipheroptions"]["nonce"]);
                    options["digest"] = "".into();
                })
            },
            &[Stage::Inflate, Stage::Archive, Stage::DiffId],
        ),
        ("digest", |layer| rewrap(layer, |options| options["digest"] = sha256(b"other").into()), &[Stage::Decrypt]),
    ];
    for layer in layers() {
        for (name, change, expected) in &changes {
            let mut changed = layer.clone().encrypted(&KEK);
            change(&mut changed);
            let (stage, cause) = pull(changed).await.unwrap_err();
            assert!(expected.contains(&stage) && cause.contains("next: "), "{name}: {stage}: {cause}");
        }
    }
}

#[tokio::test]
async fn a_nonce_that_the_host_adds_changes_nothing() {
    for layer in layers() {
        let mut layer = layer.encrypted(&KEK);
        republish(&mut layer, |options| options["cipheroptions"] = json!({ "nonce": STANDARD.encode([1; 16]) }));
        assert_eq!(pull(layer).await.as_deref(), Ok("hello"));
    }
}

#[tokio::test]
async fn one_layers_key_opens_no_other_layer() {
    let other = Layer::gzip(&Archive::new().file("motd", b"other").done()).encrypted(&KEK);
    let layer = Layer::gzip(&archive()).encrypted(&KEK);
    let (stage, cause) = pull(Layer { annotations: other.annotations, ..layer }).await.unwrap_err();
    assert_eq!(stage, Stage::Decrypt, "{cause}");
}

#[tokio::test]
async fn keys_come_in_every_form_that_tools_write() {
    for layer in layers() {
        let plain = layer.encrypted(&KEK);
        let name = format!("{PROVIDER_ANNOTATION_PREFIX}attestation-agent");
        let packet = STANDARD.decode(plain.annotations[&name].as_str().unwrap()).unwrap();
        let packet: Value = serde_json::from_slice(&packet).unwrap();
        let encode = |packet: &Value| STANDARD.encode(packet.to_string());

        let mut version_1 = packet.clone();
        for member in ["version", "provider", "provider_settings", "annotations"] {
            version_1.as_object_mut().unwrap().remove(member);
        }
        assert_ne!(version_1, packet);
        let mut foreign = packet.clone();
        foreign["wrapped_data"] = STANDARD.encode([7; 64]).into();
        let mut unsigned = plain.clone();
        rewrap(&mut unsigned, |options| options["digest"] = "".into());
        for (form, annotations) in [
            ("version 2", json!({ &name: encode(&packet) })),
            ("version 1", json!({ &name: encode(&version_1) })),
            ("another provider's name", json!({ format!("{PROVIDER_ANNOTATION_PREFIX}mine"): encode(&packet) })),
            ("the second of two", json!({ &name: format!("{},{}", encode(&foreign), encode(&packet)) })),
            ("without the plaintext's digest", unsigned.annotations),
        ] {
            let mut layer = plain.clone();
            layer.annotations = annotations;
            layer.annotations[PUBLIC_OPTIONS_ANNOTATION] = plain.annotations[PUBLIC_OPTIONS_ANNOTATION].clone();
            assert_eq!(pull(layer).await.as_deref(), Ok("hello"), "{form}");
        }
    }
}

#[test]
fn these_changes_are_made_to_what_upstream_writes() {
    let layer = Layer::tar(&archive()).encrypted(&KEK);
    let annotation = layer.annotations[PUBLIC_OPTIONS_ANNOTATION].as_str().unwrap();
    assert!(PublicOptions::from_annotation(annotation).is_ok());
    let options: Value = serde_json::from_slice(&STANDARD.decode(annotation).unwrap()).unwrap();
    assert_eq!(options["cipher"], "AES_256_CTR_HMAC_SHA256");
}
