//! Registration, signatures, expiry and replicas, as users meet them.

use super::*;
use crate::testing::Owner;
use coset::{CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};
use serde_json::json;
use std::sync::atomic::{AtomicU64, Ordering};
use wire::reference_value::{pae, sign_message};

const ANYBODY: fn() -> Settings = || Settings { trusted_signers: Vec::new(), allow_unsigned: true };

fn trusting(owner: &Owner) -> Settings {
    Settings { trusted_signers: vec![owner.public.clone()], allow_unsigned: false }
}

fn message(values: &Value) -> Message {
    Message::new("sample", values.to_string().as_bytes())
}

async fn load(settings: Settings) -> ReferenceValues {
    ReferenceValues::load(Store::memory().await.unwrap(), Clock::system(), settings).await.unwrap()
}

/// Waits for what the following task does, and fails if it does not.
async fn until(mut reached: impl FnMut() -> bool) {
    let waiting = async {
        while !reached() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
}

#[tokio::test]
async fn values_are_found_by_name_after_a_restart_too() {
    let store = Store::memory().await.unwrap();
    let values = ReferenceValues::load(store.clone(), Clock::system(), ANYBODY()).await.unwrap();
    let names = values.register(&message(&json!({ "svn": ["1"], "a/b": { "deep": [1, null] } }))).await.unwrap();
    assert_eq!(names, ["a/b", "svn"]);

    for values in [values, ReferenceValues::load(store, Clock::system(), ANYBODY()).await.unwrap()] {
        assert_eq!(values.query("svn"), Some(json!(["1"])));
        assert_eq!(Source::query(&values, "a/b").unwrap(), Some(json!({ "deep": [1, null] })));
        assert_eq!(values.query("other"), None);
        let names = |prefix| values.list(prefix).into_iter().map(|record| record.name).collect::<Vec<_>>();
        assert_eq!(
            (names(""), names("a/"), names("b")),
            (vec!["a/b".to_owned(), "svn".to_owned()], vec!["a/b".to_owned()], vec![])
        );
    }
}

#[tokio::test]
async fn a_value_ends_after_a_year_and_a_new_registration_prolongs_it() {
    let seconds = Arc::new(AtomicU64::new(1_000));
    let clock = Clock::set_by(seconds.clone());
    let values = ReferenceValues::load(Store::memory().await.unwrap(), clock, ANYBODY()).await.unwrap();
    values.register(&message(&json!({ "svn": 1 }))).await.unwrap();

    seconds.store(1_000 + LIFETIME.as_secs() - 1, Ordering::Relaxed);
    assert_eq!(values.query("svn"), Some(json!(1)));
    seconds.fetch_add(1, Ordering::Relaxed);
    assert_eq!(values.query("svn"), None);
    assert!(values.list("").is_empty());

    values.register(&message(&json!({ "svn": 2 }))).await.unwrap();
    assert_eq!(values.query("svn"), Some(json!(2)));
}

#[tokio::test]
async fn only_what_a_trusted_signer_vouches_for_is_registered() {
    let (owner, stranger) = (Owner::ed25519(), Owner::ed25519());
    let values = load(trusting(&owner)).await;
    let unsigned = message(&json!({ "svn": 1 }));
    let signed = sign_message(&unsigned, &owner.private).unwrap();
    values.register(&signed).await.unwrap();

    let provenance = values.list("")[0].provenance.clone().unwrap();
    assert_eq!(provenance.signer, signed.signature.clone().map(|signature| signature.keyid));
    assert_eq!(provenance.extractor, "sample");

    let refused = async |message: &Message| values.register(message).await.unwrap_err();
    assert!(matches!(refused(&unsigned).await, Error::Unsigned));
    let of_stranger = sign_message(&unsigned, &stranger.private).unwrap();
    assert!(matches!(refused(&of_stranger).await, Error::UnknownSigner(_)));
    let changed = Message { signature: signed.signature.clone(), ..message(&json!({ "svn": 2 })) };
    assert!(matches!(refused(&changed).await, Error::Signature));
    let as_other_type = Message { kind: "swid".to_owned(), ..signed };
    assert!(matches!(refused(&as_other_type).await, Error::Signature));
    assert_eq!(refused(&changed).await.kind(), Kind::Forbidden);
    assert_eq!(values.query("svn"), Some(json!(1)));
}

#[tokio::test]
async fn a_bad_signature_is_refused_where_none_is_needed() {
    let owner = Owner::p256();
    let values = load(Settings { allow_unsigned: true, ..trusting(&owner) }).await;
    let good = message(&json!({ "svn": 1 }));
    values.register(&good).await.unwrap();
    assert_eq!(values.list("")[0].provenance.clone().unwrap().signer, None);

    let signed = sign_message(&good, &owner.private).unwrap();
    let changed = Message { payload: message(&json!({ "svn": 2 })).payload, ..signed };
    assert!(matches!(values.register(&changed).await, Err(Error::Signature)));
    assert_eq!(values.query("svn"), Some(json!(1)));
}

#[tokio::test]
async fn a_statement_signed_in_its_envelope_needs_no_other_signature() {
    let owner = Owner::p384();
    let values = load(trusting(&owner)).await;
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": "kernel", "digest": { "sha384": "ab".repeat(48) } }],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": { "expires": "2999-01-01T00:00:00Z" },
    })
    .to_string();
    let payload_type = "application/vnd.in-toto+json";
    let sig = sign(&owner, &pae(payload_type, statement.as_bytes()), true);
    let envelope = |statement: &str| {
        let signatures = json!([{ "keyid": "other", "sig": "AAAA" }, { "sig": STANDARD.encode(&sig) }]);
        let payload = STANDARD.encode(statement);
        let envelope = json!({ "payloadType": payload_type, "payload": payload, "signatures": signatures });
        Message::new("in-toto", envelope.to_string().as_bytes())
    };

    assert_eq!(values.register(&envelope(&statement)).await.unwrap(), ["kernel"]);
    let record = &values.list("")[0];
    assert_eq!(record.value, json!(["ab".repeat(48)]));
    assert_eq!(record.expiration.to_string(), "2999-01-01T00:00:00Z");
    assert!(record.provenance.as_ref().unwrap().signer.is_some());

    let changed = envelope(&statement.replace("kernel", "initrd"));
    assert!(matches!(values.register(&changed).await, Err(Error::Signature)));
}

#[tokio::test]
async fn a_signed_manifest_is_registered_while_it_holds() {
    let owners = [Owner::ed25519(), Owner::p256(), Owner::p384()];
    let algorithms = [iana::Algorithm::EdDSA, iana::Algorithm::ES256, iana::Algorithm::ES384];
    let seconds = Arc::new(AtomicU64::new(100));
    let store = Store::memory().await.unwrap();
    let settings =
        Settings { trusted_signers: owners.iter().map(|owner| owner.public.clone()).collect(), allow_unsigned: true };
    let values = ReferenceValues::load(store, Clock::set_by(seconds.clone()), settings).await.unwrap();
    // 501({0: "id", 1: [506({4: {0: [[{0: {1: "ACME"}}, [{1: {2: [[1, h'abcd']]}}]]]}})], 4: {1: 1(200)}})
    let manifest = hex::decode(concat!(
        "d901f5a3006269640181d901faa104a1008182a100a1016441434d4581a101a10281820142abcd",
        "04a101c118c8"
    ))
    .unwrap();
    for (owner, algorithm) in owners.iter().zip(algorithms) {
        let header = HeaderBuilder::new().algorithm(algorithm).content_type("application/rim+cbor".to_owned()).build();
        let signed = CoseSign1Builder::new()
            .protected(header)
            .payload(manifest.clone())
            .create_signature(b"", |covered| sign(owner, covered, false))
            .build();
        let mut forged = signed.clone();
        forged.payload = Some(manifest.iter().map(|byte| if *byte == 0xab { 0xac } else { *byte }).collect());
        let message = |sign1: coset::CoseSign1| Message::new("corim", &sign1.to_tagged_vec().unwrap());

        seconds.store(100, Ordering::Relaxed);
        assert_eq!(values.register(&message(signed.clone())).await.unwrap(), ["ACME/digests"]);
        assert!(values.list("")[0].provenance.as_ref().unwrap().signer.is_some());
        assert!(matches!(values.register(&message(forged)).await, Err(Error::Signature)));
        seconds.store(200, Ordering::Relaxed);
        assert_eq!(values.query("ACME/digests"), None);
        assert!(matches!(values.register(&message(signed)).await, Err(Error::Ended(_))));
    }
}

#[tokio::test]
async fn a_tenant_registers_under_its_own_prefix() {
    let values = load(ANYBODY()).await;
    let both = message(&json!({ "blue/svn": 1, "red/svn": 1 }));
    let refused = values.register_scoped(&both, "blue/").await.unwrap_err();
    assert!(matches!(refused, Error::Scope { ref name, .. } if name == "red/svn"), "{refused}");
    assert!(values.list("").is_empty());
    values.register_scoped(&message(&json!({ "blue/svn": 1 })), "blue/").await.unwrap();
    assert_eq!(values.query("blue/svn"), Some(json!(1)));
}

#[tokio::test]
async fn a_deleted_value_is_gone_and_its_history_stays() {
    let values = load(ANYBODY()).await;
    values.register(&message(&json!({ "svn": 1 }))).await.unwrap();
    values.register(&message(&json!({ "svn": 2 }))).await.unwrap();
    assert!(values.delete("svn").await.unwrap());
    assert!(!values.delete("svn").await.unwrap());
    assert!(!values.delete("no key ü").await.unwrap());
    assert_eq!(values.query("svn"), None);

    let history = values.history("svn").await.unwrap();
    let past = |past: &PastRecord| (past.deleted, past.record.as_ref().map(|record| record.value.clone()));
    let expected = [(true, None), (false, Some(json!(2))), (false, Some(json!(1)))];
    assert_eq!(history.iter().map(past).collect::<Vec<_>>(), expected);
    assert!(values.history("other").await.unwrap().is_empty());
    assert!(values.history("no key ü").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_others_write_is_followed_and_a_bad_record_holds_nothing_back() {
    let store = Store::memory().await.unwrap();
    let replica = |store: Store| ReferenceValues::load(store, Clock::system(), ANYBODY());
    let (one, two) = (replica(store.clone()).await.unwrap(), replica(store.clone()).await.unwrap());
    one.register(&message(&json!({ "svn": 1, "other": 1 }))).await.unwrap();
    until(|| two.query("svn") == Some(json!(1))).await;
    one.delete("other").await.unwrap();
    until(|| two.query("other").is_none()).await;

    let upstream = json!({ "version": "0.1.0", "name": "up", "expiration": "2999-01-01T00:00:00Z", "value": ["x"] });
    let bad = (Key::parse("svn").unwrap(), b"{}".to_vec());
    let good = (Key::parse("up").unwrap(), upstream.to_string().into_bytes());
    store.put_all(NAMESPACE, &[bad, good]).await.unwrap();
    until(|| two.query("up") == Some(json!(["x"]))).await;
    assert_eq!(two.query("svn"), None);
    assert!(matches!(replica(store).await, Err(Error::Record(name)) if name == "svn"));
}

#[tokio::test]
async fn a_file_that_somebody_edits_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let location = store::Location::LocalFs { directory: directory.path().to_owned() };
    let store = Store::open(&location, None).await.unwrap();
    let values = ReferenceValues::load(store, Clock::system(), ANYBODY()).await.unwrap();
    values.register(&message(&json!({ "svn": "old" }))).await.unwrap();

    let file = directory.path().join("reference_value/svn");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("old", "new")).unwrap();
    until(|| values.query("svn") == Some(json!("new"))).await;
}

#[tokio::test]
async fn the_number_of_values_is_bounded_and_ended_ones_make_room() {
    let seconds = Arc::new(AtomicU64::new(1_000));
    let clock = Clock::set_by(seconds.clone());
    let values = ReferenceValues::load(Store::memory().await.unwrap(), clock, ANYBODY()).await.unwrap();
    let thousand = |part: usize| {
        message(&(0..1000).map(|i| (format!("{part}/{i}"), json!(i))).collect::<serde_json::Map<_, _>>().into())
    };
    for part in 0..10 {
        values.register(&thousand(part)).await.unwrap();
    }
    assert!(matches!(values.register(&message(&json!({ "more": 1 }))).await, Err(Error::TooMany(10_000))));
    values.register(&message(&json!({ "0/0": "again" }))).await.unwrap();

    seconds.fetch_add(LIFETIME.as_secs(), Ordering::Relaxed);
    values.register(&message(&json!({ "more": 1 }))).await.unwrap();
    assert_eq!(values.list("").len(), 1);
}

#[tokio::test]
async fn a_bad_message_registers_nothing() {
    let values = load(ANYBODY()).await;
    let good = message(&json!({ "svn": 1 }));
    for bad in [
        Message { version: "9".to_owned(), ..good.clone() },
        Message { kind: "in-toto".to_owned(), ..good.clone() },
        Message { kind: "other".to_owned(), ..good.clone() },
        Message { payload: "*".to_owned(), ..good.clone() },
        Message { payload: "A".repeat((1 << 20) + 4), ..good.clone() },
        message(&json!([1])),
        message(&json!({})),
        message(&json!({ "svn": 1, "bad name": 2 })),
    ] {
        let error = values.register(&bad).await.unwrap_err();
        assert_eq!(error.kind(), Kind::BadRequest, "{error}");
    }
    assert!(values.list("").is_empty());
}

/// A signature over the bytes themselves: ECDSA in DER or in fixed size.
fn sign(owner: &Owner, covered: &[u8], der: bool) -> Vec<u8> {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature as keys;
    let private = x509_parser::pem::parse_x509_pem(owner.private.as_bytes()).unwrap().1.contents;
    if let Ok(key) = keys::Ed25519KeyPair::from_pkcs8(&private) {
        return key.sign(covered).as_ref().to_vec();
    }
    let algorithms = match der {
        true => [&keys::ECDSA_P256_SHA256_ASN1_SIGNING, &keys::ECDSA_P384_SHA384_ASN1_SIGNING],
        false => [&keys::ECDSA_P256_SHA256_FIXED_SIGNING, &keys::ECDSA_P384_SHA384_FIXED_SIGNING],
    };
    let key = algorithms.into_iter().find_map(|algorithm| keys::EcdsaKeyPair::from_pkcs8(algorithm, &private).ok());
    key.unwrap().sign(&SystemRandom::new(), covered).unwrap().as_ref().to_vec()
}

#[tokio::test]
async fn a_conditional_registration_loses_against_what_another_replica_did() {
    let store = Store::memory().await.unwrap();
    let here = ReferenceValues::load(store.clone(), Clock::system(), ANYBODY()).await.unwrap();
    let there = ReferenceValues::load(store, Clock::system(), ANYBODY()).await.unwrap();
    let of = |value: u8| message(&json!({ "a/svn": value }));
    assert!(here.register_if(&of(1), "a/", <[_]>::is_empty).await.unwrap().is_some());
    there.register(&of(2)).await.unwrap();

    let as_it_was = |records: &[Record]| records.iter().all(|record| record.value == 1);
    assert_eq!(here.register_if(&of(3), "a/", as_it_was).await.unwrap(), None);
    assert_eq!(here.query("a/svn"), Some(json!(2)));
    assert!(matches!(here.register_if(&of(3), "b/", |_| true).await, Err(Error::Scope { .. })));
}
