//! Entries of a transparency log: proofs that the log took an entry, and whether the entry is about a signature.
//!
//! A log proves an entry by a signed entry timestamp, which also says when, or by a way up its Merkle tree to a signed
//! checkpoint, which doesn't. Where an entry has both, both must hold.
//!
//! Source: Rekor's API 1 (entry kinds hashedrekord and dsse 0.0.1), RFC 9162 section 2.1.3.2, C2SP signed-note.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::certificate;
use crate::key::PublicKey;

/// What a log has taken, with its proofs.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) body: Vec<u8>,
    /// Seconds since 1970.
    pub(super) integrated_time: u64,
    pub(super) log_id: Vec<u8>,
    pub(super) log_index: u64,
    pub(super) timestamp: Option<Vec<u8>>,
    pub(super) proof: Option<Proof>,
}

/// The way from an entry up to the root of the log's tree.
#[derive(Clone, Debug)]
pub(super) struct Proof {
    pub(super) index: u64,
    pub(super) size: u64,
    pub(super) hashes: Vec<Vec<u8>>,
    pub(super) checkpoint: String,
}

/// What an entry must be about.
#[derive(Clone, Debug)]
pub(super) enum Record {
    /// A signature over these bytes.
    Message(Vec<u8>),
    /// An envelope with this payload.
    Envelope(Vec<u8>),
}

impl Entry {
    /// Parses the annotation with which cosign stores an entry.
    pub(super) fn from_annotation(json: &str) -> Result<Self, LogError> {
        let fields: Annotation = serde_json::from_str(json).map_err(|e| LogError::Form(e.to_string()))?;
        Ok(Self {
            body: base64(&fields.payload.body)?,
            integrated_time: fields.payload.integrated_time,
            log_id: hex::decode(&fields.payload.log_id).map_err(|e| LogError::Form(e.to_string()))?,
            log_index: fields.payload.log_index,
            timestamp: Some(base64(&fields.signed_entry_timestamp)?),
            proof: None,
        })
    }

    /// Checks that a log with one of `keys` has taken this entry, and that it is about `signature` over `record` by the
    /// key `spki`. Says when, if the log vouches for that.
    pub(super) fn verify(
        &self,
        keys: &[PublicKey],
        record: &Record,
        signature: &[u8],
        spki: &[u8],
    ) -> Result<Option<SystemTime>, LogError> {
        let log = hex::encode(&self.log_id);
        let key = keys.iter().find(|key| key.id() == log).ok_or(LogError::UnknownLog(log))?;
        let time = match &self.timestamp {
            Some(timestamp) if key.verifies(self.canonical().as_bytes(), timestamp) => {
                let time = UNIX_EPOCH.checked_add(Duration::from_secs(self.integrated_time));
                Some(time.ok_or(LogError::Timestamp)?)
            }
            Some(_) => return Err(LogError::Timestamp),
            None => None,
        };
        match &self.proof {
            Some(proof) => proof.verify(&self.body, key)?,
            None if time.is_none() => return Err(LogError::Unproven),
            None => {}
        }
        self.expect(record, signature, spki)?;
        Ok(time)
    }

    /// The text that a signed entry timestamp signs, as RFC 8785 orders it.
    fn canonical(&self) -> String {
        format!(
            r#"{{"body":"{}","integratedTime":{},"logID":"{}","logIndex":{}}}"#,
            BASE64_STANDARD.encode(&self.body),
            self.integrated_time,
            hex::encode(&self.log_id),
            self.log_index
        )
    }

    fn expect(&self, record: &Record, signature: &[u8], spki: &[u8]) -> Result<(), LogError> {
        let body: Body = serde_json::from_slice(&self.body).map_err(|e| LogError::Form(e.to_string()))?;
        let (hash, content, recorded) = match (&*body.kind, &*body.api_version, record) {
            ("hashedrekord", "0.0.1", Record::Message(content)) => {
                let spec: HashedRekord = spec(body.spec)?;
                (spec.data.hash, content, vec![(spec.signature.content, spec.signature.public_key.content)])
            }
            ("dsse", "0.0.1", Record::Envelope(content)) => {
                let spec: Dsse = spec(body.spec)?;
                let signatures = spec.signatures.into_iter().map(|it| (it.signature, it.verifier));
                (spec.payload_hash, content, signatures.collect())
            }
            _ => return Err(LogError::Kind(format!("{} {}", body.kind, body.api_version))),
        };
        if hash.value != hex_digest(&hash.algorithm, content)? {
            return Err(LogError::Other("content"));
        }
        let [(recorded, signer)] = &recorded[..] else { return Err(LogError::Other("signatures")) };
        if base64(recorded)? != signature {
            return Err(LogError::Other("signature"));
        }
        match key_of(&base64(signer)?)?.spki() == spki {
            true => Ok(()),
            false => Err(LogError::Other("signer")),
        }
    }
}

impl Proof {
    fn verify(&self, body: &[u8], key: &PublicKey) -> Result<(), LogError> {
        let (text, signatures) = self.checkpoint.split_once("\n\n").ok_or(LogError::Checkpoint)?;
        let text = format!("{text}\n");
        let mut lines = text.lines();
        let (size, root) = (lines.nth(1), lines.next());
        let size: u64 = size.and_then(|size| size.parse().ok()).ok_or(LogError::Checkpoint)?;
        let root = base64(root.ok_or(LogError::Checkpoint)?)?;
        let signed = signatures.lines().take(MAX_NOTE_SIGNATURES).any(|line| {
            let signature = line.strip_prefix("\u{2014} ").and_then(|line| line.rsplit_once(' '));
            let signature = signature.and_then(|(_, signature)| BASE64_STANDARD.decode(signature).ok());
            // The first four bytes are a hint at the key.
            signature.is_some_and(|it| it.get(4..).is_some_and(|signature| key.verifies(text.as_bytes(), signature)))
        });
        match signed {
            true if size == self.size && self.root(body).is_some_and(|found| found == root) => Ok(()),
            true => Err(LogError::Inclusion),
            false => Err(LogError::Checkpoint),
        }
    }

    /// The root to which the way leads, `None` if it is not a way in a tree of that size.
    fn root(&self, body: &[u8]) -> Option<Vec<u8>> {
        if self.index >= self.size {
            return None;
        }
        let (mut node, mut last) = (self.index, self.size - 1);
        let mut hash = hash(&[&[0], body]);
        for sibling in &self.hashes {
            if last == 0 {
                return None;
            }
            if node & 1 == 1 || node == last {
                hash = self::hash(&[&[1], sibling, &hash]);
                while node & 1 == 0 && node != 0 {
                    (node, last) = (node >> 1, last >> 1);
                }
            } else {
                hash = self::hash(&[&[1], &hash, sibling]);
            }
            (node, last) = (node >> 1, last >> 1);
        }
        (last == 0).then_some(hash)
    }
}

/// Why a log does not vouch for a signature.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum LogError {
    #[error("it comes with no log entry")]
    Missing,
    #[error("its log entry is not of the expected form: {0}")]
    Form(String),
    #[error("its log entry is of a log whose key the policy doesn't have: {0}")]
    UnknownLog(String),
    #[error("the timestamp of its log entry is not signed by the log")]
    Timestamp,
    #[error("its log entry has neither timestamp nor proof of inclusion")]
    Unproven,
    #[error("the checkpoint of its log entry is not signed by the log")]
    Checkpoint,
    #[error("its log entry is not in the tree of the checkpoint")]
    Inclusion,
    #[error("its log entry is of kind {0:?}, which doesn't record such a signature")]
    Kind(String),
    #[error("its log entry is about another {0}")]
    Other(&'static str),
    #[error("its log entry has no signed time, so that nothing tells when the certificate was used")]
    NoTime,
}

#[derive(Deserialize)]
struct Annotation {
    #[serde(rename = "SignedEntryTimestamp")]
    signed_entry_timestamp: String,
    #[serde(rename = "Payload")]
    payload: AnnotationPayload,
}

#[derive(Deserialize)]
struct AnnotationPayload {
    body: String,
    #[serde(rename = "integratedTime")]
    integrated_time: u64,
    #[serde(rename = "logIndex")]
    log_index: u64,
    #[serde(rename = "logID")]
    log_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    api_version: String,
    kind: String,
    spec: serde_json::Value,
}

#[derive(Deserialize)]
struct HashedRekord {
    data: Data,
    signature: RecordedSignature,
}

#[derive(Deserialize)]
struct Data {
    hash: RecordedHash,
}

#[derive(Deserialize)]
struct RecordedHash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RecordedSignature {
    content: String,
    public_key: RecordedKey,
}

#[derive(Deserialize)]
struct RecordedKey {
    content: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dsse {
    payload_hash: RecordedHash,
    signatures: Vec<DsseSignature>,
}

#[derive(Deserialize)]
struct DsseSignature {
    signature: String,
    verifier: String,
}

fn spec<T: DeserializeOwned>(spec: serde_json::Value) -> Result<T, LogError> {
    serde_json::from_value(spec).map_err(|e| LogError::Form(e.to_string()))
}

/// The key of a signer, whom an entry names by a key or a certificate in PEM.
fn key_of(pem: &[u8]) -> Result<PublicKey, LogError> {
    match CertificateDer::from_pem_slice(pem) {
        Ok(certificate) => certificate::key(&certificate).map_err(|e| LogError::Form(e.to_string())),
        Err(_) => PublicKey::parse_pem(pem).map_err(LogError::Form)?.pop().ok_or(LogError::Other("signer")),
    }
}

fn hex_digest(algorithm: &str, content: &[u8]) -> Result<String, LogError> {
    let algorithm = match algorithm {
        "sha256" => &digest::SHA256,
        "sha384" => &digest::SHA384,
        "sha512" => &digest::SHA512,
        _ => return Err(LogError::Form(format!("the hash algorithm {algorithm:?} is not known"))),
    };
    Ok(hex::encode(digest::digest(algorithm, content)))
}

fn hash(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = digest::Context::new(&digest::SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}

fn base64(text: &str) -> Result<Vec<u8>, LogError> {
    BASE64_STANDARD.decode(text).map_err(|e| LogError::Form(e.to_string()))
}

/// The log's own signature and those of its witnesses.
const MAX_NOTE_SIGNATURES: usize = 32;

#[cfg(test)]
pub(super) mod tests;
