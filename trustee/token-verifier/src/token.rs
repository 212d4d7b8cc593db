//! A JWT in its compact form (RFC 7515 section 7.1), taken apart and not believed yet.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use crate::error::Error;
use crate::jwk::{Jwk, VerifyingKey};
use crate::key::Algorithm;

/// A token that some key may have signed.
pub(crate) struct Token<'a> {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    /// The key that the token brings, which nobody vouches for yet.
    pub jwk: Option<Jwk>,
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// Reads the header, and nothing else.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Form`], [`Error::Critical`]; [`Error::Algorithm`] for algorithms that no key here
    /// may be used with.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        if text.len() > MAX_TOKEN {
            return Err(Error::TooLarge);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Error::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(Error::Form)?;
        if header.len() > MAX_HEADER {
            return Err(Error::TooLarge);
        }
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Error::Form)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| Error::Form)?;
        if header.crit.is_some() {
            return Err(Error::Critical);
        }
        let algorithm = Algorithm::from_name(&header.alg).ok_or(Error::Algorithm)?;
        if signature.len() > MAX_SIGNATURE {
            return Err(Error::Signature);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Error::Form)?;
        Ok(Self { algorithm, kid: header.kid, jwk: header.jwk, signed, payload, signature })
    }

    /// The claims, if the key signed them.
    ///
    /// # Errors
    /// [`Error::Algorithm`], [`Error::Signature`]; [`Error::Form`] if what was signed is not a JSON object.
    pub fn verify(&self, key: &VerifyingKey) -> Result<Value, Error> {
        if !key.suits(self.algorithm) {
            return Err(Error::Algorithm);
        }
        key.key.verify(self.algorithm, self.signed.as_bytes(), &self.signature)?;
        let claims = URL_SAFE_NO_PAD.decode(self.payload).map_err(|_| Error::Form)?;
        let claims: Value = serde_json::from_slice(&claims).map_err(|_| Error::Form)?;
        if claims.is_object() { Ok(claims) } else { Err(Error::Form) }
    }
}

/// What is read of a header. Where it points to, by `jku` or `x5u`, is never followed.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    jwk: Option<Jwk>,
    crit: Option<Value>,
}

const MAX_TOKEN: usize = 1 << 20;
/// A chain of eight certificates fits well.
const MAX_HEADER: usize = 64 << 10;
/// A signature of RSA with 8192 bits.
const MAX_SIGNATURE: usize = 1366;
