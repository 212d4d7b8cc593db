//! Who verifies evidence and whose tokens are good: the attestation service in this process, one elsewhere, or none.

use std::sync::Arc;

use attestation::{AttestationService, Difference, Evaluation, HashAlgorithm};
use attestation_api::{AttestationClient, IntelTrustAuthority};
use serde_json::Value;
use store::clock::Timestamp;
use token_verifier::AttestationTokens;
use wire::rcar::{Attestation, Tee};
use wire::token::unverified_claims;

use crate::refusal::Refusal;

/// Verifies the evidence of guests and the tokens that they bring.
pub struct Attester {
    service: Service,
    trusted: Option<AttestationTokens>,
}

/// Where evidence is verified.
pub enum Service {
    /// In this process.
    BuiltIn(Arc<AttestationService>),
    /// By an attestation service that speaks upstream's gRPC interface.
    Grpc(AttestationClient),
    /// By Intel Trust Authority.
    Intel(IntelTrustAuthority),
    /// Nowhere: guests bring tokens that were issued elsewhere (passport mode).
    Elsewhere,
}

/// A token for a guest, and what it says.
pub(crate) struct Attested {
    pub token: String,
    pub status: String,
    pub expiry: Timestamp,
    pub init_data: Option<String>,
}

impl Attester {
    /// Verifies evidence with a service, and tokens with its keys and those that are trusted besides.
    pub fn new(service: Service, trusted: Option<AttestationTokens>) -> Self {
        Self { service, trusted }
    }

    /// Whether guests of this TEE can attest here.
    ///
    /// # Errors
    /// [`Refusal::Tee`] with what to do about it; [`Refusal::NoAttestation`] where nobody can.
    pub(crate) fn supports(&self, tee: Tee) -> Result<(), Refusal> {
        match &self.service {
            Service::BuiltIn(service) => service.supports(tee).map_err(Refusal::Tee),
            Service::Intel(_) if IntelTrustAuthority::hash_algorithm(tee).is_none() => Err(Refusal::IntelTee(tee)),
            Service::Grpc(_) | Service::Intel(_) => Ok(()),
            Service::Elsewhere => Err(Refusal::NoAttestation),
        }
    }

    /// The hash algorithm that guests of a TEE have to be told, where it is not the one that they use unasked.
    pub(crate) fn hash_algorithm(&self, tee: Tee) -> Option<&'static str> {
        match (&self.service, tee) {
            (Service::Intel(_), tee) => IntelTrustAuthority::hash_algorithm(tee).map(HashAlgorithm::name),
            (_, Tee::Se) => Some("sha512"),
            _ => None,
        }
    }

    /// The nonce for a guest: random, or what its TEE needs instead.
    ///
    /// # Errors
    /// [`Refusal::Tee`], [`Refusal::Service`].
    pub(crate) async fn challenge(&self, tee: Tee, params: &str) -> Result<String, Refusal> {
        match &self.service {
            Service::BuiltIn(service) => service.challenge(tee, params).map_err(Refusal::Tee),
            // Only the challenge of IBM Secure Execution is not just random.
            Service::Grpc(client) if tee == Tee::Se => client.challenge(tee, params).await.map_err(Refusal::Service),
            Service::Grpc(_) | Service::Intel(_) => attestation::random_challenge().map_err(Refusal::Tee),
            Service::Elsewhere => Err(Refusal::NoAttestation),
        }
    }

    /// Has evidence verified and appraised under a policy.
    ///
    /// # Errors
    /// [`attestation::Error`] or [`attestation_api::Error`], as the cause of a refusal.
    pub(crate) async fn attest(&self, tee: Tee, attestation: &Attestation, policy: &str) -> Result<Attested, Cause> {
        let token = match &self.service {
            Service::BuiltIn(service) => {
                let appraisal = service.appraise(tee, attestation, policy).await?;
                return Ok(Attested {
                    token: appraisal.token,
                    status: appraisal.status.to_string(),
                    expiry: appraisal.expiry,
                    init_data: appraisal.init_data,
                });
            }
            Service::Grpc(client) => client.evaluate(&Evaluation::of(tee, attestation, policy)?).await?,
            Service::Intel(client) => client.evaluate(&Evaluation::of(tee, attestation, policy)?).await?,
            Service::Elsewhere => return Err(Cause::Elsewhere),
        };
        let claims = unverified_claims(&token).map_err(Cause::Answer)?;
        let evidence = &claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"];
        Ok(Attested {
            status: claims["submods"]["cpu0"]["ear.status"].as_str().unwrap_or("none").to_owned(),
            expiry: Timestamp::from_unix(claims["exp"].as_u64().unwrap_or(0)),
            init_data: evidence["init_data"].as_str().map(str::to_owned),
            token,
        })
    }

    /// The claims of a token that this service, or one that is trusted, issued and that has not expired; and for how
    /// many seconds after its expiry it is still taken.
    ///
    /// # Errors
    /// [`Refusal::Token`] with why our own service refuses it, [`Refusal::ForeignToken`] with why the trusted keys do.
    pub(crate) async fn verify(&self, token: &str) -> Result<(Value, u64), Refusal> {
        let own = match &self.service {
            Service::BuiltIn(service) => match service.verify(token) {
                Ok(claims) => return Ok((claims, 0)),
                Err(e) => Some(e),
            },
            _ => None,
        };
        match (&self.trusted, own) {
            (Some(trusted), _) => {
                let claims = trusted.verify(token).await.map_err(Refusal::ForeignToken)?;
                match &self.service {
                    Service::Intel(client) if !client.accepts(&claims) => Err(Refusal::Unmatched),
                    _ => Ok((claims, FOREIGN_LEEWAY)),
                }
            }
            (None, Some(e)) => Err(Refusal::Token(e)),
            (None, None) => Err(Refusal::NoTrust),
        }
    }

    /// Changes when keys were reloaded, so that what was verified before has to be verified again.
    pub(crate) fn generation(&self) -> u64 {
        let trusted = self.trusted.as_ref().map_or(0, AttestationTokens::generation);
        match &self.service {
            Service::BuiltIn(service) => trusted.wrapping_add(service.generation()),
            _ => trusted,
        }
    }

    /// What keeps a token's claims from being affirmed, where the policies are known here.
    pub(crate) async fn differences(&self, claims: Value) -> Vec<Difference> {
        let Service::BuiltIn(service) = &self.service else { return Vec::new() };
        let service = service.clone();
        attestation::aside(move || service.differences(&claims)).await.unwrap_or_default()
    }

    /// The service in this process.
    ///
    /// # Errors
    /// [`Refusal::NoAttestation`] where there is none to administer.
    pub(crate) fn built_in(&self) -> Result<&Arc<AttestationService>, Refusal> {
        match &self.service {
            Service::BuiltIn(service) => Ok(service),
            _ => Err(Refusal::NoAttestation),
        }
    }

    /// Sets an attestation policy where it is used: here, or at the service elsewhere.
    ///
    /// # Errors
    /// [`Refusal::AttestationPolicy`], [`Refusal::Service`], [`Refusal::NoAttestation`].
    pub(crate) async fn set_policy(
        &self,
        id: &str,
        text: String,
        condition: store::If,
    ) -> Result<Option<u64>, Refusal> {
        match &self.service {
            Service::BuiltIn(service) => {
                service.set_policy(id, text, condition).await.map(Some).map_err(Refusal::AttestationPolicy)
            }
            Service::Grpc(client) if condition == store::If::Any => {
                client.set_policy(id, &text).await.map_err(Refusal::Service)?;
                Ok(None)
            }
            Service::Grpc(_) => Err(Refusal::Condition),
            Service::Intel(_) | Service::Elsewhere => Err(Refusal::NoAttestation),
        }
    }
}

/// Clocks of other services may differ by so many seconds; their tokens are verified with the same.
const FOREIGN_LEEWAY: u64 = 60;

/// Why evidence was refused, or could not be verified.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cause {
    #[error(transparent)]
    Evidence(#[from] attestation::Error),
    #[error(transparent)]
    Service(#[from] attestation_api::Error),
    #[error("the attestation service's answer is no token: {0}")]
    Answer(wire::token::Error),
    #[error("this Trustee verifies no evidence, it takes tokens that were issued elsewhere")]
    Elsewhere,
}

impl Cause {
    /// The claim that was wrong, where it is known.
    pub fn difference(&self) -> Option<Difference> {
        match self {
            Self::Evidence(e) => e.difference(),
            _ => None,
        }
    }
}
