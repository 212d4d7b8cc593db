//! The tokens that were verified a moment ago, so that fetching many secrets costs one verification.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use store::clock::Timestamp;
use wire::jwe::TeePublicKey;
use wire::token::unverified_claims;

use crate::attester::Attester;
use crate::refusal::Refusal;

/// Verified tokens by the hash of their text, in two generations of at most [`GENERATION`] tokens and
/// [`GENERATION_BYTES`] of their texts: when the younger is full it becomes the older, and the older is forgotten.
///
/// A guest chooses how long its token is, since the token repeats its initdata: so the number alone bounds nothing.
pub(crate) struct Tokens {
    /// JSON pointers to the guest's key, tried in turn.
    key_paths: Vec<String>,
    /// Seal to keys that ask for RSA PKCS#1 v1.5.
    rsa1_5: bool,
    generations: Mutex<Generations>,
    /// The hashes of tokens that the service here issued a moment ago: nothing is learnt by verifying them.
    issued: Mutex<Issued>,
}

#[derive(Default)]
struct Issued {
    young: HashSet<[u8; 32]>,
    old: HashSet<[u8; 32]>,
    keys: u64,
}

#[derive(Default)]
struct Generations {
    young: HashMap<[u8; 32], Arc<VerifiedToken>>,
    young_bytes: usize,
    old: HashMap<[u8; 32], Arc<VerifiedToken>>,
    /// The trusted keys' generation that all of these were verified with.
    keys: u64,
}

/// A token that was verified, ready for decisions.
pub(crate) struct VerifiedToken {
    /// The claims, as policies read them.
    pub claims: regorus::Value,
    /// Ids of the attestation policies that its parts were appraised under.
    pub policy_ids: Vec<String>,
    /// The key that secrets are sealed to.
    pub key: TeePublicKey,
    /// Names the token in the audit log: the first 8 bytes of its hash, in hexadecimal.
    pub id: String,
    /// When it ends.
    pub expiry: Timestamp,
}

impl VerifiedToken {
    /// The claims as JSON.
    pub fn claims_json(&self) -> Value {
        serde_json::to_value(&self.claims).unwrap_or(Value::Null)
    }

    /// The initdata's claims, as plugins read them.
    pub fn init_data_claims(&self) -> Option<Value> {
        self.claims_json().pointer_mut(INIT_DATA).map(Value::take)
    }
}

impl Tokens {
    /// Looks for guests' keys at `extra_paths` before the usual places.
    pub fn new(extra_paths: Vec<String>, rsa1_5: bool) -> Self {
        let usual = TEE_KEY_PATHS.iter().map(|&path| path.to_owned());
        Self {
            key_paths: extra_paths.into_iter().chain(usual).collect(),
            rsa1_5,
            generations: Mutex::default(),
            issued: Mutex::default(),
        }
    }

    /// Verifies a token, or remembers that it was.
    ///
    /// # Errors
    /// [`Refusal::Token`], [`Refusal::ForeignToken`]; [`Refusal::TeeKey`] if the token holds no key of a guest.
    pub async fn verify(
        &self,
        token: &str,
        attester: &Attester,
        now: Timestamp,
    ) -> Result<Arc<VerifiedToken>, Refusal> {
        let (hash, keys) = (hash(token), attester.generation());
        if let Some(known) = self.get(&hash, keys) {
            return if now < known.expiry { Ok(known) } else { Err(attestation::token::Error::Expired.into()) };
        }
        let (claims, leeway) = match self.was_issued(&hash, keys).then(|| unverified_claims(token)) {
            Some(Ok(claims)) if now.unix() < claims["exp"].as_u64().unwrap_or(0) => (claims, 0),
            _ => attester.verify(token).await?,
        };
        let key = self.tee_key(&claims)?;
        // As exact as its verification: a fraction counts, and so does the leeway that foreign tokens are given.
        let seconds = claims["exp"].as_f64().unwrap_or(0.0).max(0.0).ceil() as u64;
        let expiry = Timestamp::from_unix(seconds + leeway);
        let parts = claims["submods"].as_object().into_iter().flatten();
        let policy_ids = parts.filter_map(|(_, part)| part["ear.appraisal-policy-id"].as_str().map(str::to_owned));
        let policy_ids = policy_ids.collect();
        let verified = VerifiedToken { claims: claims.into(), policy_ids, key, id: hex::encode(&hash[..8]), expiry };
        let verified = Arc::new(verified);
        self.insert(hash, token.len(), verified.clone(), keys);
        Ok(verified)
    }

    /// Remembers a token that the attestation service of this process has just signed.
    pub fn issued(&self, token: &str, attester: &Attester) {
        let keys = attester.generation();
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        if issued.keys != keys {
            *issued = Issued { keys, ..Issued::default() };
        }
        if issued.young.len() >= ISSUED {
            issued.old = std::mem::take(&mut issued.young);
        }
        issued.young.insert(hash(token));
    }

    fn was_issued(&self, hash: &[u8; 32], keys: u64) -> bool {
        let issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        issued.keys == keys && (issued.young.contains(hash) || issued.old.contains(hash))
    }

    /// Reads a guest's public key.
    ///
    /// # Errors
    /// [`Refusal::TeeKey`].
    pub fn public_key(&self, jwk: &Value) -> Result<TeePublicKey, Refusal> {
        TeePublicKey::from_jwk_with(jwk, self.rsa1_5).map_err(Refusal::TeeKey)
    }

    fn tee_key(&self, claims: &Value) -> Result<TeePublicKey, Refusal> {
        let found = self.key_paths.iter().find_map(|path| claims.pointer(path));
        self.public_key(found.unwrap_or(&Value::Null))
    }

    fn get(&self, hash: &[u8; 32], keys: u64) -> Option<Arc<VerifiedToken>> {
        let generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.keys != keys {
            return None;
        }
        generations.young.get(hash).or_else(|| generations.old.get(hash)).cloned()
    }

    fn insert(&self, hash: [u8; 32], bytes: usize, verified: Arc<VerifiedToken>, keys: u64) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.keys != keys {
            *generations = Generations { keys, ..Generations::default() };
        }
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

/// Where attestation services put the guest's key, in upstream's order.
const TEE_KEY_PATHS: [&str; 5] = [
    "/tdx/attester_runtime_data/tee-pubkey",
    "/tdx/attester_user_data/tee-pubkey",
    "/customized_claims/runtime_data/tee-pubkey",
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
    "/tee-pubkey",
];
const INIT_DATA: &str = "/submods/cpu0/ear.veraison.annotated-evidence/init_data_claims";
const GENERATION: usize = 128;
/// A guest that has attested comes for its secrets at once.
const ISSUED: usize = 4_096;
/// Claims take some ten times the memory of their text.
const GENERATION_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn verified(number: u32) -> ([u8; 32], Arc<VerifiedToken>) {
        let key = wire::jwe::TeeKey::generate().unwrap().public_jwk().unwrap();
        let key = TeePublicKey::from_jwk(&key).unwrap();
        let (claims, expiry) = (Value::Null.into(), Timestamp::from_unix(1));
        let token = Arc::new(VerifiedToken { claims, policy_ids: Vec::new(), key, id: String::new(), expiry });
        (hash(&number.to_string()), token)
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_in_bytes() {
        for (bytes, most) in [(1, 2 * GENERATION), (GENERATION_BYTES / 2, 4), (2 * GENERATION_BYTES, 2)] {
            let tokens = Tokens::new(Vec::new(), false);
            for number in 0..1_200 {
                let (hash, token) = verified(number);
                tokens.insert(hash, bytes, token, 0);
                assert!(tokens.get(&hash, 0).is_some());
            }
            let generations = tokens.generations.lock().unwrap();
            assert!(generations.young.len() + generations.old.len() <= most, "{bytes}");
        }
    }

    #[test]
    fn other_trusted_keys_forget_what_was_verified() {
        let tokens = Tokens::new(Vec::new(), false);
        let (hash, token) = verified(1);
        tokens.insert(hash, 1, token.clone(), 7);
        assert!(tokens.get(&hash, 8).is_none());
        tokens.insert(self::hash("other"), 1, token, 8);
        assert!(tokens.get(&hash, 8).is_none());
    }

    #[test]
    fn the_guests_key_is_found_where_attestation_services_put_it() {
        let jwk = wire::jwe::TeeKey::generate().unwrap().public_jwk().unwrap();
        let tokens = Tokens::new(vec!["/my/key".to_owned()], false);
        for claims in [
            serde_json::json!({ "my": { "key": jwk } }),
            serde_json::json!({ "tee-pubkey": jwk }),
            serde_json::json!({ "customized_claims": { "runtime_data": { "tee-pubkey": jwk } } }),
        ] {
            assert!(tokens.tee_key(&claims).is_ok(), "{claims}");
        }
        assert!(matches!(tokens.tee_key(&serde_json::json!({ "key": jwk })), Err(Refusal::TeeKey(_))));
    }
}
