//! The older form: a layer is the payload, and annotations of its descriptor are all the rest.

use std::collections::HashMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::log::{Entry, Record};
use super::{Candidate, SigstoreError};
use crate::payload::{Payload, PayloadType};

/// Takes a signature apart.
pub(super) fn candidate(payload: Vec<u8>, annotations: &HashMap<String, String>) -> Result<Candidate, SigstoreError> {
    let signature = annotations.get(SIGNATURE).ok_or(SigstoreError::NoAnnotation(SIGNATURE))?;
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| SigstoreError::Annotation(SIGNATURE))?;
    let Payload { name, digest } = Payload::parse(&payload, PayloadType::Cosign)?;
    let certificate = certificates(annotations, CERTIFICATE)?.into_iter().next();
    let chain = certificates(annotations, CHAIN)?;
    let entry = annotations.get(LOG_ENTRY).filter(|json| !json.is_empty());
    let entry = entry.map(|json| Entry::from_annotation(json)).transpose();
    let entries = entry.map_err(|_| SigstoreError::Annotation(LOG_ENTRY))?.into_iter().collect();
    Ok(Candidate {
        recorded: Record::Message(payload.clone()),
        message: payload,
        signature,
        certificate,
        chain,
        entries,
        digests: vec![digest],
        name: Some(name),
    })
}

fn certificates(
    annotations: &HashMap<String, String>,
    name: &'static str,
) -> Result<Vec<CertificateDer<'static>>, SigstoreError> {
    let pem = annotations.get(name).map(String::as_bytes).unwrap_or_default();
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(MAX_CHAIN).collect();
    parsed.map_err(|_| SigstoreError::Annotation(name))
}

const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";
const LOG_ENTRY: &str = "dev.sigstore.cosign/bundle";
const MAX_CHAIN: usize = 8;
