//! Simple signing: an OpenPGP message over a payload, kept in a lookaside store.
//!
//! Source: containers-signature(5).

use std::time::SystemTime;

use crate::error::Failure;
use crate::identity::Name;
use crate::lookaside::{self, Lookaside};
use crate::openpgp::{OpenPgpError, Ring};
use crate::payload::{Payload, PayloadError, PayloadType};
use crate::policy::SignedBy;
use crate::sources::{Image, SignatureSources};

impl SignedBy {
    /// Looks for a signature by one of the keys; says which one and by whom.
    ///
    /// One good signature is enough, whatever lies beside it. Signatures of the index count like those of the manifest.
    pub(crate) async fn check(
        &self,
        image: &Image<'_>,
        lookaside: &Lookaside,
        sources: &dyn SignatureSources,
        now: SystemTime,
    ) -> Result<String, Vec<Failure>> {
        let mut ring = Ring::default();
        for material in &self.keys {
            let bytes = material.fetch(sources).await.map_err(|failure| vec![failure])?;
            ring.add(&bytes).map_err(|e| vec![Failure::Key { place: material.to_string(), cause: e.to_string() }])?;
        }
        let store = lookaside.store(image.reference);
        let store = store.ok_or_else(|| vec![Failure::NoStore(image.reference.whole())])?;
        let mut failures = Vec::new();
        for digest in image.digests() {
            let found = match lookaside::signatures(store, image.reference, digest, sources).await {
                Ok(found) => found,
                Err(failure) => {
                    failures.push(failure);
                    continue;
                }
            };
            for (place, message) in found {
                match self.accept(image, &ring, &message, now) {
                    Ok(signer) => return Ok(format!("{place}, by key {signer}")),
                    Err(cause) => failures.push(Failure::Simple { place, cause }),
                }
            }
        }
        if failures.is_empty() {
            failures.push(Failure::Unsigned(format!("in {store}")));
        }
        Err(failures)
    }

    fn accept(&self, image: &Image<'_>, ring: &Ring, message: &[u8], now: SystemTime) -> Result<String, SimpleError> {
        let signed = ring.verify(message, now)?;
        let payload = Payload::parse(&signed.content, PayloadType::Simple)?;
        if !image.digests().any(|digest| *digest == payload.digest) {
            return Err(SimpleError::Digest(payload.digest.to_string()));
        }
        match self.identity.accepts(&Name::of(image.reference), &payload.name()?) {
            true => Ok(signed.signer),
            false => Err(SimpleError::Identity(payload.name)),
        }
    }
}

/// Why a simple signature does not convince.
#[derive(Debug, thiserror::Error)]
pub enum SimpleError {
    #[error(transparent)]
    OpenPgp(#[from] OpenPgpError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error("it is for another image, {0}")]
    Digest(String),
    #[error("it names the image {0:?}, which the policy's signedIdentity doesn't accept here")]
    Identity(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::fixture::*;
    use crate::policy::Policy;
    use base64::prelude::{BASE64_STANDARD, Engine as _};
    use oci_spec::image::Digest;
    use pgp::composed::SignedSecretKey;
    use serde_json::json;
    use std::time::Duration;

    const STORE: &str = "https://lookaside.example/store/";

    /// The policy that asks for a signature by a key, with stores at [`STORE`].
    fn policy(key: &SignedSecretKey) -> Policy {
        let key = BASE64_STANDARD.encode(openpgp_public(key));
        let policy = json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyData": key}]});
        let lookaside = format!("default-docker:\n  lookaside: {STORE}\n");
        Policy::parse(policy.to_string().as_bytes()).unwrap().with_lookaside(lookaside.as_bytes()).unwrap()
    }

    fn payload(name: &str, digest: &Digest) -> Vec<u8> {
        let payload = json!({"critical": {"identity": {"docker-reference": name}, "type": "atomic container signature",
                                          "image": {"docker-manifest-digest": digest}}, "optional": {"creator": "test"}});
        serde_json::to_vec(&payload).unwrap()
    }

    fn place(digest: &Digest, number: usize) -> String {
        format!("https://lookaside.example/store/team/app@sha256={}/signature-{number}", digest.digest())
    }

    async fn check(policy: &Policy, image: &Image<'_>, sources: &Memory) -> Result<String, String> {
        match policy.check(image, sources, SystemTime::now() + Duration::from_secs(1)).await {
            Ok(verdict) => Ok(verdict.accepted[0].signer.clone().unwrap()),
            Err(Error::Refused(refusal)) => Err(refusal.to_string()),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_good_signature_counts_behind_bad_ones_and_for_the_index_too() {
        let (key, other, pulled) =
            (openpgp_key(true, false), openpgp_key(true, false), Pulled::new("registry.example/team/app:v1"));
        for digest in [&pulled.digest, &pulled.index_digest] {
            let document = payload("registry.example/team/app:v1", digest);
            let mut sources = Memory::default();
            sources.lookaside.insert(place(digest, 1), openpgp_message(&other.primary_key, &document));
            sources.lookaside.insert(place(digest, 2), b"no signature".to_vec());
            sources.lookaside.insert(place(digest, 3), openpgp_message(&key.primary_key, &document));
            let signer = check(&policy(&key), &pulled.image(), &sources).await.unwrap();
            assert!(signer.starts_with(&place(digest, 3)), "{signer}");
        }
    }

    #[tokio::test]
    async fn each_signature_is_refused_with_its_own_reason() {
        let (key, other, pulled) =
            (openpgp_key(true, false), openpgp_key(true, false), Pulled::new("registry.example/team/app:v1"));
        let good = payload("registry.example/team/app:v1", &pulled.digest);
        let cosigns = String::from_utf8(good.clone()).unwrap().replace("atomic container", "cosign container image");
        let outdated = payload("registry.example/team/app:v1", &digest_of(b"an older image"));
        let mut sources = Memory::default();
        for (index, message) in [
            openpgp_message(&other.primary_key, &good),
            openpgp_message(&key.primary_key, &payload("registry.example/team/app:v2", &pulled.digest)),
            openpgp_message(&key.primary_key, &outdated),
            openpgp_message(&key.primary_key, cosigns.as_bytes()),
            openpgp_message(&key.primary_key, b"a letter"),
            b"no signature".to_vec(),
        ]
        .into_iter()
        .enumerate()
        {
            sources.lookaside.insert(place(&pulled.digest, index + 1), message);
        }
        let refusal = check(&policy(&key), &pulled.image(), &sources).await.unwrap_err();
        for reason in [
            "signature-1: it is signed by a key that the policy doesn't have",
            "signature-2: it names the image \"registry.example/team/app:v2\"",
            "signature-3: it is for another image",
            "signature-4: its payload is of type \"cosign container image signature\"",
            "signature-5: its payload is not of the expected form",
            "signature-6: it is not a signed OpenPGP message",
        ] {
            assert!(refusal.contains(reason), "{reason:?} is not in {refusal}");
        }
    }

    #[tokio::test]
    async fn signatures_after_the_first_that_is_missing_are_not_looked_for() {
        let (key, pulled) = (openpgp_key(true, false), Pulled::new("registry.example/team/app:v1"));
        let document = payload("registry.example/team/app:v1", &pulled.digest);
        let mut sources = Memory::default();
        sources.lookaside.insert(place(&pulled.digest, 2), openpgp_message(&key.primary_key, &document));
        let refusal = check(&policy(&key), &pulled.image(), &sources).await.unwrap_err();
        assert!(refusal.contains(&format!("no signature was found in {STORE}")), "{refusal}");
    }

    #[tokio::test]
    async fn a_store_that_refuses_to_answer_for_the_index_may_have_the_manifests_signature() {
        let (key, pulled) = (openpgp_key(true, false), Pulled::new("registry.example/team/app:v1"));
        let document = payload("registry.example/team/app:v1", &pulled.digest);
        let mut sources = Memory { refused: vec![place(&pulled.index_digest, 1)], ..Memory::default() };
        let refusal = check(&policy(&key), &pulled.image(), &sources).await.unwrap_err();
        assert!(refusal.contains("signature-1 can't be had: the store answers 403"), "{refusal}");
        sources.lookaside.insert(place(&pulled.digest, 1), openpgp_message(&key.primary_key, &document));
        check(&policy(&key), &pulled.image(), &sources).await.unwrap();
    }

    #[tokio::test]
    async fn in_a_folder_every_file_counts() {
        let (key, pulled) = (openpgp_key(true, false), Pulled::new("registry.example/team/app:v1"));
        let store = tempfile::tempdir().unwrap();
        let folder = store.path().join(format!("team/app@sha256={}", pulled.digest.digest()));
        std::fs::create_dir_all(folder.join("a-folder")).unwrap();
        std::fs::write(folder.join("notes.txt"), "no signature").unwrap();
        let message = openpgp_message(&key.primary_key, &payload("registry.example/team/app:v1", &pulled.digest));
        std::fs::write(folder.join("signature-9"), message).unwrap();
        let lookaside = format!("docker:\n  registry.example:\n    sigstore: file://{}\n", store.path().display());
        let policy = policy(&key).with_lookaside(lookaside.as_bytes()).unwrap();
        let signer = check(&policy, &pulled.image(), &Memory::default()).await.unwrap();
        assert!(signer.contains("/signature-9, by key "), "{signer}");
    }

    #[tokio::test]
    async fn a_key_ring_that_is_none_is_named() {
        let pulled = Pulled::new("registry.example/team/app:v1");
        let mut sources = Memory::default();
        sources.documents.insert("/keys".to_owned(), b"no keys".to_vec());
        let policy = br#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/keys"}]}"#;
        let refusal = check(&Policy::parse(policy).unwrap(), &pulled.image(), &sources).await.unwrap_err();
        assert!(refusal.contains("the key /keys can't be used: it is not a ring of OpenPGP keys"), "{refusal}");
    }
}
