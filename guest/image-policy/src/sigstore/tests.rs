//! Signatures of both forms by keys and certificates that the tests make themselves.

use super::*;
use crate::error::Error;
use crate::fixture::*;
use crate::policy::Policy;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use proptest::prelude::*;
use serde_json::{Value, json};

const NAME: &str = "registry.example/team/app";
const SUBJECT: &str = "dev@example.org";
const ISSUER: &str = "https://accounts.example";

fn policy(requirement: &Value) -> Policy {
    Policy::parse(json!({"default": [requirement]}).to_string().as_bytes()).unwrap()
}

fn by_key(key: &Key) -> Value {
    json!({"type": "sigstoreSigned", "keyData": BASE64_STANDARD.encode(key.pem())})
}

fn with(mut requirement: Value, name: &str, value: Value) -> Value {
    requirement[name] = value;
    requirement
}

async fn accept(requirement: Value, image: &Image<'_>, sources: &Memory) -> String {
    let verdict = policy(&requirement).check(image, sources, now()).await.unwrap();
    assert_eq!(verdict.accepted[0].requirement, "sigstoreSigned");
    verdict.accepted[0].signer.clone().unwrap()
}

async fn refuse(requirement: Value, image: &Image<'_>, sources: &Memory) -> String {
    match policy(&requirement).check(image, sources, now()).await {
        Err(Error::Refused(refusal)) => refusal.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_signature_by_the_key_is_accepted_for_manifest_and_index() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    for digest in [&subject.digest, &subject.index_digest] {
        let mut sources = Memory::default();
        let payload = payload(NAME, digest);
        sources.tag(digest, &[(payload.clone(), key.annotate(&payload))]);
        let signer = accept(by_key(&key), &subject.image(), &sources).await;
        assert!(signer.contains(".sig, layer 1, by key sha256:"), "{signer}");
    }
}

#[tokio::test]
async fn signatures_by_others_and_for_others_do_not_block_a_good_one() {
    let (key, other, subject) = (Key::new(), Key::new(), Pulled::new("registry.example/team/app:v1"));
    let good = payload(NAME, &subject.digest);
    let elsewhere = payload("elsewhere.example/x", &subject.digest);
    let outdated = payload(NAME, &digest_of(b"an older image"));
    let mut sources = Memory::default();
    sources.tag(
        &subject.digest,
        &[
            (elsewhere.clone(), other.annotate(&elsewhere)),
            (outdated.clone(), key.annotate(&outdated)),
            (b"no payload".to_vec(), json!({})),
            (good.clone(), key.annotate(&good)),
        ],
    );
    let requirement = with(by_key(&key), "signedIdentity", json!({"type": "matchRepository"}));
    let signer = accept(requirement, &subject.single(), &sources).await;
    assert!(signer.contains("layer 4"), "{signer}");
}

#[tokio::test]
async fn each_signature_is_refused_with_its_own_reason() {
    let (key, other, subject) = (Key::new(), Key::new(), Pulled::new("registry.example/team/app:v1"));
    let good = payload(NAME, &subject.digest);
    let outdated = payload(NAME, &digest_of(b"an older image"));
    let elsewhere = payload("elsewhere.example/x", &subject.digest);
    let simple = String::from_utf8(good.clone()).unwrap().replace("cosign container image", "atomic container");
    let mut sources = Memory::default();
    sources.tag(
        &subject.digest,
        &[
            (good.clone(), other.annotate(&good)),
            (outdated.clone(), key.annotate(&outdated)),
            (elsewhere.clone(), key.annotate(&elsewhere)),
            (simple.clone().into_bytes(), key.annotate(simple.as_bytes())),
            (good.clone(), json!({})),
            (good.clone(), json!({"dev.cosignproject.cosign/signature": "!"})),
        ],
    );
    let requirement = with(by_key(&key), "signedIdentity", json!({"type": "matchRepository"}));
    let refusal = refuse(requirement, &subject.single(), &sources).await;
    for reason in [
        "refuses registry.example/team/app:v1 by the policy's default",
        "requirement 1 (sigstoreSigned)",
        "layer 1: it is not by a key that the policy trusts",
        &format!("layer 2: it is for another image, {}", digest_of(b"an older image")),
        "layer 3: it names the image \"elsewhere.example/x\"",
        "layer 4: its payload is of type \"atomic container signature\"",
        "layer 5: it has no annotation dev.cosignproject.cosign/signature",
        "layer 6: its annotation dev.cosignproject.cosign/signature is not of the expected form",
        "next: sign the image",
    ] {
        assert!(refusal.contains(reason), "{reason:?} is not in {refusal}");
    }
}

#[tokio::test]
async fn what_the_registry_gives_for_a_digest_must_have_it() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    let payload = payload(NAME, &subject.digest);
    let mut sources = Memory::default();
    sources.tag(&subject.digest, &[(payload.clone(), key.annotate(&payload))]);
    sources.blobs.values_mut().for_each(|blob| blob.push(b' '));
    let refusal = refuse(by_key(&key), &subject.single(), &sources).await;
    assert!(refusal.contains("doesn't have the digest"), "{refusal}");
}

#[tokio::test]
async fn an_unsigned_image_and_a_registry_that_is_down_are_told_apart() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    let unsigned = refuse(by_key(&key), &subject.image(), &Memory::default()).await;
    assert!(unsigned.contains("no signature was found beside the image"), "{unsigned}");
    let down = refuse(by_key(&key), &subject.image(), &Memory { broken: true, ..Memory::default() }).await;
    assert!(down.contains("the registry is down") && !down.contains("no signature"), "{down}");
}

#[tokio::test]
async fn a_key_may_come_from_a_document() {
    let (key, subject) = (Key::new(), Pulled::new("registry.example/team/app:v1"));
    let payload = payload(NAME, &subject.digest);
    let mut sources = Memory::default();
    sources.tag(&subject.digest, &[(payload.clone(), key.annotate(&payload))]);
    let requirement = json!({"type": "sigstoreSigned", "keyPath": "kbs:///default/cosign/key"});
    let missing = refuse(requirement.clone(), &subject.single(), &sources).await;
    assert!(missing.contains("kbs:///default/cosign/key can't be had: there is no such document"), "{missing}");
    sources.documents.insert("kbs:///default/cosign/key".to_owned(), key.pem().into_bytes());
    accept(requirement.clone(), &subject.single(), &sources).await;
    sources.documents.insert("kbs:///default/cosign/key".to_owned(), b"no key".to_vec());
    let refusal = refuse(requirement, &subject.single(), &sources).await;
    assert!(refusal.contains("the key kbs:///default/cosign/key can't be used: it has no PEM block"), "{refusal}");
}

#[tokio::test]
async fn with_a_log_key_the_signature_must_be_in_the_log() {
    let (key, log, subject) = (Key::new(), Log::new(), Pulled::new("registry.example/team/app:v1"));
    let (payload, other_payload) = (payload(NAME, &subject.digest), payload("other", &subject.digest));
    let annotations = key.annotate(&payload);
    let signature =
        BASE64_STANDARD.decode(annotations["dev.cosignproject.cosign/signature"].as_str().unwrap()).unwrap();
    let requirement = with(by_key(&key), "rekorPublicKeyData", json!(BASE64_STANDARD.encode(log.key.pem())));
    let record = Log::hashedrekord(&payload, &signature, &key.pem());
    let forged = |entry: &str| {
        let mut entry: Value = serde_json::from_str(entry).unwrap();
        entry["Payload"]["integratedTime"] = json!(NOW + 1);
        entry.to_string()
    };
    for (entry, expected) in [
        (log.annotation(&record, NOW), None),
        (String::new(), Some("it comes with no log entry")),
        ("{}".to_owned(), Some("annotation dev.sigstore.cosign/bundle is not of the expected form")),
        (Log::new().annotation(&record, NOW), Some("of a log whose key the policy doesn't have")),
        (forged(&log.annotation(&record, NOW)), Some("the timestamp of its log entry is not signed")),
        (
            log.annotation(&Log::hashedrekord(&other_payload, &key.sign(&other_payload), &key.pem()), NOW),
            Some("its log entry is about another content"),
        ),
        (
            log.annotation(&Log::hashedrekord(&payload, &key.sign(&payload), &key.pem()), NOW),
            Some("its log entry is about another signature"),
        ),
        (
            log.annotation(&Log::hashedrekord(&payload, &signature, &Key::new().pem()), NOW),
            Some("its log entry is about another signer"),
        ),
        (log.annotation(&Log::dsse(&payload, &signature, &key.pem()), NOW), Some("is of kind \"dsse 0.0.1\"")),
    ] {
        let mut sources = Memory::default();
        let annotations = with(annotations.clone(), "dev.sigstore.cosign/bundle", json!(entry));
        sources.tag(&subject.digest, &[(payload.clone(), annotations)]);
        match expected {
            None => drop(accept(requirement.clone(), &subject.single(), &sources).await),
            Some(reason) => {
                let refusal = refuse(requirement.clone(), &subject.single(), &sources).await;
                assert!(refusal.contains(reason), "{reason:?} is not in {refusal}");
            }
        }
    }
}

/// What a keyless signer makes.
struct Keyless {
    payload: Vec<u8>,
    key: Key,
    certificate: String,
    authority: Fulcio,
    log: Log,
}

impl Keyless {
    fn new(subject: &Pulled, san: rcgen::SanType, issuer: &str) -> Self {
        let (key, authority) = (Key::new(), Fulcio::new());
        let certificate = authority.certify(&key, san, issuer, NOW - 5000);
        Self { payload: payload(NAME, &subject.digest), key, certificate, authority, log: Log::new() }
    }

    fn requirement(&self) -> Value {
        json!({"type": "sigstoreSigned", "rekorPublicKeyData": BASE64_STANDARD.encode(self.log.key.pem()),
               "fulcio": {"caData": BASE64_STANDARD.encode(&self.authority.root), "oidcIssuer": ISSUER,
                          "subjectEmail": SUBJECT}})
    }

    /// The signature, logged at a time.
    fn sources(&self, subject: &Pulled, time: u64) -> Memory {
        let signature = self.key.sign(&self.payload);
        let record = Log::hashedrekord(&self.payload, &signature, &self.certificate);
        let mut sources = Memory::default();
        let annotations = json!({"dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(&signature),
            "dev.sigstore.cosign/certificate": self.certificate, "dev.sigstore.cosign/chain": self.authority.intermediate,
            "dev.sigstore.cosign/bundle": self.log.annotation(&record, time)});
        sources.tag(&subject.digest, &[(self.payload.clone(), annotations)]);
        sources
    }
}

#[tokio::test]
async fn a_keyless_signature_counts_long_after_its_certificate_expired() {
    let subject = Pulled::new("registry.example/team/app:v1");
    let keyless = Keyless::new(&subject, email(SUBJECT), ISSUER);
    let signer = accept(keyless.requirement(), &subject.single(), &keyless.sources(&subject, NOW - 4900)).await;
    assert!(signer.ends_with("by dev@example.org of https://accounts.example"), "{signer}");
}

#[tokio::test]
async fn a_certificate_that_was_used_too_late_or_too_early_is_refused() {
    let subject = Pulled::new("registry.example/team/app:v1");
    let keyless = Keyless::new(&subject, email(SUBJECT), ISSUER);
    for time in [NOW - 5001, NOW - 4000, NOW] {
        let refusal = refuse(keyless.requirement(), &subject.single(), &keyless.sources(&subject, time)).await;
        assert!(refusal.contains("doesn't lead to a configured authority at the time of signing"), "{refusal}");
    }
}

#[tokio::test]
async fn a_keyless_signature_by_another_identity_is_refused() {
    let subject = Pulled::new("registry.example/team/app:v1");
    for (san, issuer, reason) in [
        (email("mallory@example.org"), ISSUER, "names \"mallory@example.org\", not \"dev@example.org\""),
        (email(SUBJECT), "https://else.example", "names the issuer \"https://else.example, https://else.example\""),
    ] {
        let keyless = Keyless::new(&subject, san, issuer);
        let refusal = refuse(keyless.requirement(), &subject.single(), &keyless.sources(&subject, NOW - 4900)).await;
        assert!(refusal.contains(reason), "{refusal}");
    }
}

#[tokio::test]
async fn a_workflow_is_an_identity_too() {
    let subject = Pulled::new("registry.example/team/app:v1");
    const WORKFLOW: &str = "https://git.example/team/app/.workflows/release.yml@refs/heads/main";
    let keyless = Keyless::new(&subject, rcgen::SanType::URI(WORKFLOW.try_into().unwrap()), ISSUER);
    let mut requirement = keyless.requirement();
    requirement["fulcio"]["subjectEmail"] = json!(WORKFLOW);
    accept(requirement, &subject.single(), &keyless.sources(&subject, NOW - 4900)).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let subject = Pulled::new("registry.example/team/app:v1");
    let keyless = Keyless::new(&subject, email(SUBJECT), ISSUER);
    let mut requirement = keyless.requirement();
    requirement["fulcio"]["caData"] = json!(BASE64_STANDARD.encode(Fulcio::new().root));
    let refusal = refuse(requirement, &subject.single(), &keyless.sources(&subject, NOW - 4900)).await;
    assert!(refusal.contains("doesn't lead to a configured authority"), "{refusal}");
}

#[tokio::test]
async fn a_certificate_of_an_own_authority_is_checked_at_the_present_time() {
    let subject = Pulled::new("registry.example/team/app:v1");
    let (key, authority) = (Key::new(), Fulcio::new());
    let payload = payload(NAME, &subject.digest);
    let requirement = json!({"type": "sigstoreSigned", "pki": {
        "caRootsData": BASE64_STANDARD.encode(&authority.root),
        "caIntermediatesData": BASE64_STANDARD.encode(&authority.intermediate), "subjectEmail": SUBJECT}});
    let certify = |san, from| authority.certify(&key, san, ISSUER, from);
    let of_a_server = rcgen::ExtendedKeyUsagePurpose::ServerAuth;
    for (certificate, expected) in [
        (certify(email(SUBJECT), NOW - 60), None),
        (certify(email(SUBJECT), NOW - 6000), Some("doesn't lead to a configured authority")),
        (certify(email("other@example.org"), NOW - 60), Some("names \"other@example.org\"")),
        (
            authority.certify_for(&key, email(SUBJECT), ISSUER, NOW - 60, of_a_server),
            Some("doesn't lead to a configured authority"),
        ),
    ] {
        let mut sources = Memory::default();
        let annotations = with(key.annotate(&payload), "dev.sigstore.cosign/certificate", json!(certificate));
        sources.tag(&subject.digest, &[(payload.clone(), annotations)]);
        match expected {
            None => drop(accept(requirement.clone(), &subject.single(), &sources).await),
            Some(reason) => {
                let refusal = refuse(requirement.clone(), &subject.single(), &sources).await;
                assert!(refusal.contains(reason), "{refusal}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_certificate_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), place: prop::sample::Index, byte: u8) {
        use rustls_pki_types::pem::PemObject as _;
        static MADE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let made = MADE.get_or_init(|| {
            let pem = Fulcio::new().certify(&Key::new(), email(SUBJECT), ISSUER, NOW);
            CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
        });
        let mut changed = made.clone();
        changed[place.index(made.len())] = byte;
        for certificate in [CertificateDer::from(bytes), CertificateDer::from(changed)] {
            let _ = certificate::key(&certificate);
            let _ = certificate::expect_identity(&certificate, ISSUER, SUBJECT);
            let _ = certificate::expect_subject(&certificate, Some(SUBJECT), Some("host.example"));
        }
    }
}
