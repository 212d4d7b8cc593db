//! Attestation tokens: an EAT attestation result (EAR, draft-ietf-rats-ear) as a compact JWS, signed with ES256.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use store::clock::Timestamp;

use crate::appraisal::TrustVector;

/// The only algorithm of tokens.
pub(crate) const ALGORITHM: &str = "ES256";
/// The longest token that is issued or accepted, in bytes.
pub(crate) const MAX_TOKEN: usize = 1 << 20;

/// What every token says of its issuer.
#[derive(Clone, Debug)]
pub(crate) struct Issuer {
    /// `iss`.
    pub name: String,
    /// `ear.verifier-id`: who made the verifier, and which build it is.
    pub developer: String,
    pub build: String,
    /// `eat_profile`.
    pub profile: String,
}

/// One appraised part of a guest.
#[derive(Debug)]
pub(crate) struct Submodule {
    /// Class and index, `cpu0`.
    pub name: String,
    pub vector: TrustVector,
    /// Id of the policy that was asked for, without the class.
    pub policy_id: String,
    /// The input of the appraisal.
    pub evidence: Value,
    /// Members that the policy adds, by name.
    pub extensions: Map<String, Value>,
}

impl Issuer {
    /// The claims of a token.
    ///
    /// # Errors
    /// [`Error::Sign`] if the system gives no randomness.
    pub fn claims(&self, submodules: Vec<Submodule>, now: Timestamp, expiry: Timestamp) -> Result<Value, Error> {
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| Error::Sign)?;
        let submods: Map<String, Value> =
            submodules.into_iter().map(|part| (part.name.clone(), part.into_json())).collect();
        Ok(json!({
            "eat_profile": self.profile,
            "iat": now.unix(),
            "exp": expiry.unix(),
            "iss": self.name,
            "jti": URL_SAFE_NO_PAD.encode(id),
            "ear.verifier-id": { "developer": self.developer, "build": self.build },
            "submods": submods,
        }))
    }
}

impl Submodule {
    fn into_json(self) -> Value {
        let mut members = self.extensions;
        members.insert("ear.status".to_owned(), Value::from(self.vector.status().to_string()));
        members.insert("ear.trustworthiness-vector".to_owned(), Value::Object(self.vector.to_json()));
        members.insert("ear.appraisal-policy-id".to_owned(), Value::from(self.policy_id));
        members.insert("ear.veraison.annotated-evidence".to_owned(), self.evidence);
        Value::Object(members)
    }
}

/// Why a token could not be issued, or is not accepted. No variant repeats any part of a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the attestation token is longer than {MAX_TOKEN} bytes: send less initdata")]
    TooLarge,
    #[error("the attestation token is not a compact JWS")]
    Form,
    #[error("the attestation token is not signed with {ALGORITHM}")]
    Algorithm,
    #[error("the attestation token was not signed by this Trustee")]
    Signature,
    #[error("the attestation token has expired: attest again")]
    Expired,
    #[error("the attestation token can't be signed: the system gives no randomness")]
    Sign,
}
