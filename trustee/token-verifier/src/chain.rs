//! Whether certificates that a token brings make its key one of a trusted signer.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use store::clock::Timestamp;
use webpki::{
    ALL_VERIFICATION_ALGS, EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert,
};
use x509_parser::certificate::{Validity, X509Certificate};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Version;

use crate::error::Error;
use crate::key::PublicKey;
use crate::version_one::VersionOne;

/// The certificates that an owner trusts: CAs that may vouch for signers, and signers themselves.
#[derive(Debug, PartialEq)]
pub(crate) struct Anchors(Vec<Anchor>);

#[derive(Debug, PartialEq)]
struct Anchor {
    certificate: CertificateDer<'static>,
    not_before: i64,
    not_after: i64,
    /// What is needed to verify others with it; none for the certificate of a signer.
    authority: Option<Authority>,
}

#[derive(Debug, PartialEq)]
struct Authority {
    anchor: TrustAnchor<'static>,
    /// How many CAs may stand between this one and a signer.
    path_length: Option<u32>,
}

impl Anchors {
    /// Reads the certificates of a PEM.
    ///
    /// # Errors
    /// What is wrong, if there are none, more than 256, or anything else among them.
    pub fn from_pem(text: &[u8]) -> Result<Self, &'static str> {
        let mut anchors = Vec::new();
        for block in Pem::iter_from_buffer(text) {
            let block = block.map_err(|_| "it is not PEM")?;
            if block.label != "CERTIFICATE" {
                return Err("it has something that is not a certificate");
            }
            anchors.push(Anchor::new(block.contents).ok_or("a certificate in it is malformed")?);
            if anchors.len() > MAX_ANCHORS {
                return Err("it has more than 256 certificates");
            }
        }
        if anchors.is_empty() { Err("it has no certificate in PEM") } else { Ok(Self(anchors)) }
    }
}

impl Anchor {
    fn new(der: Vec<u8>) -> Option<Self> {
        let certificate = CertificateDer::from(der);
        let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
        let Validity { not_before, not_after } = *parsed.validity();
        let constraints = parsed.basic_constraints().ok()?.map(|extension| extension.value);
        let signs = parsed.key_usage().ok()?.is_none_or(|extension| extension.value.key_cert_sign());
        let authority = match constraints {
            Some(constraints) if constraints.ca && signs => Some(Authority {
                anchor: anchor_from_trusted_cert(&certificate).ok()?.to_owned(),
                path_length: constraints.path_len_constraint,
            }),
            _ => None,
        };
        let (not_before, not_after) = (not_before.timestamp(), not_after.timestamp());
        Some(Self { certificate, not_before, not_after, authority })
    }

    fn is_valid(&self, now: Timestamp) -> bool {
        i64::try_from(now.unix()).is_ok_and(|now| (self.not_before..=self.not_after).contains(&now))
    }
}

/// Checks that a chain (`x5c`: the signer first) is of the key, and leads to a trusted certificate.
///
/// A trusted certificate itself needs no chain. What else a certificate may be used for does not matter: signers of
/// attestation tokens have no usage of their own, so a CA that is trusted here should issue to nobody else. The signer's
/// certificate may be of version 1; those of CAs have to be of version 3, as only there one says that it is a CA's.
///
/// # Errors
/// [`Error::Chain`].
pub(crate) fn check<'a>(
    x5c: &[String],
    key: &PublicKey,
    trusted: impl Iterator<Item = &'a Anchors> + Clone,
    now: Timestamp,
) -> Result<(), Error> {
    if x5c.is_empty() || x5c.len() > MAX_CHAIN {
        return Err(refused("it has no certificate, or more than 8"));
    }
    let chain: Vec<_> = x5c.iter().map(|text| decode(text)).collect::<Option<_>>().ok_or_else(malformed)?;
    let (signer, between) = chain.split_first().ok_or_else(malformed)?;
    let (rest, parsed) = X509Certificate::from_der(signer).map_err(|_| malformed())?;
    if !rest.is_empty() {
        return Err(malformed());
    }
    if PublicKey::from_spki(parsed.public_key()).as_ref() != Some(key) {
        return Err(refused("its first certificate is of another key"));
    }

    let anchors = trusted.flat_map(|anchors| &anchors.0).filter(|anchor| anchor.is_valid(now));
    if anchors.clone().any(|anchor| anchor.certificate == *signer) {
        return Ok(());
    }
    let time = ASN1Time::from_timestamp(now.unix().try_into().unwrap_or(i64::MAX)).map_err(|_| malformed())?;
    if !parsed.validity().is_valid_at(time) {
        return Err(refused("its first certificate has expired, or is not valid yet"));
    }
    let authorities = anchors.filter_map(|anchor| anchor.authority.as_ref());
    if parsed.version() != X509Version::V1 {
        return check_issued(signer, ALL_VERIFICATION_ALGS, between, authorities, now);
    }
    let signer = VersionOne::new(signer, &parsed).ok_or_else(malformed)?;
    let algorithms = signer.algorithms();
    let algorithms: Vec<_> = algorithms.iter().map(|a| a as &dyn SignatureVerificationAlgorithm).collect();
    check_issued(&signer.shown, &algorithms, between, authorities, now)
}

fn check_issued<'a>(
    signer: &CertificateDer<'_>,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    between: &[CertificateDer<'_>],
    authorities: impl Iterator<Item = &'a Authority>,
    now: Timestamp,
) -> Result<(), Error> {
    let signer = EndEntityCert::try_from(signer).map_err(|e| refused(&e.to_string()))?;
    let mut refusal = refused("no trusted certificate issued it");
    for authority in authorities {
        match authority.vouches_for(&signer, algorithms, between, now) {
            Ok(()) => return Ok(()),
            Err(webpki::Error::UnknownIssuer) => {}
            Err(e) => refusal = refused(&e.to_string()),
        }
    }
    Err(refusal)
}

impl Authority {
    fn vouches_for(
        &self,
        signer: &EndEntityCert<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        between: &[CertificateDer<'_>],
        now: Timestamp,
    ) -> Result<(), webpki::Error> {
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.unix()));
        let anchor = std::slice::from_ref(&self.anchor);
        let path = signer.verify_for_usage(algorithms, anchor, between, time, AnyUsage, None, None)?;
        let length = path.intermediate_certificates().count();
        match self.path_length {
            Some(most) if length > most as usize => Err(webpki::Error::PathLenConstraintViolated),
            _ => Ok(()),
        }
    }
}

/// Lets every extended key usage be: there is none for signing attestation tokens.
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, mut usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        usages.try_for_each(|usage| usage.map(|_| ()))
    }
}

/// Base64 as RFC 7515 section 4.1.6 has it, with line breaks, or base64url as some write it.
fn decode(text: &str) -> Option<CertificateDer<'static>> {
    let text: String = text.split_ascii_whitespace().collect();
    let der = STANDARD.decode(&text).or_else(|_| URL_SAFE_NO_PAD.decode(&text)).ok()?;
    Some(CertificateDer::from(der))
}

fn refused(cause: &str) -> Error {
    Error::Chain(cause.to_owned())
}

fn malformed() -> Error {
    refused("a certificate in it is malformed")
}

const MAX_CHAIN: usize = 8;
const MAX_ANCHORS: usize = 256;
