//! Keys that sign tokens, and the forms in which their public halves are given out.

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use serde_json::{Value, json};

pub(super) struct Signer {
    pub kind: Kind,
    pub pair: KeyPair,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    P256,
    P384,
    Ed25519,
    Rsa,
}

impl Signer {
    pub fn new(kind: Kind) -> Self {
        let algorithm = match kind {
            Kind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Kind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Kind::Ed25519 => &rcgen::PKCS_ED25519,
            Kind::Rsa => &rcgen::PKCS_RSA_SHA256,
        };
        Self { kind, pair: KeyPair::generate_for(algorithm).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.pair.public_key_pem()
    }

    /// The public key as a JWK without `alg` and `kid`.
    pub fn jwk(&self) -> Value {
        let raw = self.pair.public_key_raw();
        match self.kind {
            Kind::Ed25519 => json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(raw) }),
            Kind::P256 => json!({ "kty": "EC", "crv": "P-256", "x": encode(&raw[1..33]), "y": encode(&raw[33..]) }),
            Kind::P384 => json!({ "kty": "EC", "crv": "P-384", "x": encode(&raw[1..49]), "y": encode(&raw[49..]) }),
            Kind::Rsa => {
                let key = self.rsa();
                let (n, e) = (key.public_key().modulus(), key.public_key().exponent());
                let encoded = |number: &[u8]| encode(number);
                json!({
                    "kty": "RSA",
                    "n": encoded(n.big_endian_without_leading_zero()),
                    "e": encoded(e.big_endian_without_leading_zero()),
                })
            }
        }
    }

    /// The public key as a JWK of that name.
    pub fn named_jwk(&self, kid: &str) -> Value {
        let mut jwk = self.jwk();
        jwk["kid"] = Value::from(kid);
        jwk
    }

    /// The algorithm that a key of this kind has by default.
    pub fn algorithm(&self) -> &'static str {
        match self.kind {
            Kind::P256 => "ES256",
            Kind::P384 => "ES384",
            Kind::Ed25519 => "EdDSA",
            Kind::Rsa => "RS256",
        }
    }

    /// A token with the default algorithm and other members in its header.
    pub fn token(&self, header: Value, claims: &Value) -> String {
        let mut header = header;
        header["alg"] = Value::from(self.algorithm());
        self.token_as(&header, self.algorithm(), claims)
    }

    /// A token whose header says one thing and whose signature may be another.
    pub fn token_as(&self, header: &Value, signed_as: &str, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        format!("{signed}.{}", encode(&self.sign(signed_as, signed.as_bytes())))
    }

    fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let (der, random) = (self.pair.serialized_der(), SystemRandom::new());
        let rsa = |padding| {
            let key = self.rsa();
            let mut signature = vec![0; key.public_modulus_len()];
            key.sign(padding, &random, message, &mut signature).unwrap();
            signature
        };
        match algorithm {
            "none" => Vec::new(),
            "HS256" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, self.pem().as_bytes()), message).as_ref().to_vec(),
            "ES256" => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der).unwrap();
                key.sign(&random, message).unwrap().as_ref().to_vec()
            }
            "ES384" => {
                let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, der).unwrap();
                key.sign(&random, message).unwrap().as_ref().to_vec()
            }
            "EdDSA" => Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).unwrap().sign(message).as_ref().to_vec(),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "RS384" => rsa(&RSA_PKCS1_SHA384),
            "RS512" => rsa(&RSA_PKCS1_SHA512),
            "PS256" => rsa(&RSA_PSS_SHA256),
            other => panic!("nothing signs with {other}"),
        }
    }

    fn rsa(&self) -> RsaKeyPair {
        RsaKeyPair::from_pkcs8(self.pair.serialized_der()).unwrap()
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A JWK set.
pub(super) fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}
