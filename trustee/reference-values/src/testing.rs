//! Signers of the tests, made anew in each.

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};

/// A key pair in PEM.
pub(crate) struct Owner {
    pub(crate) private: String,
    pub(crate) public: Vec<u8>,
}

impl Owner {
    pub(crate) fn ed25519() -> Self {
        Self::of(&PKCS_ED25519)
    }

    pub(crate) fn p256() -> Self {
        Self::of(&PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn p384() -> Self {
        Self::of(&PKCS_ECDSA_P384_SHA384)
    }

    fn of(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        Self { private: key.serialize_pem(), public: key.public_key_pem().into_bytes() }
    }
}
