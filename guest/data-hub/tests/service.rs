//! The data hub's services over both protocols, with a key broker behind them.

#![allow(clippy::unwrap_used)]

#[path = "../../attestation-agent/tests/double/mod.rs"]
mod double;
mod guest;

use std::sync::Arc;

use data_hub::{CdhConfig, DataHub};
use double::KbsDouble;
use guest::{Guest, KEK, OPTIONS, agent, packet};
use wire::key_provider;
use wire::layer::{AnnotationPacket, PrivateOptions};
use wire::resource::ResourceUri;
use wire::sealed_secret::{KeyId, Payload, SealedSecret, SealingKey, Vault};

#[tokio::test]
async fn every_service_answers_alike_over_both_protocols() {
    let key = SealingKey::generate().unwrap();
    let kid = KeyId::parse("kbs:///default/signing-key/1").unwrap();
    let vault = Payload::Vault(Vault::in_key_broker(&ResourceUri::parse("kbs:///default/key/1").unwrap()));
    let sealed = SealedSecret::seal(&vault, &key, &kid).unwrap();
    let input = key_provider::unwrap_input(&packet("kbs:///default/key/kek")).unwrap();

    for guest in [Guest::start("").await, Guest::over_grpc("").await] {
        guest.kbs.put("resource/default/key/1", b"secret");
        guest.kbs.put("resource/default/key/kek", &KEK);
        guest.kbs.put("resource/default/signing-key/1", &key.public_jwk(None));
        let (client, place) = (guest.client().await, guest.folder.path().join("place"));

        assert_eq!(client.resource("kbs:///default/key/1").await.unwrap(), b"secret");
        assert_eq!(client.unseal(sealed.as_bytes()).await.unwrap(), b"secret");
        let options = client.unwrap(&input).await.unwrap();
        assert_eq!(*key_provider::parse_unwrap_output(&options).unwrap(), OPTIONS);

        let encrypted = [("sourceType", "encrypted"), ("targetType", "device"), ("devicePath", "/dev/null")];
        let keyed = [&encrypted[..], &[("key", "kbs:///default/key/none")]].concat();
        for (outcome, status, text) in [
            (client.resource("kbs:///a/b/c").await, "INTERNAL", "Get Resource failed: resource: GET "),
            (client.unseal(b"sealed.x").await, "INTERNAL", "Unseal Secret failed: sealed secret: it is not "),
            (client.unwrap(b"{}").await, "INTERNAL", "UnWrap Key failed: layer key: the key provider's input"),
            (client.wrap(&input).await, "UNIMPLEMENTED", "Wrap Key failed: images are encrypted outside"),
            (client.mount("zfs", &[], &place).await, "INTERNAL", "Secure Mount failed: volume request: "),
            (client.mount("block-device", &keyed, &place).await, "INTERNAL", "Secure Mount failed: the volume's key: "),
            (client.pull("NOT A REFERENCE", &place).await, "INTERNAL", "Image Pull error: image reference"),
        ] {
            let (found, words) = outcome.unwrap_err();
            assert_eq!(found, status, "{words}");
            assert!(words.starts_with(&format!("[CDH] [ERROR]: {text}")), "{words}");
        }
        assert_eq!(guest.kbs.handshakes(), 1);
    }
}

#[tokio::test]
async fn a_resource_is_fetched_and_each_failure_carries_its_cause() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", b"secret");
    guest.kbs.deny("resource/default/key/denied", 403);

    assert_eq!(guest.resource("kbs:///default/key/1").await.unwrap(), b"secret");

    for (name, reason) in [
        ("kbs:///default/key/denied", "PolicyDeny: the resource policy says no; next: "),
        ("kbs:///default/key/none", "answered 404"),
        ("kbs:///kbs:///default/key/1", "is not a resource URI"),
    ] {
        let (code, text) = guest.resource(name).await.unwrap_err();
        assert_eq!(code, "INTERNAL");
        assert!(text.starts_with("[CDH] [ERROR]: Get Resource failed: ") && text.contains(reason), "{text}");
    }
    assert_eq!(guest.kbs.handshakes(), 1);
}

#[tokio::test]
async fn a_layers_key_of_version_1_is_unwrapped_as_well() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", &KEK);
    let mut json: serde_json::Value =
        serde_json::from_slice(&packet("kbs:///default/key/1").to_json().unwrap()).unwrap();
    let members = json.as_object_mut().unwrap();
    members.retain(|name, _| ["kid", "wrapped_data", "iv", "wrap_type"].contains(&name.as_str()));

    let output = guest.unwrap(&AnnotationPacket::parse(json.to_string().as_bytes()).unwrap()).await.unwrap();

    assert_eq!(*key_provider::parse_unwrap_output(&output).unwrap(), OPTIONS);
}

#[tokio::test]
async fn a_layers_key_that_can_not_be_had_says_why() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/other", &[9; 32]);
    guest.kbs.put("resource/default/key/short", &KEK[1..]);
    guest.kbs.deny("resource/default/key/denied", 403);
    for (kid, reason) in [
        ("kbs:///default/key/other", "another key encryption key"),
        ("kbs:///default/key/short", "not 32 bytes"),
        ("kbs:///default/key/denied", "PolicyDeny"),
        ("kbs:///default/key/none", "404"),
    ] {
        let (code, text) = guest.unwrap(&packet(kid)).await.unwrap_err();
        assert_eq!(code, "INTERNAL");
        assert!(text.starts_with(&format!("[CDH] [ERROR]: UnWrap Key failed: {kid}: ")), "{text}");
        assert!(text.contains(reason), "{text}");
    }

    for (provider, reason) in [
        ("ehsm", "its provider is \"ehsm\"; only kbs, aliyun and aws are supported; next: "),
        ("AWS", "AWS: provider_settings: missing field `region`"),
        ("aliyun", "Alibaba Cloud KMS: provider_settings: missing field `client_type`"),
    ] {
        let mut json: serde_json::Value =
            serde_json::from_slice(&packet("kbs:///default/key/1").to_json().unwrap()).unwrap();
        json["provider"] = provider.into();
        let packet = AnnotationPacket::parse(json.to_string().as_bytes()).unwrap();
        let (_, text) = guest.unwrap(&packet).await.unwrap_err();
        assert!(text.contains(reason), "{text}");
    }
}

#[tokio::test]
async fn upstreams_own_annotation_is_opened() {
    let Ok(annotation) = std::fs::read("../../../shared/vectors/ocicrypt/sample_kbc_annotation.json") else {
        eprintln!("skipped: shared/vectors is absent");
        return;
    };
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", &SAMPLE_KEY);

    let output = guest.unwrap(&AnnotationPacket::parse(&annotation).unwrap()).await.unwrap();

    let options = PrivateOptions::parse(&key_provider::parse_unwrap_output(&output).unwrap()).unwrap();
    assert!(options.digest().starts_with("sha256:18be1897f9402f27"), "{options:?}");
}

#[tokio::test]
async fn accounts_for_registries_are_fetched_before_the_first_pull() {
    let guest = Guest::start("authenticated_registry_credentials_uri = \"kbs:///default/credential/registry\"").await;
    let error = guest.hub.resolve_image("NOT A REFERENCE").await.unwrap_err().to_string();
    let expected = "image configuration: authenticated_registry_credentials_uri (kbs:///default/credential/registry): ";
    assert!(error.starts_with(expected) && error.contains("404"), "{error}");

    guest.kbs.put("resource/default/credential/registry", br#"{"auths":{}}"#);
    let error = guest.hub.resolve_image("NOT A REFERENCE").await.unwrap_err().to_string();
    assert!(error.starts_with("image reference"), "{error}");
}

#[tokio::test]
async fn another_broker_that_trusts_the_tokens_can_hold_the_resources() {
    let issuer = KbsDouble::start().await;
    let holder = KbsDouble::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "[kbc]\nname = \"cc_kbc\"\nurl = \"{}\"\n[image]\nwork_dir = \"{}\"\n",
        holder.url(),
        folder.path().display()
    );
    let hub = DataHub::new(CdhConfig::parse(&config).unwrap(), agent(&issuer)).unwrap();

    let error = hub.get_resource(&ResourceUri::parse("kbs:///default/key/1").unwrap()).await.unwrap_err();

    // The double trusts its own tokens alone: what counts is who was asked, and for which token.
    assert!(error.is_refused() && error.to_string().contains(&holder.url()), "{error}");
    assert_eq!((issuer.handshakes(), holder.handshakes()), (3, 0));
}

#[tokio::test]
async fn images_are_resolved_and_released_from_any_task() {
    let guest = Guest::start("").await;
    let (hub, bundle) = (Arc::clone(&guest.hub), guest.folder.path().join("bundle"));
    let task = tokio::spawn(async move {
        assert!(hub.resolve_image("NOT A REFERENCE").await.is_err());
        hub.release_image(&bundle).await
    });
    task.await.unwrap().unwrap();
}

/// What upstream's sample annotation is wrapped with, known to everybody.
const SAMPLE_KEY: [u8; 32] = [
    217, 155, 119, 5, 176, 186, 122, 22, 130, 149, 179, 163, 54, 114, 112, 176, 221, 155, 55, 27, 245, 20, 202, 139,
    155, 167, 240, 163, 55, 17, 218, 234,
];
