//! How initdata is bound to the hardware: its digest, fitted to the field that the launch set.

use wire::initdata::InitData;

use crate::Error;

/// The digest of an initdata document: 32, 48 or 64 bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InitDataDigest(Vec<u8>);

impl InitDataDigest {
    /// Takes a digest of SHA-256 (or SM3), SHA-384 or SHA-512.
    ///
    /// # Errors
    /// [`Error::Digest`] for any other length.
    pub fn new(digest: &[u8]) -> Result<Self, Error> {
        match digest.len() {
            32 | 48 | 64 => Ok(Self(digest.to_vec())),
            length => Err(Error::Digest { what: "initdata", expected: "32, 48 or 64", length }),
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares with a field of the hardware, for which the digest is cut off or padded with zeros on the right.
    ///
    /// # Errors
    /// [`Error::InitData`].
    pub(crate) fn matches(&self, register: &'static str, held: &[u8]) -> Result<Binding, Error> {
        let mut expected = self.0.clone();
        expected.resize(held.len(), 0);
        if held != expected {
            let (expected, actual) = (hex::encode(held), hex::encode(expected));
            return Err(Error::InitData { register, expected, actual });
        }
        Ok(Binding::Matched { register })
    }
}

impl From<&InitData> for InitDataDigest {
    fn from(initdata: &InitData) -> Self {
        Self(initdata.digest())
    }
}

/// How the hardware holds the initdata's digest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Binding {
    /// The launch set it, and it is the same.
    Matched {
        /// The hardware's field.
        register: &'static str,
    },
    /// It was extended into this PCR just now: the verifier finds it in the quote.
    Extended {
        /// The PCR.
        pcr: u32,
    },
    /// The TEE has no field for it: nothing proves which initdata the guest has.
    Unsupported,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_cut_or_padded_to_the_field() {
        for (digest, width) in [(32, 32), (32, 48), (48, 32), (64, 48), (64, 32)] {
            let digest = InitDataDigest::new(&vec![7; digest]).unwrap();
            let mut held = digest.as_bytes().to_vec();
            held.resize(width, 0);

            assert_eq!(digest.matches("FIELD", &held).unwrap(), Binding::Matched { register: "FIELD" });
            held[31] ^= 1;
            let error = digest.matches("FIELD", &held).unwrap_err().to_string();
            assert!(error.contains("FIELD") && error.contains(&hex::encode(&held)), "{error}");
        }
    }

    #[test]
    fn a_digest_of_no_known_hash_is_refused() {
        for length in [0, 20, 31, 65] {
            assert!(matches!(InitDataDigest::new(&vec![0; length]), Err(Error::Digest { .. })));
        }
    }
}
