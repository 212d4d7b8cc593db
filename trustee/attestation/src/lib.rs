//! The attestation service: verifies evidence, appraises it under a policy and issues attestation tokens.
//!
//! A guest's evidence passes three stages: a verifier checks that it is genuine and bound to the session, a policy
//! compares its claims with reference values, and a token states the outcome.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod appraisal;
pub mod policy;
pub mod signing;
pub mod token;
pub mod verifier;

mod aside;
mod difference;
mod error;
mod evaluation;
mod excerpt;
mod hash;
mod init_data;
mod policies;
mod scope;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reference_values::Source;
use serde_json::{Value, json};
use store::clock::{Clock, Timestamp};
use store::{If, Store, Version};
use tokio::task::JoinSet;
use wire::rcar::{Attestation, Tee};

use appraisal::Tier;
pub use aside::{Busy, aside};
pub use difference::Difference;
pub use error::{Error, Kind};
use evaluation::{Context, Pace};
pub use evaluation::{Evaluation, Part, RuntimeData};
pub use hash::{HashAlgorithm, Unknown as UnknownHashAlgorithm};
pub use init_data::{Error as InitDataError, InitDataInput};
use policies::Policies;
pub use policies::PolicyInfo;
use policy::Queried;
use scope::Scopes;
use signing::{Signer, SignerFiles};
use token::Issuer;
use verifier::{Enabled, Verifier};

/// The attestation service. It keeps its policies and keys up to date as long as it lives.
pub struct AttestationService {
    enabled: Enabled,
    token_lifetime: Duration,
    verbose: bool,
    issuer: Issuer,
    policies: Arc<Policies>,
    reference_values: Scopes,
    signer: Arc<Signer>,
    clock: Clock,
    /// Aborted when the service is dropped.
    _following: JoinSet<()>,
}

/// How the service is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Verifiers beyond those that are always there: none unless set.
    pub enabled: Enabled,
    /// How long a token is valid: five minutes unless set.
    pub token_lifetime: Duration,
    /// Whether tokens repeat the evidence of devices: true unless set.
    pub verbose: bool,
    /// Who issues the tokens, `iss`.
    pub issuer: String,
    /// Who made the verifier.
    pub developer: String,
    /// Which build of the verifier it is.
    pub build: String,
    /// The tokens' profile, `eat_profile`.
    pub profile: String,
    /// The owner's own signing key; without one, the replicas share keys in the store.
    pub signer: Option<SignerFiles>,
    /// How long a signing key in the store is used before the next is made: 30 days unless set, zero for ever.
    pub rotation: Duration,
    /// Owners whose reference values, `<tenant>/…`, are hidden from each other's policies: none unless set.
    pub tenants: Vec<String>,
}

/// The outcome of one attestation.
#[derive(Debug)]
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
    /// Loads signing keys and policies, and follows their changes from then on.
    ///
    /// # Errors
    /// [`Error::Signing`] or [`Error::PolicyStore`] if store or files can't provide them.
    pub async fn load(
        store: Store,
        reference_values: Arc<dyn Source>,
        settings: Settings,
        clock: Clock,
    ) -> Result<Arc<Self>, Error> {
        let Settings { enabled, token_lifetime, verbose, issuer, developer, build, profile, .. } = settings;
        let Settings { signer, rotation, tenants, .. } = settings;
        let (signer, key_changes) =
            Signer::load(store.clone(), signer, rotation, token_lifetime, clock.clone()).await?;
        let (policies, policy_changes) = Policies::load(store).await?;
        let mut following = JoinSet::new();
        following.spawn(signer.clone().follow(key_changes));
        following.spawn(policies.clone().follow(policy_changes));
        let issuer = Issuer { name: issuer, developer, build, profile };
        Ok(Arc::new(Self {
            enabled,
            token_lifetime,
            verbose,
            issuer,
            policies,
            reference_values: Scopes::new(reference_values, tenants),
            signer,
            clock,
            _following: following,
        }))
    }

    /// Whether evidence of this TEE can be verified here.
    ///
    /// # Errors
    /// [`Error::Evidence`] with what to do about it.
    pub fn supports(&self, tee: Tee) -> Result<(), Error> {
        Verifier::of(tee, self.enabled)?;
        Ok(())
    }

    /// The nonce for evidence of this TEE. `params` is what the guest said about its needs.
    ///
    /// # Errors
    /// [`Error::Challenge`] for IBM Secure Execution, whose challenge is more than random.
    pub fn challenge(&self, tee: Tee, _params: &str) -> Result<String, Error> {
        if tee == Tee::Se { Err(Error::Challenge(tee)) } else { random_challenge() }
    }

    /// Verifies and appraises a guest's evidence under the policy of this id. The caller has checked that the nonce is
    /// the session's.
    ///
    /// # Errors
    /// As [`Evaluation::of`] and [`AttestationService::evaluate`].
    pub async fn appraise(
        self: &Arc<Self>,
        tee: Tee,
        attestation: &Attestation,
        policy_id: &str,
    ) -> Result<Appraisal, Error> {
        self.evaluate(Evaluation::of(tee, attestation, policy_id)?).await
    }

    /// Verifies and appraises evidence, and issues a token. Takes the CPU for some 100 microseconds, and 100
    /// milliseconds where a policy loops: what turns out to take more than one or two, or may, is done [`aside`].
    ///
    /// # Errors
    /// [`Error::kind`] tells whose fault it is.
    pub async fn evaluate(self: &Arc<Self>, evaluation: Evaluation) -> Result<Appraisal, Error> {
        if self.signer.is_due() {
            let signer = self.signer.clone();
            tokio::spawn(async move { signer.rotate_if_due().await });
        }
        if evaluation.is_light()
            && self.reference_values.of(&evaluation.policy_id).is_in_memory()
            && let Ok(appraisal) = self.evaluate_here(evaluation.clone(), Pace::Prompt)
        {
            return Ok(appraisal);
        }
        let service = self.clone();
        aside(move || service.evaluate_here(evaluation, Pace::Patient)).await?
    }

    /// The claims of a token that this service issued and that has not expired.
    ///
    /// # Errors
    /// [`token::Error`] for any other token.
    pub fn verify(&self, token: &str) -> Result<Value, token::Error> {
        self.signer.verify(token)
    }

    /// Changes when keys have, so that tokens that were verified before have to be verified again.
    pub fn generation(&self) -> u64 {
        self.signer.generation()
    }

    /// The keys that tokens may be signed with at present, as a JWK set (RFC 7517).
    pub fn jwks(&self) -> Value {
        self.signer.jwks()
    }

    /// The tokens' `iss`.
    pub fn issuer(&self) -> &str {
        &self.issuer.name
    }

    /// The document of OpenID Connect Discovery, for a service that is reached under this URL.
    pub fn openid_configuration(&self, base_url: &str) -> Value {
        let base_url = base_url.trim_end_matches('/');
        // The document's issuer is an URL; relying parties compare it with `iss` where that is one.
        let is_url = self.issuer.name.starts_with("https://") || self.issuer.name.starts_with("http://");
        json!({
            "issuer": if is_url { &self.issuer.name } else { base_url },
            "jwks_uri": format!("{base_url}/.well-known/jwks.json"),
            "id_token_signing_alg_values_supported": [token::ALGORITHM],
            "response_types_supported": ["none"],
            "subject_types_supported": ["public"],
        })
    }

    /// Makes a new signing key. Tokens of the one before stay valid until they expire.
    ///
    /// # Errors
    /// [`Error::Signing`] if the key is in files, or the store does not answer.
    pub async fn rotate_signing_key(&self) -> Result<(), Error> {
        Ok(self.signer.rotate().await?)
    }

    /// The attestation policies, sorted by id, those that are shipped included.
    pub fn policies(&self) -> Vec<PolicyInfo> {
        self.policies.list()
    }

    /// The text of a policy with its version, or as it was at an earlier version. Version 0 is the shipped text.
    ///
    /// # Errors
    /// [`Error::PolicyId`], [`Error::PolicyStore`].
    pub async fn policy(&self, id: &str, version: Option<u64>) -> Result<Option<(String, u64)>, Error> {
        self.policies.text(id, version).await
    }

    /// Sets an attestation policy, `default_cpu` for instance, and returns its version.
    ///
    /// # Errors
    /// [`Error::Policy`] if it is none, [`Error::PolicyId`], [`Error::TooManyPolicies`]; [`Error::PolicyStore`], a
    /// conflict among them.
    pub async fn set_policy(&self, id: &str, text: String, condition: If) -> Result<u64, Error> {
        self.policies.set(id, text, condition).await
    }

    /// Deletes an attestation policy; false if none was stored. Where one of this id is shipped, that is in force
    /// again.
    ///
    /// # Errors
    /// [`Error::PolicyId`]; [`Error::PolicyStore`], a conflict among them.
    pub async fn delete_policy(&self, id: &str, condition: If) -> Result<bool, Error> {
        self.policies.delete(id, condition).await
    }

    /// The versions that are kept of a policy, newest first.
    ///
    /// # Errors
    /// [`Error::PolicyId`], [`Error::PolicyStore`].
    pub async fn policy_history(&self, id: &str) -> Result<Vec<Version>, Error> {
        self.policies.history(id).await
    }

    /// What keeps a token's claims from being affirmed: the trustworthiness claims that are not affirming, and the
    /// evidence's claims that differ from the reference values that its policy asks for. May block: see [`aside`].
    pub fn differences(&self, claims: &Value) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (name, submodule) in claims["submods"].as_object().into_iter().flatten() {
            let evidence = &submodule["ear.veraison.annotated-evidence"];
            let class = name.trim_end_matches(|c: char| c.is_ascii_digit());
            let policy_id = submodule["ear.appraisal-policy-id"].as_str().unwrap_or_default();
            let mut queried = Queried::new();
            if let Ok(policy) = self.policies.get(&format!("{policy_id}_{class}")) {
                // The answer doesn't matter here: what the policy asks for on the way does.
                let input = evidence.clone().into();
                let source = self.reference_values.of(policy_id);
                let _ = policy.evaluate_with(["trust_claims"], input, source, &mut queried);
            }
            difference::collect(name, submodule, &queried, &mut differences);
        }
        differences
    }

    fn evaluate_here(&self, evaluation: Evaluation, pace: Pace) -> Result<Appraisal, Error> {
        let Self { enabled, policies, verbose, .. } = self;
        let reference_values = self.reference_values.of(&evaluation.policy_id);
        let context = Context { enabled: *enabled, policies, reference_values, verbose: *verbose, pace };
        let found = context.evaluate(evaluation)?;
        let status = found.submodules.iter().map(|part| part.vector.status()).max().unwrap_or(Tier::None);
        let now = self.clock.now();
        let expiry = now.after(self.token_lifetime);
        let claims = self.issuer.claims(found.submodules, now, expiry)?;
        Ok(Appraisal { token: self.signer.sign(&claims)?, status, expiry, init_data: found.init_data })
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: Enabled::default(),
            token_lifetime: Duration::from_secs(300),
            verbose: true,
            issuer: "CoCo-Attestation-Service".to_owned(),
            developer: "https://confidentialcontainers.org".to_owned(),
            build: "attestation-service 0.1.0".to_owned(),
            profile: "tag:github.com,2024:confidential-containers/Trustee".to_owned(),
            signer: None,
            rotation: Duration::from_secs(30 * 24 * 3600),
            tenants: Vec::new(),
        }
    }
}

/// The nonce for evidence of every TEE that needs nothing else: 32 random bytes in standard base64.
///
/// # Errors
/// [`Error::Token`] if the system gives no randomness.
pub fn random_challenge() -> Result<String, Error> {
    let mut nonce = [0; 32];
    rand::fill(&mut nonce).map_err(|_| token::Error::Sign)?;
    Ok(STANDARD.encode(nonce))
}

#[cfg(test)]
mod tests;
