//! The attestation service: verifies evidence, appraises it under a policy and issues attestation tokens.
//!
//! A guest's evidence passes three stages: a verifier checks that it is genuine and bound to the session, a policy
//! compares its claims with reference values, and a token states the outcome.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod appraisal;
pub mod policy;
pub mod token;
pub mod verifier;

mod difference;
mod init_data;
mod policies;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reference_values::ReferenceValues;
use serde_json::{Map, Value, json};
use store::Store;
use store::clock::{Clock, Timestamp};
use wire::rcar::{self, Attestation, HashAlgorithm, Tee};

use appraisal::{Tier, TrustVector};
pub use difference::Difference;
use init_data::InitDataClaims;
use policies::Policies;
use policy::{Policy, Queried, Question};
use token::{Signer, Submodule};
use verifier::{Enabled, Expected, Verified, Verifier};

/// The attestation service.
pub struct AttestationService {
    enabled: Enabled,
    token_lifetime: Duration,
    policies: Policies,
    reference_values: ReferenceValues,
    signer: Signer,
    clock: Clock,
}

/// How the service is set up.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Verifiers beyond those that are always there.
    pub enabled: Enabled,
    /// How long a token is valid.
    pub token_lifetime: Duration,
}

/// The outcome of one attestation.
pub struct Appraisal {
    /// The signed token.
    pub token: String,
    /// The worst status of its submodules.
    pub status: Tier,
    /// When the token expires.
    pub expiry: Timestamp,
    /// Digest of the initdata that the evidence vouches for, in standard base64.
    pub init_data: Option<String>,
}

impl AttestationService {
    /// Loads signing key and policies from the store; what is missing there is made.
    ///
    /// # Errors
    /// [`Error::Token`] or [`Error::PolicyStore`] if the store can't provide them.
    pub async fn load(
        store: Store,
        reference_values: ReferenceValues,
        settings: Settings,
        clock: Clock,
    ) -> Result<Self, Error> {
        let signer = Signer::load(&store).await?;
        let policies = Policies::load(store).await?;
        let Settings { enabled, token_lifetime } = settings;
        Ok(Self { enabled, token_lifetime, policies, reference_values, signer, clock })
    }

    /// Whether evidence of this TEE can be verified here.
    ///
    /// # Errors
    /// [`Error::Evidence`] with what to do about it.
    pub fn supports(&self, tee: Tee) -> Result<(), Error> {
        Verifier::of(tee, self.enabled)?;
        Ok(())
    }

    /// Verifies and appraises a guest's evidence. The caller has checked that the nonce is the session's.
    ///
    /// Takes the CPU for some 100 microseconds, and 100 milliseconds where a policy loops.
    ///
    /// # Errors
    /// [`Error::InitData`] and [`Error::Evidence`] are the guest's fault; [`Error::Policy`], [`Error::Claims`],
    /// [`Error::Extensions`] and [`Error::NoPolicy`] are the policy's.
    pub fn appraise(&self, tee: Tee, attestation: &Attestation) -> Result<Appraisal, Error> {
        let verifier = Verifier::of(tee, self.enabled)?;
        let runtime_data = &attestation.runtime_data;
        let additional = &attestation.tee_evidence.additional_evidence;
        if !additional.is_empty() {
            return Err(Error::AdditionalEvidence);
        }
        let report_data = runtime_data.report_data(additional, HashAlgorithm::Sha384)?;
        let init_data = attestation.init_data.as_ref().map(InitDataClaims::read).transpose()?;
        let expected =
            Expected { report_data: &report_data, init_data: init_data.as_ref().map(|read| read.digest.as_slice()) };
        let verified = verifier.verify(&attestation.tee_evidence.primary_evidence, &expected)?;

        let vouched = verified.claims.contains_key("init_data");
        let digest = init_data.as_ref().filter(|_| vouched).map(|read| STANDARD.encode(&read.digest));
        let runtime_claims = json!({
            "nonce": runtime_data.nonce,
            "tee-pubkey": runtime_data.tee_pubkey,
            "additional-evidence": additional,
        });
        let (class, evidence) = annotated(tee, verified, runtime_claims, init_data.map(|read| read.claims));
        let submodule = self.submodule(class, evidence)?;
        let status = submodule.vector.status();
        let now = self.clock.now();
        let expiry = now.after(self.token_lifetime);
        let token = self.signer.issue(vec![submodule], now, expiry)?;
        Ok(Appraisal { token, status, expiry, init_data: digest })
    }

    /// The claims of a token that this service issued and that has not expired.
    ///
    /// # Errors
    /// [`token::Error`] for any other token.
    pub fn verify(&self, token: &str) -> Result<Value, token::Error> {
        self.signer.verify(token, self.clock.now())
    }

    /// Sets an attestation policy. `default_cpu` is the one that evidence of CPUs is appraised under.
    ///
    /// # Errors
    /// [`Error::Policy`] if it is none, [`Error::PolicyId`], [`Error::PolicyStore`].
    pub async fn set_policy(&self, id: &str, text: String) -> Result<(), Error> {
        self.policies.set(id, text).await
    }

    /// What keeps a token's claims from being affirmed: the trustworthiness claims that are not affirming, and the
    /// evidence's claims that differ from the reference values their policy asks for.
    pub fn differences(&self, claims: &Value) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (name, submodule) in claims["submods"].as_object().into_iter().flatten() {
            let evidence = &submodule["ear.veraison.annotated-evidence"];
            let class = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let mut queried = Queried::new();
            if let Some(policy) = self.policies.get(&format!("{POLICY_ID}_{class}")) {
                // The answer doesn't matter here: what the policy asks for on the way does.
                let question = Question { input: evidence.clone().into(), data: None };
                let _ = policy.evaluate_with("trust_claims", question, &self.reference_values, &mut queried);
            }
            difference::collect(name, submodule, &queried, &mut differences);
        }
        differences
    }

    fn submodule(&self, class: &'static str, evidence: Value) -> Result<Submodule, Error> {
        let id = format!("{POLICY_ID}_{class}");
        let policy = self.policies.get(&id).ok_or(Error::NoPolicy(id))?;
        let input = regorus::Value::from(evidence.clone());
        let vector = match self.evaluate(&policy, "trust_claims", input.clone())? {
            Some(claims) => TrustVector::from_policy(&claims)?,
            None => TrustVector::default(),
        };
        let extensions = match self.evaluate(&policy, "extensions", input)? {
            Some(extensions) => named_extensions(extensions)?,
            None => Map::new(),
        };
        let (name, policy_id) = (format!("{class}0"), POLICY_ID.to_owned());
        Ok(Submodule { name, vector, policy_id, evidence, extensions })
    }

    fn evaluate(&self, policy: &Policy, rule: &str, input: regorus::Value) -> Result<Option<Value>, Error> {
        let question = Question { input, data: None };
        Ok(policy.evaluate_with(rule, question, &self.reference_values, &mut Queried::new())?)
    }
}

/// Why an attestation or a policy was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Evidence(#[from] verifier::Error),
    #[error("evidence of additional devices is not supported by this Trustee: leave it out")]
    AdditionalEvidence,
    #[error(transparent)]
    RuntimeData(#[from] rcar::Error),
    #[error(transparent)]
    InitData(#[from] init_data::Error),
    #[error("attestation policy: {0}")]
    Policy(#[from] policy::Error),
    #[error("attestation policy: {0}")]
    Claims(#[from] appraisal::Error),
    #[error("attestation policy: extensions must be a list of objects with a name that begins with \"ear.trustee.\"")]
    Extensions,
    #[error("there is no attestation policy {0}: set one")]
    NoPolicy(String),
    #[error("\"{0}\" can't name an attestation policy: use up to 64 of the characters a-z A-Z 0-9 - _ .")]
    PolicyId(String),
    #[error("more than {0} attestation policies")]
    TooManyPolicies(usize),
    #[error(transparent)]
    Token(#[from] token::Error),
    #[error(transparent)]
    PolicyStore(#[from] store::Error),
}

impl Error {
    /// The claim that was wrong, with the value it should have had, where there is one.
    pub fn difference(&self) -> Option<Difference> {
        let Self::Evidence(verifier::Error::Mismatch { claim, actual, expected }) = self else { return None };
        Some(Difference::new(*claim, Value::from(actual.as_str()), Value::from(expected.as_str())))
    }
}

/// The claims as policies see them: `report_data` and `init_data` are lifted out of the TEE's claims, and bring what
/// they are digests of.
fn annotated(
    tee: Tee,
    verified: Verified,
    runtime_data_claims: Value,
    init_data_claims: Option<Value>,
) -> (&'static str, Value) {
    let Verified { class, mut claims } = verified;
    let mut evidence = Map::new();
    if let Some(report_data) = claims.remove("report_data") {
        evidence.insert("report_data".to_owned(), report_data);
        evidence.insert("runtime_data_claims".to_owned(), runtime_data_claims);
    }
    if let Some(init_data) = claims.remove("init_data") {
        evidence.insert("init_data".to_owned(), init_data);
        evidence.insert("init_data_claims".to_owned(), init_data_claims.unwrap_or(Value::Null));
    }
    evidence.insert(tee.to_string(), Value::Object(claims));
    (class, Value::Object(evidence))
}

/// The members that a policy adds to a submodule. They can't take the place of what the service says.
fn named_extensions(extensions: Value) -> Result<Map<String, Value>, Error> {
    let Value::Array(extensions) = extensions else { return Err(Error::Extensions) };
    let mut members = Map::new();
    for mut extension in extensions {
        match (extension["name"].as_str(), extension.get("value").is_some()) {
            (Some(name), true) if name.starts_with("ear.trustee.") => {
                let name = name.to_owned();
                members.insert(name, extension["value"].take());
            }
            _ => return Err(Error::Extensions),
        }
    }
    Ok(members)
}

/// The policy that key brokers ask for; the class of the evidence completes its id.
const POLICY_ID: &str = "default";

#[cfg(test)]
mod tests;
