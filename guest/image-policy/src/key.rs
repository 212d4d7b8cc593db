//! Public keys as sigstore has them: PEM with a SubjectPublicKeyInfo, and signatures over a whole message.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, VerificationAlgorithm,
};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;

/// A public key on P-256 or P-384, an Ed25519 key, or an RSA key of 2048 to 8192 bits.
#[derive(Clone)]
pub(crate) struct PublicKey {
    spki: Vec<u8>,
    /// With each algorithm that the key may have been used with.
    parsed: Vec<ParsedPublicKey>,
}

impl PublicKey {
    /// Parses every key of a PEM text.
    ///
    /// # Errors
    /// Says what is wrong with the first that is not such a key, or that there is none.
    pub(crate) fn parse_pem(pem: &[u8]) -> Result<Vec<Self>, String> {
        let keys: Result<Vec<_>, String> = SubjectPublicKeyInfoDer::pem_slice_iter(pem)
            .take(MAX_KEYS)
            .map(|key| Self::parse(key.map_err(|e| format!("it is not PEM: {e}"))?.as_ref()))
            .collect();
        match keys {
            Ok(keys) if keys.is_empty() => Err("it has no PEM block \"PUBLIC KEY\"".to_owned()),
            keys => keys,
        }
    }

    /// Parses a SubjectPublicKeyInfo in DER.
    pub(crate) fn parse(spki: &[u8]) -> Result<Self, String> {
        let parsed: Vec<_> =
            ALGORITHMS.into_iter().filter_map(|algorithm| ParsedPublicKey::new(algorithm, spki).ok()).collect();
        match parsed.is_empty() {
            true => Err("it is not a key on P-256 or P-384, an Ed25519 key or an RSA key".to_owned()),
            false => Ok(Self { spki: spki.to_owned(), parsed }),
        }
    }

    /// Whether `signature` is by this key over `message`.
    ///
    /// With a key on P-384 the message may be hashed by SHA-256, as cosign does, or by SHA-384, as newer clients do.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        self.parsed.iter().any(|key| key.verify_sig(message, signature).is_ok())
    }

    /// The SubjectPublicKeyInfo in DER.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The SHA-256 digest of the SubjectPublicKeyInfo, by which logs are told apart and people compare keys.
    pub(crate) fn id(&self) -> String {
        hex::encode(digest::digest(&digest::SHA256, &self.spki))
    }
}

static ALGORITHMS: [&dyn VerificationAlgorithm; 5] =
    [&ECDSA_P256_SHA256_ASN1, &ECDSA_P384_SHA256_ASN1, &ECDSA_P384_SHA384_ASN1, &ED25519, &RSA_PKCS1_2048_8192_SHA256];
const MAX_KEYS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    };
    use base64::prelude::{BASE64_STANDARD, Engine as _};

    fn pem(spki: &[u8]) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64_STANDARD.encode(spki))
    }

    fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm) -> (Vec<u8>, Vec<u8>) {
        let pair = EcdsaKeyPair::generate(algorithm).unwrap();
        let signature = pair.sign(&SystemRandom::new(), b"message").unwrap();
        (pair.public_key().as_der().unwrap().as_ref().to_vec(), signature.as_ref().to_vec())
    }

    #[test]
    fn each_kind_of_key_verifies_what_it_signed_and_nothing_else() {
        let ed25519 = Ed25519KeyPair::generate().unwrap();
        let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let mut by_rsa = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), b"message", &mut by_rsa).unwrap();
        let signed = [
            ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING),
            ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING),
            (ed25519.public_key().as_der().unwrap().as_ref().to_vec(), ed25519.sign(b"message").as_ref().to_vec()),
            (rsa.public_key().as_der().unwrap().as_ref().to_vec(), by_rsa),
        ];
        for (index, (spki, signature)) in signed.iter().enumerate() {
            let keys = PublicKey::parse_pem(pem(spki).as_bytes()).unwrap();
            assert!(keys[0].verifies(b"message", signature), "key {index}");
            assert!(!keys[0].verifies(b"massage", signature), "key {index}");
            let (_, other) = &signed[(index + 1) % signed.len()];
            assert!(!keys[0].verifies(b"message", other), "key {index}");
        }
    }

    #[test]
    fn a_file_may_hold_several_keys() {
        let (first, second) = (ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING), ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING));
        let keys = PublicKey::parse_pem(format!("{}\n{}", pem(&first.0), pem(&second.0)).as_bytes()).unwrap();
        assert_eq!(keys.iter().map(PublicKey::spki).collect::<Vec<_>>(), [&first.0[..], &second.0[..]]);
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for (text, reason) in [
            ("", "no PEM block"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a key"),
            ("-----BEGIN PUBLIC KEY-----\nAAAA\n", "not PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no PEM block"),
        ] {
            let error = PublicKey::parse_pem(text.as_bytes()).err().unwrap();
            assert!(error.contains(reason), "{text:?} gave {error:?}");
        }
    }
}
