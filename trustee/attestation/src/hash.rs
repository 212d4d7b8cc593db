//! The hash algorithms that report data and initdata are digested with.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use sm3::{Digest as _, Sm3};

use crate::excerpt::excerpt;

/// A hash algorithm, by its name on the wire.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    #[default]
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
    /// SM3 (GB/T 32905), 32 bytes.
    Sm3,
}

impl HashAlgorithm {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Sm3 => "sm3",
        }
    }

    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
            Self::Sha512 => &digest::SHA512,
            Self::Sm3 => return Sm3::digest(data).to_vec(),
        };
        digest::digest(algorithm, data).as_ref().to_vec()
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashAlgorithm {
    type Err = Unknown;

    fn from_str(name: &str) -> Result<Self, Unknown> {
        let name = serde_json::Value::from(name);
        Self::deserialize(&name).map_err(|_| Unknown(excerpt(name.as_str().unwrap_or_default())))
    }
}

/// The name is none of a hash algorithm.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("hash algorithm \"{0}\" is not known; sha256, sha384, sha512 and sm3 are")]
pub struct Unknown(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_published_ones() {
        for (name, digest) in [
            ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("sm3", "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
        ] {
            let algorithm: HashAlgorithm = name.parse().unwrap();
            assert_eq!(hex::encode(algorithm.digest(b"abc")), digest);
            assert_eq!(algorithm.to_string(), name);
        }
        assert_eq!(HashAlgorithm::Sha384.digest(b"").len(), 48);
        assert_eq!(HashAlgorithm::Sha512.digest(b"").len(), 64);
        assert!("SHA256".parse::<HashAlgorithm>().is_err());
    }
}
