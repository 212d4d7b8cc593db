//! The key that secrets are sealed to: new, or from a file.

use serde_json::Value;
use wire::jwe::{self, Jwe, RsaKey, TeeKey};
use zeroize::Zeroizing;

pub use wire::jwe::Error;

/// A private key of a kind that guests have.
pub enum TeeKeyFile {
    Ec(TeeKey),
    Rsa(RsaKey),
}

impl TeeKeyFile {
    /// A new key on P-256.
    ///
    /// # Errors
    /// [`jwe::Error`] if the random generator fails.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self::Ec(TeeKey::generate()?))
    }

    /// Reads RSA in PKCS#1 PEM, or EC in PKCS#8 PEM.
    ///
    /// # Errors
    /// [`jwe::Error`] for anything else.
    pub fn parse(pem: &str) -> Result<Self, Error> {
        match pem.contains("BEGIN RSA PRIVATE KEY") {
            true => Ok(Self::Rsa(RsaKey::from_pkcs1_pem(pem)?)),
            false => Ok(Self::Ec(TeeKey::from_pkcs8_pem(pem)?)),
        }
    }

    /// The public half as guests send it.
    ///
    /// # Errors
    /// [`jwe::Error`] if it can't be computed, which is not expected.
    pub fn public_jwk(&self) -> Result<Value, jwe::Error> {
        match self {
            Self::Ec(key) => key.public_jwk(),
            Self::Rsa(key) => key.public_jwk(),
        }
    }

    /// Opens what was sealed to it.
    ///
    /// # Errors
    /// [`jwe::Error`] if it was sealed to another key or changed on its way.
    pub fn open(&self, sealed: &Jwe) -> Result<Zeroizing<Vec<u8>>, jwe::Error> {
        match self {
            Self::Ec(key) => key.open(sealed),
            Self::Rsa(key) => key.open(sealed),
        }
    }
}
