//! What happens when a registry, its network or an image's maker is at fault.

use super::registry_double::Fault;
use super::*;

fn archive() -> Vec<u8> {
    Archive::new().directory("etc", 0o755).file("etc/motd", b"hello").file("data", &noise(200_000)).done()
}

#[tokio::test]
async fn every_kind_of_layer_arrives() {
    for layer in [
        Layer::tar(&archive()),
        Layer::gzip(&archive()),
        Layer::zstd(&archive()),
        Layer::tar(&archive()).encrypted(&KEK),
        Layer::gzip(&archive()).encrypted(&KEK),
        Layer::zstd(&archive()).encrypted(&KEK),
    ] {
        let registry = RegistryDouble::with(std::slice::from_ref(&layer)).await;
        let guest = Guest::new(&registry);

        let layers = guest.unpack(&registry).await.unwrap();

        assert_eq!(read(&layers[0].join("etc/motd")), "hello", "{}", layer.media_type);
        assert_eq!(std::fs::read(layers[0].join("data")).unwrap(), noise(200_000));
        guest.puller.release(&guest.bundle("bundle")).await.unwrap();
        assert_eq!(guest.layer_dirs(), 0);
    }
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_stopped() {
    for faults in [
        vec![Fault::Cut { answers: 2, after: 60_000 }],
        vec![Fault::Cut { answers: 2, after: 60_000 }, Fault::NoRanges],
    ] {
        let mut registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await;
        for fault in faults {
            registry = registry.with_fault(fault);
        }
        let guest = Guest::new(&registry);

        let layers = guest.unpack(&registry).await.unwrap();

        assert_eq!(read(&layers[0].join("etc/motd")), "hello");
    }
}

#[tokio::test]
async fn a_registry_that_does_not_deliver_is_named_with_its_fault() {
    for (fault, expected) in [
        (Fault::Cut { answers: 99, after: 10 }, "failed"),
        (Fault::Stall { after: 10 }, "sent nothing for 0.2 seconds"),
        (Fault::Surplus, "sends more than"),
    ] {
        let registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await.with_fault(fault.clone());
        let (stage, text) = Guest::new(&registry).refusal(&registry).await;
        assert_eq!(stage, Stage::Fetch, "{text}");
        assert!(text.contains(expected) && text.contains(&registry.host()), "{fault:?} gave {text}");
    }
}

#[tokio::test]
async fn a_registry_that_only_dribbles_is_given_up() {
    // Silence can't be the reason: there is never enough of it.
    let patience = Patience { stall: Duration::from_secs(600), progress: Duration::from_millis(500), ..PATIENCE };
    for words in ["/manifests/", "/blobs/"] {
        let registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await.with_fault(Fault::Dribble(words));
        let guest = Guest::build(&registry, KEK, patience, |_, _| {});

        let error = guest.unpack(&registry).await.unwrap_err().to_string();

        assert!(error.contains(&format!("registry {} sent only ", registry.host())), "{error}");
        assert!(error.contains(" bytes in 0.5 seconds; next: "), "{error}");
        assert_eq!(guest.layer_dirs(), 0);
    }
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_not_appended() {
    let registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await;
    let registry = registry.with_fault(Fault::Cut { answers: 1, after: 60_000 }).with_fault(Fault::WrongRange);
    let (stage, text) = Guest::new(&registry).refusal(&registry).await;
    assert!(stage == Stage::Fetch && text.contains("wrong offset"), "{text}");
}

#[tokio::test]
async fn one_changed_byte_is_a_wrong_digest_wherever_it_shows_first() {
    for layer in [Layer::tar(&archive()), Layer::gzip(&archive()), Layer::gzip(&archive()).encrypted(&KEK)] {
        let registry = RegistryDouble::with(&[layer]).await.with_fault(Fault::LastByte);
        let (stage, text) = Guest::new(&registry).refusal(&registry).await;
        assert_eq!(stage, Stage::Digest, "{text}");
        assert!(text.contains("layer 0 (sha256:") && text.contains("push the image again"), "{text}");
    }
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_image_says_is_refused_at_the_right_stage() {
    let gzip = Layer::gzip(&archive());
    let mut cut = gzip.clone();
    cut.blob.truncate(cut.blob.len() / 2);
    let mut other = gzip.clone();
    other.diff_id = sha256(b"other");
    let mut spoilt = gzip.clone().encrypted(&KEK);
    spoilt.blob[30] ^= 1;
    let mut unkeyed = gzip.clone().encrypted(&KEK);
    unkeyed.annotations = json!({});
    let plain = Layer { media_type: format!("{}+encrypted", gzip.media_type), ..gzip.clone() };
    let bad_tar = Layer::gzip(&[b'x'; 2000]);
    for (layer, expected) in [
        (cut, Stage::Inflate),
        (other, Stage::DiffId),
        (spoilt, Stage::Decrypt),
        (unkeyed, Stage::Key),
        (plain, Stage::Key),
        (bad_tar, Stage::Archive),
    ] {
        let registry = RegistryDouble::with(&[layer]).await;
        let (stage, text) = Guest::new(&registry).refusal(&registry).await;
        assert_eq!(stage, expected, "{text}");
    }
}

#[tokio::test]
async fn the_wrong_key_opens_nothing() {
    let registry = RegistryDouble::with(&[Layer::gzip(&archive()).encrypted(&KEK)]).await;
    let (stage, text) = Guest::with_key(&registry, [1; 32]).refusal(&registry).await;
    assert_eq!(stage, Stage::Key);
    assert!(text.contains("): key: kbs:///default/key/k1: ") && text.ends_with("; next: ask Trustee"), "{text}");
    assert_eq!((text.matches("kbs:///").count(), text.matches("next: ").count()), (1, 1), "{text}");
    assert!(!registry.requests().iter().any(|line| line.contains("/blobs/") && line.contains("layer")), "{text}");
}

#[tokio::test]
async fn a_bomb_stops_at_the_limit() {
    let registry = RegistryDouble::with(&[Layer::bomb()]).await;

    let (stage, text) = Guest::new(&registry).refusal(&registry).await;

    assert_eq!(stage, Stage::Limit, "{text}");
}

#[tokio::test]
async fn a_long_run_of_zeros_is_no_bomb() {
    let zeros = Archive::new().file("zeros", &vec![0; 80 << 20]).done();
    let registry = RegistryDouble::with(&[Layer::gzip(&zeros)]).await;
    let guest = Guest::new(&registry);
    let layers = guest.unpack(&registry).await.unwrap();
    assert_eq!(std::fs::metadata(layers[0].join("zeros")).unwrap().len(), 80 << 20);
}

#[tokio::test]
async fn one_bad_layer_takes_the_good_ones_with_it() {
    let mut bad = Layer::gzip(&archive());
    bad.diff_id = sha256(b"other");
    let good = Layer::gzip(&Archive::new().file("good", &noise(900_000)).done());
    let registry = RegistryDouble::with(&[good.clone(), bad, good]).await;
    let guest = Guest::new(&registry);
    assert_eq!(guest.refusal(&registry).await.0, Stage::DiffId);
    // The bundle is free again.
    assert_eq!(guest.refusal(&registry).await.0, Stage::DiffId);
}

#[tokio::test]
async fn tokens_are_fetched_once_and_credentials_stay_with_their_registry() {
    let elsewhere = RegistryDouble::with(&[Layer::gzip(&archive())]).await;
    let registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await;
    let registry =
        registry.with_fault(Fault::Token).with_fault(Fault::Redirect(format!("http://{}", elsewhere.host())));
    let auth = json!({ "auths": { registry.host(): { "auth": STANDARD.encode("me:secret") } } });
    let guest = Guest::with(&registry, |config, folder| {
        std::fs::write(folder.join("auth.json"), auth.to_string()).unwrap();
        config.authenticated_registry_credentials_uri = Some(folder.join("auth.json").display().to_string());
    });

    guest.unpack(&registry).await.unwrap();

    let requests = registry.requests();
    let basic = format!("Basic {}", STANDARD.encode("me:secret"));
    let tokens: Vec<_> = requests.iter().filter(|line| line.starts_with("/token?")).collect();
    assert_eq!(tokens, [&format!("/token?service=s&scope=repository%3Aapp%3Apull {basic}")], "{requests:?}");
    assert!(requests.iter().any(|line| line.ends_with(&format!("/blobs/{} Bearer for {basic}", blob_digest()))));
    assert!(elsewhere.requests().iter().all(|line| line.ends_with(" -")), "{:?}", elsewhere.requests());
    assert_eq!(elsewhere.requests().len(), 1);
}

fn blob_digest() -> String {
    sha256(&Layer::gzip(&archive()).blob)
}

#[tokio::test]
async fn a_digest_in_the_reference_is_kept_to() {
    let registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await;
    let guest = Guest::new(&registry);
    let digest = guest.puller.resolve(&registry.reference()).await.unwrap().digest;

    let pinned = format!("{}/app@{digest}", registry.host());
    assert_eq!(guest.puller.resolve(&pinned).await.unwrap().digest, digest);

    registry.put(&format!("/v2/app/manifests/{digest}"), "application/vnd.oci.image.manifest.v1+json", b"{}");
    let error = guest.puller.resolve(&pinned).await.unwrap_err().to_string();
    assert!(error.contains("other bytes than asked for"), "{error}");
}

#[tokio::test]
async fn an_index_leads_to_the_platform() {
    let registry = RegistryDouble::with(&[Layer::gzip(&archive())]).await;
    let guest = Guest::new(&registry);
    let manifest = guest.puller.resolve(&registry.reference()).await.unwrap();
    let entry = |architecture: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 2, "digest": manifest.digest,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let put = |tag: &str, architecture: &str| {
        let index = json!({ "schemaVersion": 2, "manifests": [entry(architecture)] }).to_string();
        let media_type = "application/vnd.oci.image.index.v1+json; charset=utf-8";
        registry.put(&format!("/v2/app/manifests/{tag}"), media_type, index.as_bytes());
        sha256(index.as_bytes())
    };

    let index_digest = put("multi", "amd64");
    let resolved = guest.puller.resolve(&format!("{}/app:multi", registry.host())).await.unwrap();
    assert_eq!((resolved.digest, resolved.index_digest), (manifest.digest.clone(), Some(index_digest)));

    put("arm", "arm64");
    let error = guest.puller.resolve(&format!("{}/app:arm", registry.host())).await.unwrap_err().to_string();
    assert!(error.contains("no manifest for linux/amd64"), "{error}");
}

#[tokio::test]
async fn what_can_not_be_resolved_is_explained() {
    let registry = RegistryDouble::with(&[]).await;
    let guest = Guest::new(&registry);
    for (reference, expected) in [
        ("not a name", "can't be used"),
        (&*format!("{}/app:none", registry.host()), "does not have"),
        ("127.0.0.1:1/app:v1", "can't be reached"),
    ] {
        let error = guest.puller.resolve(reference).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{reference} gave {error}");
    }
}
