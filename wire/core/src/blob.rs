//! Blobs that a node keeps for its guests: where a guest asks for one, and by which digest.
//!
//! A guest speaks HTTP/1.1 to vsock port [`PORT`] of its host: `GET` [`BlobDigest::path`], answered by 200 with a
//! `Content-Length` and the blob, or by 404. Neither side trusts the other: the guest checks the bytes against the digest
//! as if a registry had sent them, and goes to the registry for whatever the host does not deliver; the host parses the
//! path into a [`BlobDigest`], which can name nothing but a blob.

use std::fmt;
use std::str::FromStr;

/// The host's vsock port.
pub const PORT: u32 = 1030;

/// The digest of a blob, in lower case and of the length that its algorithm has.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct BlobDigest {
    algorithm: Algorithm,
    hex: String,
}

/// The algorithms that the image specification registers.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Algorithm {
    /// SHA-256, which nearly all images have.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl BlobDigest {
    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digest itself.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Where a node's cache has the blob.
    pub fn path(&self) -> String {
        format!("{FOLDER}{self}")
    }

    /// The digest that a request's path asks for.
    ///
    /// # Errors
    /// [`NotADigest`].
    pub fn from_path(path: &str) -> Result<Self, NotADigest> {
        path.strip_prefix(FOLDER).ok_or(NotADigest)?.parse()
    }
}

impl Algorithm {
    /// Its name in digests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha384 => 96,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for BlobDigest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let (name, hex) = text.split_once(':').ok_or(NotADigest)?;
        let known = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];
        let algorithm = known.into_iter().find(|algorithm| algorithm.name() == name).ok_or(NotADigest)?;
        let is_digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if hex.len() != algorithm.hex_length() || !hex.bytes().all(is_digit) {
            return Err(NotADigest);
        }
        Ok(Self { algorithm, hex: hex.to_owned() })
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// A text that is not the digest of a blob.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("not a digest such as sha256: and 64 hexadecimal digits in lower case")]
pub struct NotADigest;

const FOLDER: &str = "/blobs/";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_digest_has_one_form() {
        for (algorithm, length) in [("sha256", 64), ("sha384", 96), ("sha512", 128)] {
            let text = format!("{algorithm}:{}", "0a".repeat(length / 2));
            let digest: BlobDigest = text.parse().unwrap();
            assert_eq!((digest.to_string(), digest.path()), (text.clone(), format!("/blobs/{text}")));
            assert_eq!(BlobDigest::from_path(&digest.path()), Ok(digest));
            for wrong in [text.to_uppercase(), format!("{text}0"), text.replace(':', ""), text.replacen('0', "/", 1)] {
                assert_eq!(wrong.parse::<BlobDigest>(), Err(NotADigest), "{wrong}");
            }
        }
        let md5 = format!("md5:{}", "0".repeat(32));
        for wrong in ["", "sha256:", "/blobs/sha256:..", md5.as_str()] {
            assert_eq!(wrong.parse::<BlobDigest>(), Err(NotADigest), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_a_path_names_is_that_path(path in "(/blobs/)?(sha256:)?[0-9a-f./%]{0,70}") {
            if let Ok(digest) = BlobDigest::from_path(&path) {
                prop_assert_eq!(digest.path(), path);
            }
        }
    }
}
