//! The decision about one image: every requirement of its scope must be met.

use std::time::SystemTime;

use aws_lc_rs::digest;
use oci_spec::image::{Digest, DigestAlgorithm};

use crate::error::{Error, Failure, Refusal, Unmet};
use crate::policy::{Policy, Requirement};
use crate::sources::{Image, SignatureSources};

/// Why an image may run.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// Where in the policy the requirements stand, as in `scope registry.example/team`.
    pub scope: String,
    /// What met each of them, in their order.
    pub accepted: Vec<Accepted>,
}

/// What met a requirement.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// The requirement's `type` in the policy.
    pub requirement: &'static str,
    /// The signature and its signer; `None` where none was asked for.
    pub signer: Option<String>,
}

impl Policy {
    /// Decides whether an image may run.
    ///
    /// `now` is what key and certificate expiry is compared with.
    ///
    /// # Errors
    /// [`Error::Refused`] with all requirements that are not met and why; [`Error::Digest`] if the manifest isn't the one
    /// that the digest stands for.
    pub async fn check(
        &self,
        image: &Image<'_>,
        sources: &dyn SignatureSources,
        now: SystemTime,
    ) -> Result<Verdict, Error> {
        if !has_digest(image.manifest_bytes, image.manifest_digest) {
            return Err(Error::Digest {
                reference: image.reference.whole(),
                digest: image.manifest_digest.to_string(),
            });
        }
        let (scope, requirements) = self.requirements(image.reference);
        let (mut accepted, mut unmet) = (Vec::new(), Vec::new());
        if requirements.is_empty() {
            unmet.push(Unmet { number: 0, kind: "none", failures: vec![Failure::NoRequirement] });
        }
        for (index, requirement) in requirements.iter().enumerate() {
            match requirement.check(image, sources, now).await {
                Ok(signer) => accepted.push(Accepted { requirement: requirement.kind(), signer }),
                Err(failures) => unmet.push(Unmet { number: index + 1, kind: requirement.kind(), failures }),
            }
        }
        match unmet.is_empty() {
            true => Ok(Verdict { scope, accepted }),
            false => {
                let reference = image.reference.whole();
                Err(Error::Refused(Box::new(Refusal { reference, scope, unmet })))
            }
        }
    }
}

impl Requirement {
    async fn check(
        &self,
        _image: &Image<'_>,
        _sources: &dyn SignatureSources,
        _now: SystemTime,
    ) -> Result<Option<String>, Vec<Failure>> {
        match self {
            Self::InsecureAcceptAnything {} => Ok(None),
            Self::Reject {} => Err(vec![Failure::Rejected]),
            Self::SignedBy(_) => Err(vec![Failure::Unsupported("signedBy")]),
            Self::SigstoreSigned(_) => Err(vec![Failure::Unsupported("sigstoreSigned")]),
        }
    }
}

/// Whether `bytes` are what `digest` stands for; an algorithm that is not known here stands for nothing.
pub(crate) fn has_digest(bytes: &[u8], expected: &Digest) -> bool {
    let algorithm = match expected.algorithm() {
        DigestAlgorithm::Sha256 => &digest::SHA256,
        DigestAlgorithm::Sha384 => &digest::SHA384,
        DigestAlgorithm::Sha512 => &digest::SHA512,
        _ => return false,
    };
    hex::encode(digest::digest(algorithm, bytes)) == expected.digest()
}
