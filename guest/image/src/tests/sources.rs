//! Where images come from: mirrors, accounts, proxies, and what a registry may ask for.

use aws_lc_rs::digest::{SHA512, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};

use super::proxy_double::ProxyDouble;
use super::registry_double::Fault;
use super::*;

fn layer() -> Layer {
    Layer::tar(&Archive::new().file("etc-motd", b"hello").file("data", &vec![7; 200_000]).done())
}

/// An image at a registry that exists in the configuration alone, with these places to find it.
fn remapped(document: &str) -> impl FnOnce(&mut ImageConfig, &Path) + use<> {
    let document = RegistryConfig::parse(document).unwrap();
    |config, _| config.registry_config = Some(document)
}

async fn unpack(guest: &Guest, image: &str) -> Result<String, String> {
    let resolved = guest.puller.resolve(image).await.map_err(|e| e.to_string())?;
    let bundle = guest.bundle("bundle");
    let unpacked = guest.puller.unpack(&resolved, &bundle).await.map_err(|e| e.to_string())?;
    let text = read(&unpacked.layers[0].join("etc-motd"));
    guest.puller.release(&bundle).await.unwrap();
    Ok(text)
}

fn blobs(registry: &RegistryDouble) -> usize {
    registry.requests().iter().filter(|line| line.contains("/blobs/")).count()
}

#[tokio::test]
async fn a_mirror_that_fails_is_passed_over_and_every_attempt_is_told() {
    let (empty, full) = (RegistryDouble::with(&[]).await, RegistryDouble::with(&[layer()]).await);
    let document = format!(
        "[[registry]]\nprefix = \"origin.test/team\"\nlocation = \"{}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"127.0.0.1:1\"\n\
         [[registry.mirror]]\nlocation = \"{}/none\"\ninsecure = true\n",
        full.host(),
        empty.host(),
    );
    let guest = Guest::with(&full, remapped(&document));

    assert_eq!(unpack(&guest, "origin.test/team/app:v1").await.unwrap(), "hello");
    let error = guest.puller.resolve("origin.test/team/app:v2").await.unwrap_err().to_string();

    assert!(error.starts_with("image origin.test/team/app:v2: manifest: no source has it: (1) 127.0.0.1:1/app:v2: "));
    assert!(error.contains(&format!("(2) {}/none/app:v2: registry {} does not have", empty.host(), empty.host())));
    assert!(error.contains(&format!("(3) {}/app:v2: registry {} does not have", full.host(), full.host())), "{error}");
    // A registry that said no is not asked again while another one may still come back.
    assert_eq!(full.requests().iter().filter(|line| line.contains("/v2/app/manifests/v2")).count(), 1);
}

#[tokio::test]
async fn a_blob_goes_on_at_the_next_mirror() {
    let (mirror, origin) = (RegistryDouble::with(&[layer()]).await, RegistryDouble::with(&[layer()]).await);
    let mirror = mirror.with_fault(Fault::Cut { answers: 99, after: 60_000 });
    let document = format!(
        "[[registry]]\nprefix = \"origin.test\"\nlocation = \"{}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        origin.host(),
        mirror.host(),
    );
    let guest = Guest::with(&origin, remapped(&document));

    assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello");

    assert_eq!(origin.ranges(), ["bytes=60000-"]);
}

/// `origin.test` at `origin`, behind these mirrors.
fn behind(mirrors: &[&RegistryDouble], origin: &RegistryDouble) -> impl FnOnce(&mut ImageConfig, &Path) + use<> {
    let place = |registry: &RegistryDouble| format!("location = \"{}\"\ninsecure = true\n", registry.host());
    let mirrors: String = mirrors.iter().map(|mirror| format!("[[registry.mirror]]\n{}", place(mirror))).collect();
    remapped(&format!("[[registry]]\nprefix = \"origin.test\"\n{}{mirrors}", place(origin)))
}

#[tokio::test]
async fn a_layer_with_wrong_bytes_is_taken_from_the_next_source() {
    let origin = RegistryDouble::with(&[layer()]).await;
    for fault in [Fault::LastByte, Fault::Surplus] {
        let mirror = RegistryDouble::with(&[layer()]).await.with_fault(fault.clone());
        let guest = Guest::with(&origin, behind(&[&mirror], &origin));
        let seen = blobs(&origin);

        assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello", "{fault:?}");

        // The layer, the whole of it; the configuration came from the mirror. Nobody asks the mirror again.
        assert_eq!((blobs(&origin) - seen, blobs(&mirror)), (1, 2), "{fault:?}");
        assert_eq!(guest.layer_dirs(), 0);
    }
    assert!(origin.ranges().is_empty(), "{:?}", origin.ranges());
}

#[tokio::test]
async fn a_bomb_that_a_mirror_delivers_instead_is_no_reason_to_refuse_the_layer() {
    let layer = Layer::zstd(&Archive::new().file("etc-motd", b"hello").file("data", &noise(200_000)).done());
    let mut bomb = Layer::bomb().blob;
    assert!(bomb.len() < layer.blob.len());
    bomb.resize(layer.blob.len(), 0);
    let registry = async || RegistryDouble::with(std::slice::from_ref(&layer)).await;
    let (mirror, origin) = (registry().await.with_fault(Fault::Instead(bomb)), registry().await);
    let guest = Guest::with(&origin, behind(&[&mirror], &origin));
    assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello");
}

#[tokio::test]
async fn an_encrypted_layer_with_wrong_bytes_is_taken_from_there_too() {
    let encrypted = layer().encrypted(&KEK);
    let registry = async || RegistryDouble::with(std::slice::from_ref(&encrypted)).await;
    let (mirror, origin) = (registry().await.with_fault(Fault::LastByte), registry().await);
    let guest = Guest::with(&origin, behind(&[&mirror], &origin));
    assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello");
}

#[tokio::test]
async fn what_several_sources_made_up_together_is_taken_from_each_alone() {
    let registry = async || RegistryDouble::with(&[layer()]).await;
    // The first delivers a part and breaks, the second goes on with wrong bytes; nobody knows whose were wrong.
    let first = registry().await.with_fault(Fault::Cut { answers: 1, after: 60_000 });
    let second = registry().await.with_fault(Fault::LastByte);
    let origin = registry().await;
    let guest = Guest::with(&origin, behind(&[&first, &second], &origin));

    assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello");

    assert_eq!((second.ranges(), origin.requests().len()), (vec!["bytes=60000-".to_owned()], 0));
}

#[tokio::test]
async fn if_every_source_has_wrong_bytes_each_is_told() {
    let registry = async || RegistryDouble::with(&[layer()]).await;
    let first = registry().await.with_fault(Fault::LastByte);
    let second = registry().await.with_fault(Fault::Surplus);
    let origin = registry().await.with_fault(Fault::LastByte);
    let guest = Guest::with(&origin, behind(&[&first, &second], &origin));

    let error = unpack(&guest, "origin.test/app:v1").await.unwrap_err();

    assert!(error.contains("layer 0 (sha256:") && error.contains("): digest: no source has it: "), "{error}");
    for (number, registry, cause) in
        [(1, &first, "sent other bytes"), (2, &second, "sends more than"), (3, &origin, "sent other bytes")]
    {
        let host = registry.host();
        assert!(error.contains(&format!("({number}) {host}/app:v1: registry {host} {cause}")), "{error}");
    }
    assert_eq!(guest.layer_dirs(), 0);
}

#[tokio::test]
async fn a_mirror_with_other_bytes_for_a_digest_is_passed_over() {
    let (mirror, origin) = (RegistryDouble::with(&[layer()]).await, RegistryDouble::with(&[layer()]).await);
    let guest = Guest::new(&origin);
    let digest = guest.puller.resolve(&origin.reference()).await.unwrap().digest;
    mirror.put(&format!("/v2/app/manifests/{digest}"), "application/vnd.oci.image.manifest.v1+json", b"{}");
    let document = format!(
        "[[registry]]\nprefix = \"origin.test\"\nlocation = \"{}\"\ninsecure = true\nmirror-by-digest-only = true\n\
         [[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        origin.host(),
        mirror.host(),
    );
    let guest = Guest::with(&origin, remapped(&document));

    let pinned = format!("origin.test/app:other@{digest}");
    assert_eq!(unpack(&guest, &pinned).await.unwrap(), "hello");

    assert!(mirror.requests().iter().any(|line| line.contains(&digest)), "{:?}", mirror.requests());
    let seen = mirror.requests().len();
    assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello");
    assert_eq!(mirror.requests().len(), seen);
}

#[tokio::test]
async fn a_blocked_registry_is_not_asked() {
    let registry = RegistryDouble::with(&[layer()]).await;
    let document = format!("[[registry]]\nlocation = \"{}\"\nblocked = true\n", registry.host());
    let guest = Guest::with(&registry, remapped(&document));

    let error = unpack(&guest, &registry.reference()).await.unwrap_err();

    assert!(error.contains("is blocked; next: "), "{error}");
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn an_insecure_registry_may_have_any_certificate_and_no_other_may() {
    let registry = RegistryDouble::with_tls(&[layer()]).await;
    let insecure = Guest::new(&registry);
    let secure = Guest::with(&registry, |config, _| config.registry_config = None);
    let trusted = Guest::with(&registry, |config, _| {
        config.registry_config = None;
        config.extra_root_certificates = vec![registry.authority.clone()];
    });

    assert_eq!(unpack(&insecure, &registry.reference()).await.unwrap(), "hello");
    assert_eq!(unpack(&trusted, &registry.reference()).await.unwrap(), "hello");
    let error = unpack(&secure, &registry.reference()).await.unwrap_err();
    assert!(error.contains("can't be trusted: ") && error.contains("extra_root_certificates"), "{error}");
}

#[tokio::test]
async fn a_stream_goes_on_from_wherever_it_broke() {
    let length = layer().blob.len();
    for after in [0, 1, 511, 512, 513, length / 2, length - 1] {
        for ranges in [true, false] {
            let mut registry = RegistryDouble::with(&[layer()]).await.with_fault(Fault::Cut { answers: 2, after });
            if !ranges {
                registry = registry.with_fault(Fault::NoRanges);
            }
            assert_eq!(
                unpack(&Guest::new(&registry), &registry.reference()).await.unwrap(),
                "hello",
                "{after} {ranges}"
            );
        }
    }
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_but_not_for_ever() {
    for (answers, header, expected) in [
        (2, "Retry-After: 3600\r\n", None),
        (4, "", None),
        (99, "Retry-After: 1\r\n", Some("is busy: 429 Too Many Requests; next: try again later")),
    ] {
        let registry = RegistryDouble::with(&[layer()]).await.with_fault(Fault::Busy { answers, header });
        let outcome = unpack(&Guest::new(&registry), &registry.reference()).await;
        match expected {
            None => assert_eq!(outcome.unwrap(), "hello"),
            Some(expected) => {
                let error = outcome.unwrap_err();
                assert!(error.contains(expected), "{error}");
                assert_eq!(registry.requests().len(), 5);
            }
        }
    }
}

/// Accounts in a file, as the configuration names it.
fn accounts(document: Value) -> impl FnOnce(&mut ImageConfig, &Path) {
    move |config, folder| {
        std::fs::write(folder.join("auth.json"), document.to_string()).unwrap();
        config.authenticated_registry_credentials_uri = Some(format!("file://{}/auth.json", folder.display()));
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_goes_nowhere_else() {
    let elsewhere = RegistryDouble::with(&[]).await;
    for (fault, expected) in [
        (Fault::Token, Ok("hello".to_owned())),
        (Fault::TokenElsewhere(format!("http://{}", elsewhere.host())), Err("leads elsewhere")),
    ] {
        let registry = RegistryDouble::with(&[layer()]).await.with_fault(fault);
        let account = json!({ "auths": { registry.host(): { "identitytoken": "a+b&c=d" } } });
        let guest = Guest::with(&registry, accounts(account));

        match (unpack(&guest, &registry.reference()).await, expected) {
            (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
            (Err(actual), Err(expected)) => assert!(actual.contains(expected) && !actual.contains("a+b"), "{actual}"),
            (actual, _) => panic!("{actual:?}"),
        }

        let form = "grant_type=refresh_token&service=s&client_id=cocoon&scope=repository%3Aapp%3Apull\
                    &refresh_token=a%2Bb%26c%3Dd";
        assert_eq!(registry.forms(), [form]);
    }
    assert!(elsewhere.requests().is_empty() && elsewhere.forms().is_empty());
}

#[tokio::test]
async fn accounts_are_read_anew_for_each_pull() {
    let registry = RegistryDouble::with(&[layer()]).await.with_fault(Fault::Login("me:new".to_owned()));
    let account = |login: &str| json!({ "auths": { registry.host(): { "auth": STANDARD.encode(login) } } });
    let guest = Guest::with(&registry, accounts(account("me:old")));

    let error = unpack(&guest, &registry.reference()).await.unwrap_err();
    assert!(error.contains("denies access: 401") && !error.contains("old"), "{error}");

    std::fs::write(guest.folder.path().join("auth.json"), account("me:new").to_string()).unwrap();
    assert_eq!(unpack(&guest, &registry.reference()).await.unwrap(), "hello");

    std::fs::write(guest.folder.path().join("auth.json"), "{ \"auths\": { \"r\": { \"auth\": \"new\" } } }").unwrap();
    let error = unpack(&guest, &registry.reference()).await.unwrap_err();
    assert!(error.starts_with("image configuration: authenticated_registry_credentials_uri (/"), "{error}");
    assert!(error.contains("the entry of \"r\" has an auth") && error.contains("next: "), "{error}");
}

#[tokio::test]
async fn an_account_that_only_a_helper_knows_is_named() {
    let registry = RegistryDouble::with(&[layer()]).await;
    let document = json!({ "auths": { registry.host(): {} }, "credHelpers": { registry.host(): "ecr-login" } });
    let guest = Guest::with(&registry, accounts(document.clone()));
    // Nobody asks for an account.
    assert_eq!(unpack(&guest, &registry.reference()).await.unwrap(), "hello");

    let tokens = RegistryDouble::with(&[layer()]).await.with_fault(Fault::Token);
    let store = json!({ "credsStore": "desktop" });
    assert_eq!(unpack(&Guest::with(&tokens, accounts(store)), &tokens.reference()).await.unwrap(), "hello");

    let registry = registry.with_fault(Fault::Login("me:secret".to_owned()));
    let error = unpack(&Guest::with(&registry, accounts(document)), &registry.reference()).await.unwrap_err();
    assert!(error.contains("the credential helper \"ecr-login\", which can't run inside a guest"), "{error}");
}

#[tokio::test]
async fn a_pull_takes_the_proxy_but_for_its_exceptions() {
    let (secure, plain) = (RegistryDouble::with_tls(&[layer()]).await, RegistryDouble::with(&[layer()]).await);
    for (exceptions, proxied) in [("10.0.0.0/8,registry.test", true), ("127.0.0.0/8", false)] {
        let proxy = ProxyDouble::start().await;
        let through = |config: &mut ImageConfig, _: &Path| {
            config.extra_root_certificates = vec![secure.authority.clone()];
            config.image_pull_proxy.https_proxy = Some(format!("http://me:pass%40word@{}", proxy.host()));
            config.image_pull_proxy.http_proxy = Some(proxy.host());
            config.image_pull_proxy.no_proxy = Some(exceptions.to_owned());
        };
        let guest = Guest::with(&plain, through);

        for registry in [&secure, &plain] {
            assert_eq!(unpack(&guest, &registry.reference()).await.unwrap(), "hello");
        }

        let login = STANDARD.encode("me:pass@word");
        let requests = proxy.requests();
        let tunnel = format!("CONNECT {} Basic {login}", secure.host());
        let manifest = format!("GET http://{}/v2/app/manifests/v1 -", plain.host());
        assert_eq!(requests.contains(&tunnel), proxied, "{requests:?}");
        assert_eq!(requests.contains(&manifest), proxied, "{requests:?}");
        assert!(proxied || requests.is_empty());
    }
}

/// A policy that accepts one scope and rejects the rest, in a file.
fn policy(folder: &Path, scope: &str) {
    let accept = json!([{ "type": "insecureAcceptAnything" }]);
    let document = json!({ "default": [{ "type": "reject" }], "transports": { "docker": { scope: accept } } });
    std::fs::write(folder.join("policy.json"), document.to_string()).unwrap();
}

#[tokio::test]
async fn the_policy_is_asked_about_the_images_own_name_each_time() {
    let registry = RegistryDouble::with(&[layer()]).await;
    let document =
        format!("[[registry]]\nprefix = \"origin.test\"\nlocation = \"{}\"\ninsecure = true\n", registry.host());
    let guest = Guest::with(&registry, |config, folder| {
        remapped(&document)(config, folder);
        policy(folder, "origin.test");
        config.image_security_policy_uri = Some(folder.join("policy.json").display().to_string());
    });
    let image = guest.puller.resolve("origin.test/app:v1").await.unwrap();
    let held = guest.puller.unpack(&image, &guest.bundle("held")).await.unwrap();
    let fetched = blobs(&registry);

    // The layers are there, and the mirror's name would be accepted.
    policy(guest.folder.path(), &registry.host());
    let error = guest.puller.unpack(&image, &guest.bundle("other")).await.unwrap_err().to_string();

    assert!(error.contains("origin.test/app:v1") && error.contains("reject"), "{error}");
    assert!(held.layers[0].exists() && blobs(&registry) == fetched);
    std::fs::write(guest.folder.path().join("policy.json"), "{").unwrap();
    let error = guest.puller.unpack(&image, &guest.bundle("other")).await.unwrap_err().to_string();
    assert!(error.contains("image_security_policy_uri ("), "{error}");
}

#[tokio::test]
async fn digests_may_be_of_sha512() {
    let registry = RegistryDouble::with(&[]).await;
    let sha512 = |bytes: &[u8]| format!("sha512:{}", hex::encode(digest(&SHA512, bytes)));
    let put = |bytes: &[u8], media_type: &str| {
        registry.put(&format!("/v2/app/blobs/{}", sha512(bytes)), "application/octet-stream", bytes);
        json!({ "mediaType": media_type, "digest": sha512(bytes), "size": bytes.len() })
    };
    let blob = layer().blob;
    let config = json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [sha512(&blob)] },
    });
    let manifest = json!({
        "schemaVersion": 2,
        "config": put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(&blob, "application/vnd.docker.image.rootfs.diff.tar")],
    });
    let manifest = manifest.to_string();
    let digest = sha512(manifest.as_bytes());
    registry.put(
        &format!("/v2/app/manifests/{digest}"),
        "application/vnd.docker.distribution.manifest.v2+json",
        manifest.as_bytes(),
    );
    let guest = Guest::new(&registry);

    assert_eq!(unpack(&guest, &format!("{}/app@{digest}", registry.host())).await.unwrap(), "hello");
    let other = format!("{}/app@{}", registry.host(), sha512(b"other"));
    registry.put(
        &format!("/v2/app/manifests/{}", sha512(b"other")),
        "application/vnd.docker.distribution.manifest.v2+json",
        manifest.as_bytes(),
    );
    let error = unpack(&guest, &other).await.unwrap_err();
    assert!(error.contains("other bytes than asked for"), "{error}");
}

#[tokio::test]
async fn a_signature_is_found_beside_the_image_at_its_mirror() {
    let registry = RegistryDouble::with(&[layer()]).await;
    let document =
        format!("[[registry]]\nprefix = \"origin.test\"\nlocation = \"{}\"\ninsecure = true\n", registry.host());
    let key = rcgen::KeyPair::generate().unwrap();
    let guest = Guest::with(&registry, |config, folder| {
        remapped(&document)(config, folder);
        std::fs::write(folder.join("cosign.pub"), key.public_key_pem()).unwrap();
        let signed = json!([{
            "type": "sigstoreSigned", "keyPath": folder.join("cosign.pub"), "signedIdentity": { "type": "matchRepository" },
        }]);
        let policy =
            json!({ "default": [{ "type": "reject" }], "transports": { "docker": { "origin.test": signed } } });
        config.image_security_policy = Some(policy.to_string());
    });
    let unsigned = unpack(&guest, "origin.test/app:v1").await.unwrap_err();
    assert!(unsigned.contains("origin.test/app:v1") && unsigned.contains("sigstoreSigned"), "{unsigned}");

    // What it signs is the image's own name, not the mirror's.
    let digest = guest.puller.resolve("origin.test/app:v1").await.unwrap().digest;
    let payload = json!({
        "critical": {
            "identity": { "docker-reference": "origin.test/app" },
            "image": { "docker-manifest-digest": digest },
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string();
    let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &key.serialize_der()).unwrap();
    let signature = signer.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
    registry.put(&format!("/v2/app/blobs/{}", sha256(payload.as_bytes())), "text/plain", payload.as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": sha256(b"{}"), "size": 2 },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": sha256(payload.as_bytes()), "size": payload.len(),
            "annotations": { "dev.cosignproject.cosign/signature": STANDARD.encode(signature.as_ref()) },
        }],
    });
    registry.put(
        &format!("/v2/app/manifests/{}.sig", digest.replace(':', "-")),
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );

    assert_eq!(unpack(&guest, "origin.test/app:v1").await.unwrap(), "hello");
    std::fs::write(guest.folder.path().join("cosign.pub"), rcgen::KeyPair::generate().unwrap().public_key_pem())
        .unwrap();
    let foreign = unpack(&guest, "origin.test/app:v1").await.unwrap_err();
    assert!(foreign.contains("sigstoreSigned"), "{foreign}");
}
