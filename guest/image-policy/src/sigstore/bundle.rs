//! The newer form: a bundle has the signature and all that proves it, as one JSON document.
//!
//! A bundle signs either the manifest itself or a statement about it. Of statements only cosign's own says that its
//! signer stands behind the image; what others say, such as where it was built or what it contains, is no signature.
//!
//! Source: sigstore's protobuf specifications, bundle 0.1 to 0.3 as ProtoJSON; DSSE 1.0; in-toto statement 0.1 and 1.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use oci_spec::image::Digest;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Deserializer, de};

use super::log::{Entry, Proof, Record};
use super::{Candidate, SigstoreError};
use crate::check::has_digest;

/// Takes a bundle apart that refers to the manifest or index `digest`, whose bytes are `content` if they are at hand.
pub(super) fn candidate(json: &[u8], digest: &Digest, content: Option<&[u8]>) -> Result<Candidate, SigstoreError> {
    let bundle: Bundle = serde_json::from_slice(json).map_err(|e| BundleError::Form(e.to_string()))?;
    if !bundle.media_type.starts_with(MEDIA_TYPE) {
        return Err(BundleError::MediaType(bundle.media_type).into());
    }
    let material = bundle.verification_material;
    let certificates = material.certificate.into_iter();
    let chain = material.x509_certificate_chain.into_iter().flat_map(|chain| chain.certificates);
    let mut certificates = certificates.chain(chain).map(|it| CertificateDer::from(it.raw_bytes.0));
    let (certificate, chain) = (certificates.next(), certificates.take(MAX_CHAIN).collect());
    let entries = material.tlog_entries.into_iter().take(MAX_ENTRIES).map(Entry::from).collect();
    match (bundle.message_signature, bundle.dsse_envelope) {
        (Some(signed), None) => {
            let content = content.ok_or(BundleError::NoContent)?;
            if let Some(said) = signed.message_digest
                && !said.is_of(content)
            {
                return Err(BundleError::OtherContent.into());
            }
            Ok(Candidate {
                message: content.to_vec(),
                recorded: Record::Message(content.to_vec()),
                signature: signed.signature.0,
                certificate,
                chain,
                entries,
                digests: vec![digest.clone()],
                name: None,
            })
        }
        (None, Some(envelope)) => {
            let [signature] = <[EnvelopeSignature; 1]>::try_from(envelope.signatures)
                .map_err(|signatures| BundleError::Signatures(signatures.len()))?;
            let statement = Statement::parse(&envelope.payload_type, &envelope.payload.0)?;
            Ok(Candidate {
                message: pre_authentication_encoding(&envelope.payload_type, &envelope.payload.0),
                recorded: Record::Envelope(envelope.payload.0),
                signature: signature.sig.0,
                certificate,
                chain,
                entries,
                digests: statement.digests()?,
                name: statement.name(),
            })
        }
        _ => Err(BundleError::Content.into()),
    }
}

/// Why a bundle is no signature of an image.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("it is not a bundle: {0}")]
    Form(String),
    #[error("it is of type {0:?}, which is no bundle")]
    MediaType(String),
    #[error("it has neither a message's signature nor an envelope, or both")]
    Content,
    #[error("its envelope has {0} signatures, not one")]
    Signatures(usize),
    #[error("its envelope contains {0:?}, not a statement")]
    PayloadType(String),
    #[error("its statement is not of the expected form: {0}")]
    Statement(String),
    #[error("it is a statement of type {0:?} about the image, not a signature of it")]
    Predicate(String),
    #[error("it is a signature over another document")]
    OtherContent,
    #[error("what it signs can't be had")]
    NoContent,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    message_signature: Option<MessageSignature>,
    dsse_envelope: Option<Envelope>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    certificate: Option<Certificate>,
    x509_certificate_chain: Option<Chain>,
    #[serde(default)]
    tlog_entries: Vec<TlogEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Certificate {
    raw_bytes: Bytes,
}

#[derive(Deserialize)]
struct Chain {
    certificates: Vec<Certificate>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TlogEntry {
    #[serde(default)]
    log_index: Integer,
    log_id: LogId,
    #[serde(default)]
    integrated_time: Integer,
    inclusion_promise: Option<Promise>,
    inclusion_proof: Option<InclusionProof>,
    canonicalized_body: Bytes,
}

impl From<TlogEntry> for Entry {
    fn from(entry: TlogEntry) -> Self {
        Self {
            body: entry.canonicalized_body.0,
            integrated_time: entry.integrated_time.0,
            log_id: entry.log_id.key_id.0,
            log_index: entry.log_index.0,
            timestamp: entry.inclusion_promise.map(|promise| promise.signed_entry_timestamp.0),
            proof: entry.inclusion_proof.map(|proof| Proof {
                index: proof.log_index.0,
                size: proof.tree_size.0,
                hashes: proof.hashes.into_iter().map(|hash| hash.0).collect(),
                checkpoint: proof.checkpoint.envelope,
            }),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LogId {
    key_id: Bytes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Promise {
    signed_entry_timestamp: Bytes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct InclusionProof {
    #[serde(default)]
    log_index: Integer,
    tree_size: Integer,
    #[serde(default)]
    hashes: Vec<Bytes>,
    checkpoint: Checkpoint,
}

#[derive(Deserialize)]
struct Checkpoint {
    envelope: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageSignature {
    message_digest: Option<MessageDigest>,
    signature: Bytes,
}

#[derive(Deserialize)]
struct MessageDigest {
    algorithm: String,
    digest: Bytes,
}

impl MessageDigest {
    fn is_of(&self, content: &[u8]) -> bool {
        let name = match &*self.algorithm {
            "SHA2_256" => "sha256",
            "SHA2_384" => "sha384",
            "SHA2_512" => "sha512",
            _ => return false,
        };
        format!("{name}:{}", hex::encode(&self.digest.0)).parse().is_ok_and(|digest| has_digest(content, &digest))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: Bytes,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Deserialize)]
struct EnvelopeSignature {
    sig: Bytes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: BTreeMap<String, String>,
}

impl Statement {
    fn parse(payload_type: &str, payload: &[u8]) -> Result<Self, BundleError> {
        if payload_type != STATEMENT_TYPE {
            return Err(BundleError::PayloadType(payload_type.to_owned()));
        }
        let statement: Self = serde_json::from_slice(payload).map_err(|e| BundleError::Statement(e.to_string()))?;
        if !STATEMENTS.contains(&&*statement.kind) {
            return Err(BundleError::Statement(format!("it is of type {:?}", statement.kind)));
        }
        match statement.predicate_type == SIGN_PREDICATE {
            true => Ok(statement),
            false => Err(BundleError::Predicate(statement.predicate_type)),
        }
    }

    fn digests(&self) -> Result<Vec<Digest>, BundleError> {
        let known = |(name, _): &(&String, &String)| matches!(&***name, "sha256" | "sha384" | "sha512");
        let digests = self.subject.iter().flat_map(|subject| subject.digest.iter().filter(known));
        digests
            .map(|(name, value)| format!("{name}:{value}").parse())
            .collect::<Result<_, _>>()
            .map_err(|e| BundleError::Statement(format!("a subject's digest: {e}")))
    }

    /// The image's name, if there is one image and it has one.
    fn name(&self) -> Option<String> {
        match &self.subject[..] {
            [subject] if !subject.name.is_empty() => Some(subject.name.clone()),
            _ => None,
        }
    }
}

/// Bytes, which ProtoJSON writes as base64.
struct Bytes(Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Self).map_err(de::Error::custom)
    }
}

/// A 64-bit number, which ProtoJSON writes as text.
#[derive(Default)]
struct Integer(u64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u64),
            Text(String),
        }

        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(Self(number)),
            Form::Text(text) => text.parse().map(Self).map_err(de::Error::custom),
        }
    }
}

/// What is signed of an envelope.
fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle";
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1"];
const SIGN_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
const MAX_CHAIN: usize = 8;
const MAX_ENTRIES: usize = 8;

#[cfg(test)]
mod tests;
