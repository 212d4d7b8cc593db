//! The tokens that were verified a moment ago, so that fetching many secrets costs one verification.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use attestation::AttestationService;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use store::clock::Timestamp;
use wire::jwe::TeePublicKey;

use crate::refusal::Refusal;

/// Verified tokens by the hash of their text, in two generations of at most [`GENERATION`] tokens and
/// [`GENERATION_BYTES`] of their texts: when the younger is full it becomes the older, and the older is forgotten.
///
/// A guest chooses how long its token is, since the token repeats its initdata: so the number alone bounds nothing.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<[u8; 32], Arc<VerifiedToken>>,
    young_bytes: usize,
    old: HashMap<[u8; 32], Arc<VerifiedToken>>,
}

/// A token that was verified, ready for decisions.
pub(crate) struct VerifiedToken {
    /// The claims, as policies read them.
    pub claims: regorus::Value,
    /// The key that secrets are sealed to.
    pub key: TeePublicKey,
    /// Names the token in the audit log: the first 8 bytes of its hash, in hexadecimal.
    pub id: String,
    expiry: Timestamp,
}

impl VerifiedToken {
    /// The claims as JSON.
    pub fn claims_json(&self) -> Value {
        serde_json::to_value(&self.claims).unwrap_or(Value::Null)
    }
}

impl Tokens {
    /// Verifies a token, or remembers that it was.
    ///
    /// # Errors
    /// [`Refusal::Token`]; [`Refusal::TeeKey`] if the token holds no key of a guest.
    pub fn verify(
        &self,
        token: &str,
        service: &AttestationService,
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, Refusal> {
        let hash = hash(token);
        if let Some(known) = self.get(&hash) {
            return if now < known.expiry { Ok(known) } else { Err(attestation::token::Error::Expired.into()) };
        }
        let claims = service.verify(token)?;
        let key = TeePublicKey::from_jwk(claims.pointer(TEE_KEY).unwrap_or(&Value::Null)).map_err(Refusal::TeeKey)?;
        let expiry = Timestamp::from_unix(claims["exp"].as_u64().unwrap_or(0));
        let verified = VerifiedToken { claims: claims.into(), key, id: hex::encode(&hash[..8]), expiry };
        let verified = Arc::new(verified);
        self.insert(hash, token.len(), verified.clone());
        Ok(verified)
    }

    fn get(&self, hash: &[u8; 32]) -> Option<Arc<VerifiedToken>> {
        let generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.get(hash).or_else(|| generations.old.get(hash)).cloned()
    }

    fn insert(&self, hash: [u8; 32], bytes: usize, verified: Arc<VerifiedToken>) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.young.len() >= GENERATION || generations.young_bytes + bytes > GENERATION_BYTES {
            generations.old = std::mem::take(&mut generations.young);
            generations.young_bytes = 0;
        }
        generations.young_bytes += bytes;
        generations.young.insert(hash, verified);
    }
}

/// What the audit log calls a token.
pub(crate) fn id(token: &str) -> String {
    hex::encode(&hash(token)[..8])
}

fn hash(token: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

const TEE_KEY: &str = "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey";
const GENERATION: usize = 512;
/// Claims take some ten times the memory of their text.
const GENERATION_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(number: u32) -> ([u8; 32], Arc<VerifiedToken>) {
        let key = wire::jwe::TeeKey::generate().unwrap().public_jwk().unwrap();
        let key = TeePublicKey::from_jwk(&key).unwrap();
        let (claims, expiry) = (Value::Null.into(), Timestamp::from_unix(1));
        let token = Arc::new(VerifiedToken { claims, key, id: String::new(), expiry });
        (hash(&number.to_string()), token)
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_in_bytes() {
        for (bytes, most) in [(1, 2 * GENERATION), (GENERATION_BYTES / 2, 4), (2 * GENERATION_BYTES, 2)] {
            let tokens = Tokens::default();
            for number in 0..1_200 {
                let (hash, token) = verified(number);
                tokens.insert(hash, bytes, token);
                assert!(tokens.get(&hash).is_some());
            }
            let generations = tokens.0.lock().unwrap();
            assert!(generations.young.len() + generations.old.len() <= most, "{bytes}");
        }
    }
}
