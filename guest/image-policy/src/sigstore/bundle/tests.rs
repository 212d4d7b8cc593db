//! Bundles that the tests make themselves, by keys and by certificates.

use super::*;
use crate::error::Error;
use crate::fixture::*;
use crate::policy::Policy;
use crate::sources::Image;
use proptest::prelude::*;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};

async fn check(requirement: &Value, image: &Image<'_>, sources: &Memory) -> Result<String, String> {
    let policy = Policy::parse(json!({"default": [requirement]}).to_string().as_bytes()).unwrap();
    match policy.check(image, sources, now()).await {
        Ok(verdict) => Ok(verdict.accepted[0].signer.clone().unwrap()),
        Err(Error::Refused(refusal)) => Err(refusal.to_string()),
        Err(other) => panic!("{other:?}"),
    }
}

fn by_key(key: &Key) -> Value {
    json!({"type": "sigstoreSigned", "keyData": BASE64_STANDARD.encode(key.pem())})
}

fn statement(digest: &Digest, predicate: &str) -> Vec<u8> {
    let statement = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": predicate, "predicate": {},
                           "subject": [{"name": "", "digest": {"sha256": digest.digest()}}]});
    serde_json::to_vec(&statement).unwrap()
}

fn envelope(key: &Key, payload: &[u8]) -> (Vec<u8>, Value) {
    let signature = key.sign(&pre_authentication_encoding(STATEMENT_TYPE, payload));
    let envelope = json!({"payload": BASE64_STANDARD.encode(payload), "payloadType": STATEMENT_TYPE,
                          "signatures": [{"sig": BASE64_STANDARD.encode(&signature), "keyid": ""}]});
    (signature, envelope)
}

fn signed_message(key: &Key, content: &[u8]) -> Value {
    json!({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": ""}},
           "messageSignature": {
               "messageDigest": {"algorithm": "SHA2_256",
                                 "digest": BASE64_STANDARD.encode(hex::decode(digest_of(content).digest()).unwrap())},
               "signature": BASE64_STANDARD.encode(key.sign(content))}})
}

fn signed_statement(key: &Key, digest: &Digest, predicate: &str) -> Value {
    let (_, envelope) = envelope(key, &statement(digest, predicate));
    json!({"mediaType": BUNDLE, "verificationMaterial": {"publicKey": {"hint": ""}}, "dsseEnvelope": envelope})
}

#[tokio::test]
async fn a_bundle_of_either_kind_is_found_either_way_for_manifest_and_index() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    for by_tag in [false, true] {
        for (digest, content) in [(&subject.digest, &subject.manifest), (&subject.index_digest, &subject.index)] {
            for bundle in [signed_message(&key, content), signed_statement(&key, digest, SIGN_PREDICATE)] {
                let mut sources = Memory::default();
                sources.manifests.insert(subject.index_digest.to_string(), subject.index.clone());
                sources.refer(digest, &bundle, by_tag);
                let signer = check(&by_key(&key), &subject.image(), &sources).await.unwrap();
                assert!(signer.starts_with("bundle sha256:"), "{signer}");
            }
        }
    }
}

#[tokio::test]
async fn a_registry_that_refuses_to_list_may_have_a_tag() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    let mut sources = Memory { refused: vec!["referrers".to_owned()], ..Memory::default() };
    let refusal = check(&by_key(&key), &subject.single(), &sources).await.unwrap_err();
    assert!(refusal.contains("the registry answers 405"), "{refusal}");
    sources.refer(&subject.digest, &signed_statement(&key, &subject.digest, SIGN_PREDICATE), true);
    check(&by_key(&key), &subject.single(), &sources).await.unwrap();
}

#[tokio::test]
async fn a_bundle_that_is_no_signature_of_the_image_is_refused_with_its_reason() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    let good = signed_statement(&key, &subject.digest, SIGN_PREDICATE);
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        bundle
    };
    for (bundle, reason) in [
        (
            signed_statement(&key, &subject.digest, "https://slsa.dev/provenance/v1"),
            "a statement of type \"https://slsa",
        ),
        (signed_statement(&key, &digest_of(b"other"), SIGN_PREDICATE), "it is for another image"),
        (signed_statement(&Key::new(), &subject.digest, SIGN_PREDICATE), "not by a key that the policy trusts"),
        (signed_message(&Key::new(), &subject.manifest), "not by a key that the policy trusts"),
        (signed_message(&key, b"another manifest"), "a signature over another document"),
        (changed(&|it| it["mediaType"] = json!("application/json")), "which is no bundle"),
        (changed(&|it| it["dsseEnvelope"]["payloadType"] = json!("text/plain")), "not a statement"),
        (changed(&|it| it["dsseEnvelope"]["signatures"] = json!([])), "has 0 signatures"),
        (changed(&|it| it["messageSignature"] = signed_message(&key, b"")["messageSignature"].clone()), "or both"),
        (changed(&|it| it["verificationMaterial"] = Value::Null), "it is not a bundle"),
    ] {
        let mut sources = Memory::default();
        sources.refer(&subject.digest, &bundle, false);
        let refusal = check(&by_key(&key), &subject.single(), &sources).await.unwrap_err();
        assert!(refusal.contains(reason), "{reason:?} is not in {refusal}");
    }
}

#[tokio::test]
async fn a_bundle_without_a_name_does_not_do_where_the_policy_asks_for_one() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    let mut sources = Memory::default();
    sources.refer(&subject.digest, &signed_message(&key, &subject.manifest), false);
    let mut requirement = by_key(&key);
    requirement["signedIdentity"] = json!({"type": "matchRepository"});
    let refusal = check(&requirement, &subject.single(), &sources).await.unwrap_err();
    assert!(refusal.contains("it names no image"), "{refusal}");
}

#[tokio::test]
async fn a_keyless_bundle_needs_a_signed_time_and_a_proof_that_holds() {
    let (key, authority, log) = (Key::new(), Fulcio::new(), Log::new());
    let subject = Pulled::new("registry.example/team/app:v1");
    let certificate = authority.certify(&key, email("dev@example.org"), "https://i.example", NOW - 5000);
    let payload = statement(&subject.digest, SIGN_PREDICATE);
    let (signature, envelope) = envelope(&key, &payload);
    let record = Log::dsse(&payload, &signature, &certificate);
    let requirement = json!({"type": "sigstoreSigned", "rekorPublicKeyData": BASE64_STANDARD.encode(log.key.pem()),
        "fulcio": {"caData": BASE64_STANDARD.encode([authority.root, authority.intermediate].concat()),
                   "oidcIssuer": "https://i.example", "subjectEmail": "dev@example.org"}});
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut entry = log.entry(&record, Some(NOW - 4900));
        change(&mut entry);
        entry
    };
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    for (entry, expected) in [
        (changed(&|_| ()), Ok(())),
        (changed(&|it| it["inclusionProof"] = Value::Null), Ok(())),
        (log.entry(&record, None), Err("its log entry has no signed time")),
        (changed(&|it| it["inclusionProof"]["treeSize"] = json!("6")), Err("not in the tree of the checkpoint")),
        (changed(&|it| it["inclusionProof"]["logIndex"] = json!("1")), Err("not in the tree of the checkpoint")),
        (changed(&|it| it["inclusionProof"]["hashes"] = json!([])), Err("not in the tree of the checkpoint")),
        (
            changed(&|it| it["inclusionProof"] = Log::new().entry(&record, None)["inclusionProof"].clone()),
            Err("the checkpoint of its log entry is not signed by the log"),
        ),
        (
            changed(&|it| it["inclusionProof"] = log.entry(b"another", None)["inclusionProof"].clone()),
            Err("not in the tree of the checkpoint"),
        ),
        (
            log.entry(&Log::dsse(b"another payload", &signature, &certificate), Some(NOW - 4900)),
            Err("its log entry is about another content"),
        ),
    ] {
        let bundle = json!({"mediaType": BUNDLE, "dsseEnvelope": envelope, "verificationMaterial": {
            "certificate": {"rawBytes": BASE64_STANDARD.encode(&der)}, "tlogEntries": [entry]}});
        let mut sources = Memory::default();
        sources.refer(&subject.digest, &bundle, false);
        match (check(&requirement, &subject.single(), &sources).await, expected) {
            (Ok(signer), Ok(())) => assert!(signer.ends_with("by dev@example.org of https://i.example"), "{signer}"),
            (Err(refusal), Err(reason)) => assert!(refusal.contains(reason), "{reason:?} is not in {refusal}"),
            (outcome, expected) => panic!("{outcome:?} instead of {expected:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_bundle_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..2000, byte: u8) {
        let digest = digest_of(b"manifest");
        let _ = candidate(&bytes, &digest, Some(b"manifest"));
        let mut bundle = json!({"mediaType": BUNDLE, "verificationMaterial": {"tlogEntries": []}, "dsseEnvelope": {
            "payload": BASE64_STANDARD.encode(statement(&digest, SIGN_PREDICATE)), "payloadType": STATEMENT_TYPE,
            "signatures": [{"sig": "AAAA"}]}}).to_string().into_bytes();
        let at = at % bundle.len();
        bundle[at] = byte;
        let _ = candidate(&bundle, &digest, None);
    }
}
