//! What the tests sign with and where they put it: sources in memory, keys, a certificate authority and a log of their own.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, Digest};
use pgp::composed::{KeyType, MessageBuilder, SecretKeyParamsBuilder, SignedSecretKey, SubkeyParamsBuilder};
use pgp::crypto::ecc_curve::ECCCurve;
use pgp::crypto::hash::HashAlgorithm;
use pgp::ser::Serialize as _;
use pgp::types::{Password, SigningKey, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use serde_json::{Value, json};

use crate::sources::{Document, Image, SignatureSources, SourceError};

/// The clock of all tests: 2026-01-01.
pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

pub(crate) const NOW: u64 = 1_767_225_600;

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(digest(&SHA256, bytes))).parse().unwrap()
}

/// An image with its manifest and an index.
pub(crate) struct Pulled {
    pub(crate) reference: Reference,
    pub(crate) manifest: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) index: Vec<u8>,
    pub(crate) index_digest: Digest,
}

impl Pulled {
    pub(crate) fn new(reference: &str) -> Self {
        let (manifest, index) = (br#"{"schemaVersion":2}"#.to_vec(), br#"{"schemaVersion":2,"manifests":[]}"#.to_vec());
        Self {
            reference: reference.parse().unwrap(),
            digest: digest_of(&manifest),
            index_digest: digest_of(&index),
            manifest,
            index,
        }
    }

    /// The image as it is pulled through its index.
    pub(crate) fn image(&self) -> Image<'_> {
        Image { index_digest: Some(&self.index_digest), ..self.single() }
    }

    /// The image as it is pulled without an index.
    pub(crate) fn single(&self) -> Image<'_> {
        Image {
            reference: &self.reference,
            manifest_digest: &self.digest,
            index_digest: None,
            manifest_bytes: &self.manifest,
        }
    }
}

/// Everything that a policy may ask for, in memory.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) documents: HashMap<String, Vec<u8>>,
    pub(crate) lookaside: HashMap<String, Vec<u8>>,
    /// The URLs that a lookaside store refuses to answer; `referrers` for the registry's list.
    pub(crate) refused: Vec<String>,
    pub(crate) manifests: HashMap<String, Vec<u8>>,
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) referrers: HashMap<String, Vec<Descriptor>>,
    pub(crate) broken: bool,
}

#[async_trait]
impl SignatureSources for Memory {
    async fn document(&self, uri: &str) -> Result<Vec<u8>, SourceError> {
        self.documents.get(uri).cloned().ok_or_else(|| "there is no such document".into())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, SourceError> {
        match self.refused.iter().any(|refused| refused == url) {
            true => Err("the store answers 403".into()),
            false => Ok(self.lookaside.get(url).cloned()),
        }
    }

    async fn manifest(&self, version: &str) -> Result<Option<Document>, SourceError> {
        if self.broken {
            return Err("the registry is down".into());
        }
        let bytes = self.manifests.get(version).cloned();
        Ok(bytes.map(|bytes| Document { media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(), bytes }))
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        self.blobs.get(&digest.to_string()).cloned().ok_or_else(|| "there is no such blob".into())
    }

    async fn referrers(&self, digest: &Digest, _artifact_type: &str) -> Result<Vec<Descriptor>, SourceError> {
        if self.refused.iter().any(|refused| refused == "referrers") {
            return Err("the registry answers 405".into());
        }
        Ok(self.referrers.get(&digest.to_string()).cloned().unwrap_or_default())
    }
}

impl Memory {
    /// Puts signatures of the older form beside a digest, each a payload with its annotations.
    pub(crate) fn tag(&mut self, digest: &Digest, signatures: &[(Vec<u8>, Value)]) {
        let layers = signatures.iter().map(|(payload, annotations)| {
            self.blobs.insert(digest_of(payload).to_string(), payload.clone());
            json!({"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": payload.len(),
                   "digest": digest_of(payload), "annotations": annotations})
        });
        let manifest = manifest(layers.collect());
        self.manifests.insert(format!("sha256-{}.sig", digest.digest()), manifest);
    }

    /// Lets a bundle refer to a digest, by the registry's list or by the tag of registries without one.
    pub(crate) fn refer(&mut self, digest: &Digest, bundle: &Value, by_tag: bool) {
        let blob = serde_json::to_vec(bundle).unwrap();
        let layer = json!({"mediaType": BUNDLE, "size": blob.len(), "digest": digest_of(&blob)});
        self.blobs.insert(digest_of(&blob).to_string(), blob);
        let manifest = manifest(vec![layer]);
        let referrer = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": BUNDLE,
                              "size": manifest.len(), "digest": digest_of(&manifest)});
        self.manifests.insert(digest_of(&manifest).to_string(), manifest);
        if by_tag {
            let index = json!({"schemaVersion": 2, "manifests": [referrer]});
            self.manifests.insert(format!("sha256-{}", digest.digest()), serde_json::to_vec(&index).unwrap());
        } else {
            let listed = self.referrers.entry(digest.to_string()).or_default();
            listed.push(serde_json::from_value(referrer).unwrap());
        }
    }
}

fn manifest(layers: Vec<Value>) -> Vec<u8> {
    let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": digest_of(b"{}")});
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                          "config": config, "layers": layers});
    serde_json::to_vec(&manifest).unwrap()
}

/// cosign's payload for a digest.
pub(crate) fn payload(name: &str, digest: &Digest) -> Vec<u8> {
    let payload = json!({"critical": {"identity": {"docker-reference": name}, "image": {"docker-manifest-digest": digest},
                                      "type": "cosign container image signature"}, "optional": null});
    serde_json::to_vec(&payload).unwrap()
}

/// An OpenPGP key of 2025-06-01: a primary key that certifies, and a subkey.
pub(crate) fn openpgp_key(primary_signs: bool, subkey_signs: bool) -> SignedSecretKey {
    let created = Timestamp::from_secs(1_748_779_200);
    let subkey = SubkeyParamsBuilder::default()
        .key_type(KeyType::Ed25519Legacy)
        .can_sign(subkey_signs)
        .created_at(created)
        .build()
        .unwrap();
    let mut parameters = SecretKeyParamsBuilder::default();
    parameters.key_type(KeyType::ECDSA(ECCCurve::P256)).can_certify(true).can_sign(primary_signs).created_at(created);
    parameters.primary_user_id("somebody".to_owned()).subkeys(vec![subkey]);
    parameters.build().unwrap().generate(rand::thread_rng()).unwrap()
}

pub(crate) fn openpgp_public(key: &SignedSecretKey) -> Vec<u8> {
    key.to_public_key().to_bytes().unwrap()
}

/// A signed message, which rPGP dates by the machine's clock.
pub(crate) fn openpgp_message(key: &dyn SigningKey, document: &[u8]) -> Vec<u8> {
    let mut message = MessageBuilder::from_bytes("", document.to_vec());
    message.sign(key, Password::empty(), HashAlgorithm::Sha256);
    message.to_vec(rand::thread_rng()).unwrap()
}

/// A key on P-256.
pub(crate) struct Key {
    pair: rcgen::KeyPair,
    signer: EcdsaKeyPair,
}

impl Key {
    pub(crate) fn new() -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pair.serialize_der()).unwrap();
        Self { pair, signer }
    }

    pub(crate) fn pem(&self) -> String {
        self.pair.public_key_pem()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signer.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec()
    }

    /// Annotations with this key's signature over a payload.
    pub(crate) fn annotate(&self, payload: &[u8]) -> Value {
        json!({"dev.cosignproject.cosign/signature": BASE64_STANDARD.encode(self.sign(payload))})
    }
}

/// A certificate authority like Fulcio, with one certificate between its root and its signers.
pub(crate) struct Fulcio {
    pub(crate) root: String,
    pub(crate) intermediate: String,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Fulcio {
    pub(crate) fn new() -> Self {
        let authority = |name: &str| {
            let mut parameters = CertificateParams::new(Vec::new()).unwrap();
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
            (parameters.not_before, parameters.not_after) = (date(NOW - 1_000_000), date(NOW + 1_000_000));
            parameters
        };
        let (root_key, key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let root_parameters = authority("root");
        let root = root_parameters.self_signed(&root_key).unwrap().pem();
        let parameters = authority("intermediate");
        let intermediate = parameters.signed_by(&key, &Issuer::new(root_parameters, root_key)).unwrap().pem();
        Self { root, intermediate, issuer: Issuer::new(parameters, key) }
    }

    /// A certificate that is valid for ten minutes from `from`, in PEM.
    pub(crate) fn certify(&self, key: &Key, subject: SanType, issuer: &str, from: u64) -> String {
        self.certify_for(key, subject, issuer, from, ExtendedKeyUsagePurpose::CodeSigning)
    }

    pub(crate) fn certify_for(
        &self,
        key: &Key,
        subject: SanType,
        issuer: &str,
        from: u64,
        usage: ExtendedKeyUsagePurpose,
    ) -> String {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.subject_alt_names = vec![subject];
        parameters.extended_key_usages = vec![usage];
        (parameters.not_before, parameters.not_after) = (date(from), date(from + 600));
        let newer = [&[0x0c, u8::try_from(issuer.len()).unwrap()][..], issuer.as_bytes()].concat();
        parameters.custom_extensions = vec![
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 1], issuer.as_bytes().to_vec()),
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 57264, 1, 8], newer),
        ];
        parameters.signed_by(&key.pair, &self.issuer).unwrap().pem()
    }
}

pub(crate) fn email(address: &str) -> SanType {
    SanType::Rfc822Name(address.try_into().unwrap())
}

fn date(seconds: u64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
}

/// A transparency log like Rekor.
pub(crate) struct Log {
    pub(crate) key: Key,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self { key: Key::new() }
    }

    /// The identifier of the log.
    pub(crate) fn id(&self) -> Vec<u8> {
        let spki = rustls_pki_types::pem::PemObject::from_pem_slice(self.key.pem().as_bytes());
        let spki: rustls_pki_types::SubjectPublicKeyInfoDer<'_> = spki.unwrap();
        digest(&SHA256, &spki).as_ref().to_vec()
    }

    /// The record of a signature over bytes.
    pub(crate) fn hashedrekord(message: &[u8], signature: &[u8], signer: &str) -> Vec<u8> {
        let record = json!({"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
            "data": {"hash": {"algorithm": "sha256", "value": digest_of(message).digest()}},
            "signature": {"content": BASE64_STANDARD.encode(signature),
                          "publicKey": {"content": BASE64_STANDARD.encode(signer)}}}});
        serde_json::to_vec(&record).unwrap()
    }

    /// The record of an envelope.
    pub(crate) fn dsse(payload: &[u8], signature: &[u8], signer: &str) -> Vec<u8> {
        let record = json!({"apiVersion": "0.0.1", "kind": "dsse", "spec": {
            "envelopeHash": {"algorithm": "sha256", "value": "00"},
            "payloadHash": {"algorithm": "sha256", "value": digest_of(payload).digest()},
            "signatures": [{"signature": BASE64_STANDARD.encode(signature), "verifier": BASE64_STANDARD.encode(signer)}]}});
        serde_json::to_vec(&record).unwrap()
    }

    /// The log's signature over an entry and its time.
    pub(crate) fn timestamp(&self, body: &[u8], time: u64) -> Vec<u8> {
        let text = json!({"body": BASE64_STANDARD.encode(body), "integratedTime": time,
                          "logID": hex::encode(self.id()), "logIndex": 7});
        // serde_json orders keys as RFC 8785 does here.
        self.key.sign(text.to_string().as_bytes())
    }

    /// cosign's annotation with an entry.
    pub(crate) fn annotation(&self, body: &[u8], time: u64) -> String {
        let timestamp = BASE64_STANDARD.encode(self.timestamp(body, time));
        json!({"SignedEntryTimestamp": timestamp, "Payload": {"body": BASE64_STANDARD.encode(body),
               "integratedTime": time, "logIndex": 7, "logID": hex::encode(self.id())}})
        .to_string()
    }

    /// An entry of a bundle, with a timestamp if there is a time, and as the third leaf of a tree of five.
    pub(crate) fn entry(&self, body: &[u8], time: Option<u64>) -> Value {
        let leaf = |bytes: &[u8]| digest(&SHA256, &[&[0], bytes].concat()).as_ref().to_vec();
        let node = |left: &[u8], right: &[u8]| digest(&SHA256, &[&[1], left, right].concat()).as_ref().to_vec();
        let leaves = [leaf(b"a"), leaf(b"b"), leaf(body), leaf(b"d"), leaf(b"e")];
        let left = node(&leaves[0], &leaves[1]);
        let root = node(&node(&left, &node(&leaves[2], &leaves[3])), &leaves[4]);
        let note = format!("log.example - 1\n5\n{}\n", BASE64_STANDARD.encode(&root));
        let signature = BASE64_STANDARD.encode([&self.id()[..4], &self.key.sign(note.as_bytes())].concat());
        let hashes = [&leaves[3], &left, &leaves[4]].map(|hash| BASE64_STANDARD.encode(hash));
        let promise =
            time.map(|time| json!({"signedEntryTimestamp": BASE64_STANDARD.encode(self.timestamp(body, time))}));
        json!({"logIndex": "7", "logId": {"keyId": BASE64_STANDARD.encode(self.id())},
               "kindVersion": {"kind": "hashedrekord", "version": "0.0.1"},
               "integratedTime": time.unwrap_or(NOW).to_string(), "inclusionPromise": promise,
               "inclusionProof": {"logIndex": "2", "treeSize": "5", "rootHash": BASE64_STANDARD.encode(&root),
                                  "hashes": hashes,
                                  "checkpoint": {"envelope": format!("{note}\n\u{2014} log.example {signature}\n")}},
               "canonicalizedBody": BASE64_STANDARD.encode(body)})
    }
}

pub(crate) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
