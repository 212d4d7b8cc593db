//! Public keys, and the algorithms that each kind of key may verify.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ED25519};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::{PublicKey as SpkiKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::error::Error;

/// A public key in the one form that makes equal keys equal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum PublicKey {
    /// An uncompressed point.
    P256(Vec<u8>),
    /// An uncompressed point.
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    /// Modulus and exponent without leading zeros.
    Rsa(Vec<u8>, Vec<u8>),
}

/// A signature algorithm of JWS (RFC 7518 and RFC 8037). Those with shared secrets, and none, are not among them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Algorithm {
    Es256,
    Es384,
    EdDsa,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
}

impl PublicKey {
    /// The key of an uncompressed point; none where the point is not on its curve.
    pub fn p256(point: Vec<u8>) -> Option<Self> {
        is_key(&ECDSA_P256_SHA256_FIXED, &point, 65).then_some(Self::P256(point))
    }

    /// The key of an uncompressed point; none where the point is not on its curve.
    pub fn p384(point: Vec<u8>) -> Option<Self> {
        is_key(&ECDSA_P384_SHA384_FIXED, &point, 97).then_some(Self::P384(point))
    }

    pub fn ed25519(key: Vec<u8>) -> Option<Self> {
        is_key(&ED25519, &key, 32).then_some(Self::Ed25519(key))
    }

    /// The key of a modulus of 2048 to 8192 bits, and an exponent.
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let (n, e) = (without_zeros(modulus), without_zeros(exponent));
        let bits = 8 * n.len() - n.first()?.leading_zeros() as usize;
        let usable = (2048..=8192).contains(&bits)
            && RsaPublicKeyComponents { n, e }.to_parsed_public_key(&RSA_PKCS1_2048_8192_SHA256).is_ok();
        usable.then(|| Self::Rsa(n.to_vec(), e.to_vec()))
    }

    /// The key of an X.509 SubjectPublicKeyInfo, if it is of a kind that is known here.
    pub fn from_spki(spki: &SubjectPublicKeyInfo<'_>) -> Option<Self> {
        let bytes = || spki.subject_public_key.data.to_vec();
        let algorithm = &spki.algorithm;
        if let Ok(SpkiKey::RSA(key)) = spki.parsed() {
            Self::rsa(key.modulus, key.exponent)
        } else if algorithm.algorithm == OID_SIG_ED25519 {
            Self::ed25519(bytes())
        } else if algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
            let curve = algorithm.parameters.as_ref()?.as_oid().ok()?;
            match curve {
                curve if curve == OID_EC_P256 => Self::p256(bytes()),
                curve if curve == OID_NIST_EC_P384 => Self::p384(bytes()),
                _ => None,
            }
        } else {
            None
        }
    }

    /// The key of a PKCS#1 RSAPublicKey.
    pub fn from_pkcs1(der: &[u8]) -> Option<Self> {
        let (_, key) = RSAPublicKey::from_der(der).ok()?;
        Self::rsa(key.modulus, key.exponent)
    }

    /// Whether a signature under an algorithm can be one of this key.
    pub fn suits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Ps256, Rs256, Rs384, Rs512};
        match self {
            Self::P256(_) => algorithm == Es256,
            Self::P384(_) => algorithm == Es384,
            Self::Ed25519(_) => algorithm == EdDsa,
            Self::Rsa(..) => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256),
        }
    }

    /// Verifies a signature.
    ///
    /// # Errors
    /// [`Error::Algorithm`] unless the algorithm suits the key, [`Error::Signature`].
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), Error> {
        let plain = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature)
        };
        let rsa = |parameters: &'static RsaParameters, n: &[u8], e: &[u8]| {
            RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
        };
        let result = match (self, algorithm) {
            (Self::P256(point), Algorithm::Es256) => plain(&ECDSA_P256_SHA256_FIXED, point),
            (Self::P384(point), Algorithm::Es384) => plain(&ECDSA_P384_SHA384_FIXED, point),
            (Self::Ed25519(key), Algorithm::EdDsa) => plain(&ED25519, key),
            (Self::Rsa(n, e), Algorithm::Rs256) => rsa(&RSA_PKCS1_2048_8192_SHA256, n, e),
            (Self::Rsa(n, e), Algorithm::Rs384) => rsa(&RSA_PKCS1_2048_8192_SHA384, n, e),
            (Self::Rsa(n, e), Algorithm::Rs512) => rsa(&RSA_PKCS1_2048_8192_SHA512, n, e),
            (Self::Rsa(n, e), Algorithm::Ps256) => rsa(&RSA_PSS_2048_8192_SHA256, n, e),
            _ => return Err(Error::Algorithm),
        };
        result.map_err(|_| Error::Signature)
    }
}

impl Algorithm {
    /// The algorithm of a header's or a JWK's `alg`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" | "Ed25519" => Self::EdDsa,
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            _ => return None,
        })
    }
}

fn is_key(algorithm: &'static dyn VerificationAlgorithm, bytes: &[u8], length: usize) -> bool {
    bytes.len() == length && ParsedPublicKey::new(algorithm, bytes).is_ok()
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|&&byte| byte == 0).count();
    &number[zeros..]
}
