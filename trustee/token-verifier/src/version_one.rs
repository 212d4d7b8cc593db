//! Signers' certificates of X.509 version 1, in a form in which webpki verifies whether they were issued.

use std::borrow::Cow;

use rustls::pki_types::{AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm};
use webpki::ALL_VERIFICATION_ALGS;
use x509_parser::asn1_rs::{Sequence, ToDer as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

/// A certificate of version 1, which is what `openssl x509 -req` makes where it is given no extensions.
///
/// It says as much as one of version 3 without extensions, and webpki is shown such a one in its stead: it then judges
/// names, times and the CAs above as it does of any signer. Only the signature is verified over what was signed.
pub(crate) struct VersionOne {
    /// The certificate as one of version 3.
    pub shown: CertificateDer<'static>,
    shown_body: Vec<u8>,
    signed_body: Vec<u8>,
}

/// An algorithm that verifies the signature of one certificate over the form in which it was signed.
#[derive(Debug)]
pub(crate) struct AsSigned<'a> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    shown_body: &'a [u8],
    signed_body: &'a [u8],
}

impl VersionOne {
    /// Takes a certificate of version 1; none if it is malformed.
    pub fn new(certificate: &CertificateDer<'_>, parsed: &X509Certificate<'_>) -> Option<Self> {
        let signed_body: &[u8] = parsed.tbs_certificate.as_ref();
        let whole = contents(certificate)?;
        let signature = whole.strip_prefix(signed_body)?;
        let shown_body = sequence(&[&VERSION_3, &contents(signed_body)?])?;
        let shown = CertificateDer::from(sequence(&[&shown_body, signature])?);
        Some(Self { shown, shown_body, signed_body: signed_body.to_vec() })
    }

    /// The algorithms to verify the shown certificate with, and those above it.
    pub fn algorithms(&self) -> Vec<AsSigned<'_>> {
        let Self { shown_body, signed_body, .. } = self;
        ALL_VERIFICATION_ALGS.iter().map(|&algorithm| AsSigned { algorithm, shown_body, signed_body }).collect()
    }
}

impl SignatureVerificationAlgorithm for AsSigned<'_> {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let message = if message == self.shown_body { self.signed_body } else { message };
        self.algorithm.verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

/// The contents of a sequence that is encoded in the one way in which DER has it, which parsers don't insist on.
fn contents(der: &[u8]) -> Option<Cow<'_, [u8]>> {
    let (_, Sequence { content }) = Sequence::from_der(der).ok()?;
    (sequence(&[&content])? == der).then_some(content)
}

fn sequence(parts: &[&[u8]]) -> Option<Vec<u8>> {
    Sequence::new(parts.concat().into()).to_der_vec().ok()
}

/// `version [0] EXPLICIT INTEGER`, which is left out where it is 1 (RFC 5280 section 4.1).
const VERSION_3: [u8; 5] = [0xa0, 3, 2, 1, 2];
