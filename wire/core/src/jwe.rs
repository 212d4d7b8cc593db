//! Secrets sealed to a guest's key: flattened JWE JSON (RFC 7516) with A256GCM content encryption.
//!
//! The guest's key decides how: agreed by ECDH-ES+A256KW, transported by RSA-OAEP-256 or RSA1_5, or encapsulated by
//! ML-KEM-768+A192KW. Upstream guests compute the additional data from a header that they serialise again, so the
//! protected header is compact JSON with `alg` and `enc` first and what else there is (`epk` or `ek`) after them.

mod ecdh;
mod error;
mod kmac;
mod message;
mod ml_kem;
mod pem;
mod rsa;
mod rsa_key;
mod tee_key;

use serde::Deserialize;
use serde_json::Value;

pub use error::Error;
pub use message::Jwe;
pub use tee_key::{KeyAlgorithm, TeeKey};

use ecdh::EcdhPublicKey;
use message::ContentKey;
use ml_kem::MlKemPublicKey;
use rsa::RsaPublicKey;

/// The public half of a guest's key, which decides how secrets are sealed to it.
pub struct TeePublicKey(PublicKey);

impl TeePublicKey {
    /// Reads the JWK of a guest, for any algorithm but RSA1_5.
    ///
    /// # Errors
    /// [`Error::Key`] for any other kind of key, curve or algorithm, and for a point that is not on its curve.
    pub fn from_jwk(jwk: &Value) -> Result<Self, Error> {
        Self::from_jwk_with(jwk, false)
    }

    /// Reads the JWK of a guest. RSA1_5 is for guests that know nothing better: whoever can watch the guest handle
    /// changed messages learns the secret from its timing.
    ///
    /// # Errors
    /// [`Error::Key`] for any other kind of key, curve or algorithm, and for a point that is not on its curve.
    pub fn from_jwk_with(jwk: &Value, allow_rsa1_5: bool) -> Result<Self, Error> {
        let jwk = Jwk::deserialize(jwk).map_err(|_| Error::Key("it is not an EC, RSA or AKP JWK with an alg"))?;
        let key = match jwk {
            Jwk::Ec { crv, alg, x, y } if alg == ecdh::ALG => PublicKey::Ecdh(EcdhPublicKey::new(&crv, &x, &y)?),
            Jwk::Rsa { alg, n, e } if alg == rsa::OAEP => PublicKey::Rsa(RsaPublicKey::oaep(&n, &e)?),
            Jwk::Rsa { alg, n, e } if alg == rsa::PKCS1 && allow_rsa1_5 => PublicKey::Rsa(RsaPublicKey::pkcs1(&n, &e)?),
            Jwk::Rsa { alg, .. } if alg == rsa::PKCS1 => {
                return Err(Error::Key("its alg RSA1_5 is not allowed; next: let the guest use RSA-OAEP-256"));
            }
            Jwk::Akp { alg, public } if alg == ml_kem::ALG => PublicKey::MlKem(MlKemPublicKey::new(&public)?),
            Jwk::Ec { .. } | Jwk::Rsa { .. } | Jwk::Akp { .. } => {
                return Err(Error::Key("its alg is not ECDH-ES+A256KW, RSA-OAEP-256 or ML-KEM-768+A192KW"));
            }
        };
        Ok(Self(key))
    }

    /// Seals `plaintext` so that only the holder of the private half can read it.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator or a primitive fails, which is not expected.
    pub fn seal(&self, plaintext: &[u8]) -> Result<Jwe, Error> {
        let cek = ContentKey::generate()?;
        let (header, encrypted_key) = match &self.0 {
            PublicKey::Ecdh(key) => key.wrap(&cek)?,
            PublicKey::Rsa(key) => key.wrap(&cek)?,
            PublicKey::MlKem(key) => key.wrap(&cek)?,
        };
        cek.seal(&header, &encrypted_key, plaintext)
    }
}

enum PublicKey {
    Ecdh(EcdhPublicKey),
    Rsa(RsaPublicKey),
    MlKem(MlKemPublicKey),
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum Jwk {
    #[serde(rename = "EC")]
    Ec { crv: String, alg: String, x: String, y: String },
    #[serde(rename = "RSA")]
    Rsa { alg: String, n: String, e: String },
    #[serde(rename = "AKP")]
    Akp {
        alg: String,
        #[serde(rename = "pub")]
        public: String,
    },
}

#[cfg(test)]
mod tests;
