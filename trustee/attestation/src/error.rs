//! Why an attestation or a policy was refused.

use serde_json::Value;

use crate::aside::Busy;
use crate::difference::Difference;
use crate::{appraisal, hash, init_data, policy, signing, token, verifier};

/// Why an attestation or a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Evidence(#[from] verifier::Error),
    #[error("additional evidence: {0}")]
    AdditionalEvidence(String),
    #[error("there is no evidence to appraise")]
    NoEvidence,
    #[error("more than {0} pieces of evidence in one request")]
    TooManyParts(usize),
    #[error("the runtime data has no canonical JSON form (RFC 8785)")]
    RuntimeData,
    #[error(transparent)]
    HashAlgorithm(#[from] hash::Unknown),
    #[error(transparent)]
    InitData(#[from] init_data::Error),
    #[error("attestation policy {id}: {cause}")]
    Policy { id: String, cause: policy::Error },
    #[error("attestation policy {id}: {cause}")]
    Claims { id: String, cause: appraisal::Error },
    #[error(
        "attestation policy {0}: extensions must be a list of objects, each with a value and a name that begins with \
         \"ear.trustee.\""
    )]
    Extensions(String),
    #[error("there is no attestation policy {0}: set one, or ask for another")]
    NoPolicy(String),
    #[error("the stored attestation policy {id} is none and not in force: {cause}; next: set it again")]
    BrokenPolicy { id: String, cause: String },
    #[error("\"{0}\" can't name an attestation policy: use up to 64 of the characters a-z A-Z 0-9 - _ .")]
    PolicyId(String),
    #[error("more than {0} attestation policies")]
    TooManyPolicies(usize),
    #[error("TEE {0} needs a challenge of its verifier, and this release has none")]
    Challenge(wire::rcar::Tee),
    #[error(transparent)]
    Token(#[from] token::Error),
    #[error(transparent)]
    Signing(#[from] signing::Error),
    #[error(transparent)]
    PolicyStore(#[from] store::Error),
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// Whose fault an [`Error`] is, as an answer over HTTP tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// What was sent can't be used: 400.
    BadRequest,
    /// The evidence was read and refused: 403.
    Forbidden,
    /// Someone else has changed it: 409.
    Conflict,
    /// It would be larger than is accepted: 413.
    TooLarge,
    /// Something doesn't answer at present: 503.
    Unavailable,
    /// The policy or this Trustee is at fault: 500.
    Internal,
}

impl Error {
    /// Whose fault it is. A policy that is refused when it is set is the sender's.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Evidence(verifier::Error::Malformed(_))
            | Self::AdditionalEvidence(_)
            | Self::NoEvidence
            | Self::TooManyParts(_)
            | Self::RuntimeData
            | Self::HashAlgorithm(_)
            | Self::InitData(_)
            | Self::NoPolicy(_)
            | Self::PolicyId(_)
            | Self::TooManyPolicies(_)
            | Self::Challenge(_)
            | Self::Signing(signing::Error::InFiles) => Kind::BadRequest,
            Self::Evidence(_) => Kind::Forbidden,
            Self::Policy { cause, .. } => match cause {
                policy::Error::Evaluation(_) => Kind::Internal,
                policy::Error::ReferenceValues(_) => Kind::Unavailable,
                _ => Kind::BadRequest,
            },
            Self::Token(token::Error::TooLarge) | Self::PolicyStore(store::Error::TooLarge { .. }) => Kind::TooLarge,
            Self::PolicyStore(store::Error::Conflict { .. }) => Kind::Conflict,
            Self::PolicyStore(_) | Self::Signing(signing::Error::Store(_)) | Self::Busy(_) => Kind::Unavailable,
            Self::Signing(signing::Error::TooManyKeys) => Kind::Conflict,
            Self::Claims { .. }
            | Self::Extensions(_)
            | Self::BrokenPolicy { .. }
            | Self::Token(_)
            | Self::Signing(_) => Kind::Internal,
        }
    }

    /// The claim that was wrong, with the value it should have had, where there is one.
    pub fn difference(&self) -> Option<Difference> {
        let Self::Evidence(verifier::Error::Mismatch { claim, actual, expected }) = self else { return None };
        Some(Difference::new(*claim, Value::from(actual.as_str()), Value::from(expected.as_str())))
    }
}
