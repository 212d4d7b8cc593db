//! A JSON Web Key (RFC 7517): a public key, and what it may be used for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::key::{Algorithm, PublicKey};

/// The members that matter here, as they were written. Whatever else a JWK has is ignored: `x5u` above all.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Jwk {
    kty: String,
    pub kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    /// Certificates of the key, leaf first.
    pub x5c: Option<Vec<String>>,
}

/// A key for signatures, and the only algorithm for it where its owner says so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VerifyingKey {
    pub key: PublicKey,
    algorithm: Option<Algorithm>,
}

impl Jwk {
    /// The key, if it is a public one of a known kind and meant for signatures.
    pub fn verifying_key(&self) -> Option<VerifyingKey> {
        let for_signatures = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
            && self.key_ops.as_ref().is_none_or(|operations| operations.iter().any(|name| name == "verify"));
        if !for_signatures {
            return None;
        }
        let key = self.public_key()?;
        let algorithm = match self.alg.as_deref() {
            None => None,
            Some(name) => Some(Algorithm::from_name(name).filter(|&algorithm| key.suits(algorithm))?),
        };
        Some(VerifyingKey { key, algorithm })
    }

    fn public_key(&self) -> Option<PublicKey> {
        let member = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => PublicKey::rsa(&member(&self.n)?, &member(&self.e)?),
            ("OKP", Some("Ed25519")) => PublicKey::ed25519(member(&self.x)?),
            ("EC", Some("P-256")) => PublicKey::p256(point(32, &member(&self.x)?, &member(&self.y)?)?),
            ("EC", Some("P-384")) => PublicKey::p384(point(48, &member(&self.x)?, &member(&self.y)?)?),
            _ => None,
        }
    }
}

impl VerifyingKey {
    /// A key that may be used with every algorithm of its kind.
    pub fn new(key: PublicKey) -> Self {
        Self { key, algorithm: None }
    }

    /// Whether a signature under an algorithm can be one of this key.
    pub fn suits(&self, algorithm: Algorithm) -> bool {
        self.key.suits(algorithm) && self.algorithm.is_none_or(|only| only == algorithm)
    }
}

/// An uncompressed point. Some write coordinates without leading zeros.
fn point(width: usize, x: &[u8], y: &[u8]) -> Option<Vec<u8>> {
    let mut point = vec![4];
    for coordinate in [x, y] {
        point.resize(point.len() + width.checked_sub(coordinate.len())?, 0);
        point.extend_from_slice(coordinate);
    }
    Some(point)
}
