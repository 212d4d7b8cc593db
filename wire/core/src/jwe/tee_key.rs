//! A guest's private key, of the kind that its owner has chosen.

use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use super::ecdh::{EcdhCurve, EcdhKey};
use super::error::Error;
use super::message::Jwe;
use super::ml_kem::MlKemKey;
use super::pem::Label;
use super::rsa_key::RsaKey;

/// Kinds of keys that a guest can make for itself, by the names that upstream's configuration has for them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub enum KeyAlgorithm {
    /// An elliptic curve key of about 128 bits of security.
    #[default]
    #[serde(rename = "ECDH-ES+A256KW-P256")]
    EcdhP256,
    /// An elliptic curve key of about 256 bits of security.
    #[serde(rename = "ECDH-ES+A256KW-P521")]
    EcdhP521,
    /// An RSA key of 2048 bits, which is slow to make.
    #[serde(rename = "RSA-OAEP-256")]
    RsaOaep256,
    /// A key that a quantum computer doesn't help against.
    #[serde(rename = "ML-KEM-768+A192KW")]
    MlKem768,
}

impl KeyAlgorithm {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::EcdhP256, Self::EcdhP521, Self::RsaOaep256, Self::MlKem768];
}

/// A guest's private key, made for one attestation token and bound to it by the report data.
pub struct TeeKey(PrivateKey);

enum PrivateKey {
    Ecdh(EcdhKey),
    Rsa(RsaKey),
    MlKem(MlKemKey),
}

impl TeeKey {
    /// A new key of the kind that guests have by default.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn generate() -> Result<Self, Error> {
        Self::generate_for(KeyAlgorithm::default())
    }

    /// A new key of this kind.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn generate_for(algorithm: KeyAlgorithm) -> Result<Self, Error> {
        Ok(Self(match algorithm {
            KeyAlgorithm::EcdhP256 => PrivateKey::Ecdh(EcdhKey::generate(EcdhCurve::P256)?),
            KeyAlgorithm::EcdhP521 => PrivateKey::Ecdh(EcdhKey::generate(EcdhCurve::P521)?),
            KeyAlgorithm::RsaOaep256 => PrivateKey::Rsa(RsaKey::generate()?),
            KeyAlgorithm::MlKem768 => PrivateKey::MlKem(MlKemKey::generate()?),
        }))
    }

    /// Reads the PEM of any kind of key: PKCS#1 for RSA, PKCS#8 for the others.
    ///
    /// # Errors
    /// [`Error::Key`] for anything else.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let label = Label::of(pem)?;
        let der = label.decode(pem)?;
        match label {
            Label::RsaPrivateKey => RsaKey::from_pkcs1(&der).map(PrivateKey::Rsa),
            Label::PrivateKey => match MlKemKey::from_pkcs8(&der) {
                Some(key) => Ok(PrivateKey::MlKem(key)),
                None => EcdhKey::from_pkcs8(&der).map(PrivateKey::Ecdh),
            },
        }
        .map(Self)
    }

    /// The key as PEM. Upstream's components read those of RSA and elliptic curves; for ML-KEM they have none, and it is
    /// that of RFC 9935, with the expanded key.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it can't be encoded, which is not expected.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, Error> {
        Ok(match &self.0 {
            PrivateKey::Ecdh(key) => Label::PrivateKey.encode(key.to_pkcs8()?.as_ref()),
            PrivateKey::Rsa(key) => Label::RsaPrivateKey.encode(&key.to_pkcs1()?),
            PrivateKey::MlKem(key) => Label::PrivateKey.encode(&key.to_pkcs8()?),
        })
    }

    /// The public half as the JWK that goes into the runtime data.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it can't be computed, which is not expected.
    pub fn public_jwk(&self) -> Result<Value, Error> {
        match &self.0 {
            PrivateKey::Ecdh(key) => key.public_jwk(),
            PrivateKey::Rsa(key) => key.public_jwk(),
            PrivateKey::MlKem(key) => Ok(key.public_jwk()),
        }
    }

    /// Opens what was sealed to this key. The additional data is the header exactly as it was received.
    ///
    /// # Errors
    /// [`Error::Header`] or [`Error::Encoding`] for a malformed message, [`Error::Key`] if the other side's key is not
    /// on the curve, [`Error::Crypto`] if it was sealed to another key or changed on its way.
    pub fn open(&self, jwe: &Jwe) -> Result<Zeroizing<Vec<u8>>, Error> {
        let key = match &self.0 {
            PrivateKey::Ecdh(key) => key.unwrap(jwe),
            PrivateKey::Rsa(key) => key.unwrap(jwe),
            PrivateKey::MlKem(key) => key.unwrap(jwe),
        };
        key?.open(jwe)
    }
}
