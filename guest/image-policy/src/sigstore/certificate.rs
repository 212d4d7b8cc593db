//! Certificates of signers: the way up to a configured authority, and whom they name.
//!
//! Source: Fulcio's certificate specification and its list of object identifiers. Embedded certificate timestamps are
//! not asked for: the policy's format has no key for the log that they are of.

use std::fmt::Display;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::Oid;
use x509_parser::der_parser::asn1_rs::{Utf8String, oid};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::key::PublicKey;

/// Roots, and certificates between them and signers.
pub(super) struct Authority {
    roots: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// Parses two lists of certificates in PEM; the second may be empty. Every certificate of the first is a root.
    pub(super) fn parse(roots: &[u8], intermediates: &[u8]) -> Result<Self, CertificateError> {
        let certificates = certificates(roots)?;
        let roots = certificates.iter().map(|root| Ok(anchor_from_trusted_cert(root)?.to_owned()));
        let roots = roots.collect::<Result<Vec<_>, webpki::Error>>().map_err(CertificateError::Root)?;
        match roots.is_empty() {
            true => Err(CertificateError::Pem("there is no certificate".to_owned())),
            false => Ok(Self { roots, intermediates: self::certificates(intermediates)? }),
        }
    }

    /// Whether a certificate leads to a root, each on the way was valid at `time`, and it is for signing code.
    ///
    /// `chain` may have further certificates for the way.
    pub(super) fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        time: SystemTime,
    ) -> Result<(), CertificateError> {
        let time = UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default());
        let intermediates: Vec<_> = self.intermediates.iter().chain(chain).cloned().collect();
        let signer = EndEntityCert::try_from(certificate).map_err(CertificateError::Chain)?;
        // Of authorities this asks only that they don't exclude it.
        let usage = KeyUsage::required_if_present(CODE_SIGNING);
        signer
            .verify_for_usage(ALL_VERIFICATION_ALGS, &self.roots, &intermediates, time, usage, None, None)
            .map_err(CertificateError::Chain)?;
        let parsed = parse(certificate)?;
        let usage = parsed.extended_key_usage().map_err(|e| CertificateError::Form(e.to_string()))?;
        match usage.is_some_and(|usage| usage.value.code_signing) {
            true => Ok(()),
            false => Err(CertificateError::Usage),
        }
    }
}

/// The key of a certificate.
pub(super) fn key(certificate: &CertificateDer<'_>) -> Result<PublicKey, CertificateError> {
    PublicKey::parse(parse(certificate)?.public_key().raw).map_err(CertificateError::Key)
}

/// Whether a certificate of Fulcio names this subject, of whom this issuer of identities vouched.
///
/// The subject is a mail address, or a URI such as that of a workflow.
pub(super) fn expect_identity(
    certificate: &CertificateDer<'_>,
    issuer: &str,
    subject: &str,
) -> Result<(), CertificateError> {
    let parsed = parse(certificate)?;
    let found = issuers(&parsed)?;
    if found.is_empty() || found.iter().any(|found| found != issuer) {
        return Err(CertificateError::Issuer { found: found.join(", "), expected: issuer.to_owned() });
    }
    let names = names(&parsed)?;
    match names.iter().any(|(_, name)| name == subject) {
        true => Ok(()),
        false => Err(CertificateError::subject(&names, subject)),
    }
}

/// Whether a certificate names this mail address and this host, where they are given.
pub(super) fn expect_subject(
    certificate: &CertificateDer<'_>,
    email: Option<&str>,
    hostname: Option<&str>,
) -> Result<(), CertificateError> {
    if let Some(email) = email {
        let names = names(&parse(certificate)?)?;
        if !names.iter().any(|(kind, name)| *kind == Kind::Email && name == email) {
            return Err(CertificateError::subject(&names, email));
        }
    }
    if let Some(hostname) = hostname {
        let name = ServerName::try_from(hostname).map_err(|_| CertificateError::Hostname(hostname.to_owned()))?;
        EndEntityCert::try_from(certificate)
            .and_then(|signer| signer.verify_is_valid_for_subject_name(&name))
            .map_err(CertificateError::Chain)?;
    }
    Ok(())
}

/// Why a signer's certificate does not convince.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("its certificates are not PEM: {0}")]
    Pem(String),
    #[error("its root certificate is not valid: {0}")]
    Root(webpki::Error),
    #[error("its certificate is not of the expected form: {0}")]
    Form(String),
    #[error("the key of its certificate can't be used: {0}")]
    Key(String),
    #[error("its certificate doesn't lead to a configured authority at the time of signing: {0}")]
    Chain(webpki::Error),
    #[error("its certificate is not for signing code")]
    Usage,
    #[error("its certificate names the issuer {found:?}, not {expected:?}")]
    Issuer { found: String, expected: String },
    #[error("its certificate names {found:?}, not {expected:?}")]
    Subject { found: String, expected: String },
    #[error("{0:?} is not a host's name")]
    Hostname(String),
}

impl CertificateError {
    fn subject(names: &[(Kind, String)], expected: &str) -> Self {
        let found = names.iter().map(|(_, name)| &**name).collect::<Vec<_>>().join(", ");
        Self::Subject { found, expected: expected.to_owned() }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Email,
    Uri,
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).take(MAX_CERTIFICATES).collect();
    parsed.map_err(|e| CertificateError::Pem(e.to_string()))
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) => Err(CertificateError::Form("something follows it".to_owned())),
        Err(e) => Err(CertificateError::Form(e.to_string())),
    }
}

/// The mail addresses and URIs among the alternative names.
fn names(certificate: &X509Certificate<'_>) -> Result<Vec<(Kind, String)>, CertificateError> {
    let extension = certificate.subject_alternative_name().map_err(|e| CertificateError::Form(e.to_string()))?;
    let names = extension.iter().flat_map(|extension| &extension.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::RFC822Name(name) => Some((Kind::Email, (*name).to_owned())),
            GeneralName::URI(name) => Some((Kind::Uri, (*name).to_owned())),
            _ => None,
        })
        .collect())
}

/// Who vouched for the subject, by the older extension (bare text) and by the newer one (a UTF8String).
fn issuers(certificate: &X509Certificate<'_>) -> Result<Vec<String>, CertificateError> {
    let form = |e: &dyn Display| CertificateError::Form(format!("its issuer's extension: {e}"));
    let mut found = Vec::new();
    for (oid, newer) in [(ISSUER, false), (ISSUER_V2, true)] {
        let extension = certificate.get_extension_unique(&oid).map_err(|e| form(&e))?;
        let Some(extension) = extension else { continue };
        found.push(match newer {
            false => String::from_utf8(extension.value.to_vec()).map_err(|e| form(&e))?,
            true => match Utf8String::from_der(extension.value) {
                Ok(([], text)) => text.string(),
                _ => return Err(form(&"it is no UTF8String")),
            },
        });
    }
    Ok(found)
}

const ISSUER: Oid<'static> = oid!(1.3.6.1.4.1.57264.1.1);
const ISSUER_V2: Oid<'static> = oid!(1.3.6.1.4.1.57264.1.8);
/// 1.3.6.1.5.5.7.3.3, as DER has it.
const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
const MAX_CERTIFICATES: usize = 64;
