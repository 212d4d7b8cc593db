//! Why an image may not run: for each requirement of the policy, and for each signature that was looked at.

use std::fmt;

use crate::sigstore::SigstoreError;
use crate::simple::SimpleError;
use crate::sources::SourceError;

/// Why there is no [`crate::Verdict`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The policy, or the configuration of lookaside stores, is not valid.
    #[error("the {what} is not valid: {cause}; next: correct it where the guest's configuration names it")]
    Document { what: &'static str, cause: String },
    /// The manifest is not the one whose digest is to be checked.
    #[error(
        "the manifest of {reference} doesn't have the digest {digest}; next: report this, since the pull should have noticed"
    )]
    Digest { reference: String, digest: String },
    /// The policy's requirements are not met.
    #[error(transparent)]
    Refused(Box<Refusal>),
}

/// All that kept an image from running.
#[derive(Debug)]
pub struct Refusal {
    /// The image's name.
    pub reference: String,
    /// Where in the policy the requirements stand.
    pub scope: String,
    /// The requirements that are not met.
    pub unmet: Vec<Unmet>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image policy refuses {} by {}", self.reference, self.scope)?;
        for unmet in &self.unmet {
            write!(f, "; requirement {} ({})", unmet.number, unmet.kind)?;
            for (index, failure) in unmet.failures.iter().enumerate() {
                write!(f, "{}{failure}", if index == 0 { ": " } else { ", " })?;
            }
        }
        f.write_str("; next: sign the image as the policy asks, or change the policy")
    }
}

impl std::error::Error for Refusal {}

/// A requirement that is not met.
#[derive(Debug)]
pub struct Unmet {
    /// Its place in the scope's list, from 1.
    pub number: usize,
    /// Its `type` in the policy.
    pub kind: &'static str,
    /// Why, for each signature; or the one cause that made looking at signatures pointless.
    pub failures: Vec<Failure>,
}

/// Why one signature, or all of a requirement, did not convince.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("every image is rejected here")]
    Rejected,
    #[error("the list of requirements is empty")]
    NoRequirement,
    #[error("no signature was found {0}")]
    Unsigned(String),
    #[error("{place} can't be had: {cause}")]
    Source { place: String, cause: SourceError },
    #[error("no lookaside store is configured for {0}; set sigstore_config")]
    NoStore(String),
    #[error("{place} is larger than {limit} bytes")]
    TooLarge { place: String, limit: usize },
    #[error("the key {place} can't be used: {cause}")]
    Key { place: String, cause: String },
    #[error("{0} doesn't have the digest by which it was asked for")]
    Digest(String),
    #[error("{place} is not of the expected form: {cause}")]
    Form { place: String, cause: String },
    #[error("{place}: {cause}")]
    Simple { place: String, cause: SimpleError },
    #[error("{place}: {cause}")]
    Sigstore { place: String, cause: SigstoreError },
}
