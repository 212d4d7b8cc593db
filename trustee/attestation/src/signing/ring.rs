//! The keys that tokens are signed and verified with at one time.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use store::clock::Timestamp;

use super::key::{PublicKey, SigningKey};
use crate::token::{ALGORITHM, Error, MAX_TOKEN};

/// The key that signs, and those before it whose tokens may still be valid.
pub(super) struct Ring {
    pub current: Arc<SigningKey>,
    pub former: Vec<Former>,
}

/// A key that signs no more.
#[derive(Clone)]
pub(super) struct Former {
    pub key: PublicKey,
    /// When the last of its tokens has expired.
    pub until: Timestamp,
}

impl Ring {
    /// The ring after `next` has taken the place of its current key.
    pub fn followed_by(&self, next: SigningKey, now: Timestamp, until: Timestamp) -> Self {
        let mut former = self.former.clone();
        let (last, next_id) = (self.current.public(), &next.public().id);
        if last.id != *next_id {
            former.push(Former { key: last.clone(), until });
        }
        former.retain(|former| now < former.until && former.key.id != *next_id);
        Self { current: Arc::new(next), former }
    }

    /// The claims of a token that one of the keys signed and that has not expired.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Value, Error> {
        if token.len() > MAX_TOKEN {
            return Err(Error::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(Error::Form)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Error::Form)?;
        let verifies = |key: &PublicKey| key.verifies(signed.as_bytes(), &signature);
        let verified = if self.current.has_header(header) {
            verifies(self.current.public())
        } else {
            let header: Value = decode_json(header)?;
            // The key decides the algorithm; a header can only agree. The header's own key is never used.
            if header["alg"] != ALGORITHM {
                return Err(Error::Algorithm);
            }
            let named = |key: &PublicKey| header.get("kid").is_none_or(|id| *id == key.id);
            self.keys(now).any(|key| named(key) && verifies(key))
        };
        if !verified {
            return Err(Error::Signature);
        }
        let claims: Value = decode_json(payload)?;
        match claims["exp"].as_u64() {
            Some(expiry) if now.unix() < expiry => Ok(claims),
            _ => Err(Error::Expired),
        }
    }

    /// All keys as a JWK set, the current one first.
    pub fn jwks(&self, now: Timestamp) -> Value {
        json!({ "keys": self.keys(now).map(PublicKey::published).collect::<Vec<_>>() })
    }

    fn keys(&self, now: Timestamp) -> impl Iterator<Item = &PublicKey> {
        let former = self.former.iter().rev().filter(move |former| now < former.until);
        std::iter::once(self.current.public()).chain(former.map(|former| &former.key))
    }
}

fn decode_json(part: &str) -> Result<Value, Error> {
    let text = URL_SAFE_NO_PAD.decode(part).map_err(|_| Error::Form)?;
    serde_json::from_slice(&text).map_err(|_| Error::Form)
}
