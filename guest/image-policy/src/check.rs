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
            match self.check_one(requirement, image, sources, now).await {
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

    async fn check_one(
        &self,
        requirement: &Requirement,
        image: &Image<'_>,
        sources: &dyn SignatureSources,
        now: SystemTime,
    ) -> Result<Option<String>, Vec<Failure>> {
        match requirement {
            Requirement::InsecureAcceptAnything {} => Ok(None),
            Requirement::Reject {} => Err(vec![Failure::Rejected]),
            Requirement::SignedBy(it) => it.check(image, &self.lookaside, sources, now).await.map(Some),
            Requirement::SigstoreSigned(it) => it.check(image, sources, now).await.map(Some),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::*;

    const ACCEPT: &str = r#"{"type":"insecureAcceptAnything"}"#;
    const REJECT: &str = r#"{"type":"reject"}"#;

    async fn check(policy: &str, reference: &str) -> Result<Verdict, String> {
        let pulled = Pulled::new(reference);
        let policy = Policy::parse(policy.as_bytes()).unwrap();
        policy.check(&pulled.image(), &Memory::default(), now()).await.map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn a_verdict_names_the_scope_and_what_met_it() {
        let policy =
            format!(r#"{{"default":[{REJECT}],"transports":{{"docker":{{"a.example/team":[{ACCEPT},{ACCEPT}]}}}}}}"#);
        let accepted = Accepted { requirement: "insecureAcceptAnything", signer: None };
        let expected = Verdict { scope: "scope a.example/team".to_owned(), accepted: vec![accepted.clone(), accepted] };
        assert_eq!(check(&policy, "a.example/team/app:v1").await, Ok(expected));
        let refusal = check(&policy, "b.example/team/app:v1").await.unwrap_err();
        assert!(
            refusal.contains("by the policy's default; requirement 1 (reject): every image is rejected"),
            "{refusal}"
        );
    }

    #[tokio::test]
    async fn every_requirement_must_be_met_and_those_that_are_not_are_told() {
        let key = r#"{"type":"sigstoreSigned","keyPath":"/nowhere"}"#;
        let refusal = check(&format!(r#"{{"default":[{ACCEPT},{key},{REJECT}]}}"#), "a.example/app").await.unwrap_err();
        for part in ["requirement 2 (sigstoreSigned): /nowhere can't be had", "requirement 3 (reject)", "next:"] {
            assert!(refusal.contains(part), "{part:?} is not in {refusal}");
        }
        assert!(!refusal.contains("requirement 1"), "{refusal}");
    }

    #[tokio::test]
    async fn an_empty_list_rejects() {
        let refusal = check(r#"{"default":[]}"#, "a.example/app").await.unwrap_err();
        assert!(refusal.contains("the list of requirements is empty"), "{refusal}");
    }

    #[tokio::test]
    async fn a_manifest_must_have_the_digest_that_is_judged() {
        let mut pulled = Pulled::new("a.example/app:v1");
        pulled.manifest.push(b' ');
        let policy = Policy::parse(format!(r#"{{"default":[{ACCEPT}]}}"#).as_bytes()).unwrap();
        let outcome = policy.check(&pulled.image(), &Memory::default(), now()).await;
        assert!(matches!(outcome, Err(Error::Digest { .. })), "{outcome:?}");
    }

    #[test]
    fn a_check_can_move_between_threads() {
        fn assert_send<T: Send>(_: impl FnOnce(&'static Policy, &'static Image<'static>, &'static Memory) -> T) {}
        assert_send(|policy, image, sources| policy.check(image, sources, now()));
    }
}
