//! The keys of one issuer: a JWK set, or public keys and certificates in PEM.

use serde::Deserialize;
use serde_json::Value;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::error::Error;
use crate::jwk::{Jwk, VerifyingKey};
use crate::key::PublicKey;
use crate::token::Token;

/// Keys, each with the id that tokens name it by, if it has one.
#[derive(Debug, PartialEq)]
pub(crate) struct KeySet(Vec<(Option<String>, VerifyingKey)>);

impl KeySet {
    /// Reads a JWK set. Keys that are no public keys for signatures, or of an unknown kind, are passed over.
    ///
    /// # Errors
    /// What is wrong, if it is no JWK set, has more than 256 keys or none that can be used.
    pub fn from_jwk_set(text: &[u8]) -> Result<Self, &'static str> {
        let document: Document = serde_json::from_slice(text).map_err(|_| "it is not a JWK set")?;
        if document.keys.len() > MAX_KEYS {
            return Err("the JWK set has more than 256 keys");
        }
        let key = |jwk: &Value| {
            let jwk = Jwk::deserialize(jwk).ok()?;
            let key = jwk.verifying_key()?;
            Some((jwk.kid, key))
        };
        let keys: Vec<_> = document.keys.iter().filter_map(key).collect();
        if keys.is_empty() {
            Err("the JWK set has no key that signatures can be verified with")
        } else {
            Ok(Self(keys))
        }
    }

    /// Reads public keys (SubjectPublicKeyInfo or PKCS#1) and the keys of certificates, which nothing else is taken of.
    ///
    /// # Errors
    /// What is wrong, if there are none, more than 256, or anything else among them.
    pub fn from_pem(text: &[u8]) -> Result<Self, &'static str> {
        let mut keys = Vec::new();
        for block in Pem::iter_from_buffer(text) {
            let block = block.map_err(|_| "it is not PEM")?;
            let key = match block.label.as_str() {
                "PUBLIC KEY" => SubjectPublicKeyInfo::from_der(&block.contents)
                    .ok()
                    .and_then(|(_, spki)| PublicKey::from_spki(&spki)),
                "RSA PUBLIC KEY" => PublicKey::from_pkcs1(&block.contents),
                "CERTIFICATE" => {
                    block.parse_x509().ok().and_then(|certificate| PublicKey::from_spki(certificate.public_key()))
                }
                _ => return Err("it has something that is neither a public key nor a certificate"),
            };
            let key = key.ok_or("a key in it is not one of EC P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")?;
            keys.push((None, VerifyingKey::new(key)));
            if keys.len() > MAX_KEYS {
                return Err("it has more than 256 keys");
            }
        }
        if keys.is_empty() { Err("it has no public key in PEM") } else { Ok(Self(keys)) }
    }

    /// The claims of a token that one of the keys signed. The token's `kid` chooses among keys that have one.
    ///
    /// # Errors
    /// [`Error::UnknownKey`], [`Error::Algorithm`], [`Error::Signature`], [`Error::Form`].
    pub fn verify(&self, token: &Token<'_>) -> Result<Value, Error> {
        let mut refusal = Error::UnknownKey;
        let mut tries = 0;
        for (kid, key) in &self.0 {
            let is_named = kid.is_some() && *kid == token.kid;
            let may_be_meant = kid.is_none() || token.kid.is_none() && self.0.len() == 1;
            if !is_named && !may_be_meant {
                continue;
            }
            match token.verify(key) {
                Ok(claims) => return Ok(claims),
                // Another key may be the right one, if this one was only guessed.
                Err(e) if is_named || matches!(e, Error::Form) => refusal = farther(refusal, e),
                Err(_) => {}
            }
            // Who sends a token must not choose how many signatures are computed for it.
            tries += usize::from(key.suits(token.algorithm));
            if tries == MAX_TRIES {
                break;
            }
        }
        Err(refusal)
    }

    /// The key as this set has it.
    pub fn find(&self, key: &PublicKey) -> Option<&VerifyingKey> {
        self.0.iter().map(|(_, known)| known).find(|known| known.key == *key)
    }
}

fn farther(one: Error, other: Error) -> Error {
    if other.progress() > one.progress() { other } else { one }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

const MAX_KEYS: usize = 256;
const MAX_TRIES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_is_no_key_for_signatures_is_passed_over() {
        let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
        let with = |member: &str, value: Value| {
            let mut jwk = ed.clone();
            jwk[member] = value;
            jwk
        };
        let count =
            |keys: Value| KeySet::from_jwk_set(json!({ "keys": keys }).to_string().as_bytes()).map(|k| k.0.len());
        let none = Err("the JWK set has no key that signatures can be verified with");
        assert_eq!(count(json!([ed, with("use", json!("sig")), with("alg", json!("EdDSA"))])), Ok(3));
        assert_eq!(count(json!([with("use", json!("enc"))])), none);
        assert_eq!(count(json!([with("key_ops", json!(["sign"]))])), none);
        assert_eq!(count(json!([with("alg", json!("HS256"))])), none);
        assert_eq!(count(json!([with("alg", json!("ES256"))])), none);
        assert_eq!(count(json!([with("x", json!("AA"))])), none);
        assert_eq!(count(json!([{ "kty": "oct", "k": "AAAA" }, 7, null, {}, [], "x"])), none);
        assert_eq!(count(json!([{ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }])), none);
        assert_eq!(count(json!([{ "kty": "RSA", "n": "AQAB", "e": "AQAB" }])), none);
        assert_eq!(count(json!(vec![ed.clone(); 256])), Ok(256));
        assert_eq!(count(json!(vec![ed; 257])), Err("the JWK set has more than 256 keys"));
        assert!(KeySet::from_jwk_set(b"{}").is_err() && KeySet::from_jwk_set(b"").is_err());
    }

    #[test]
    fn a_private_key_is_no_public_key() {
        let private = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(KeySet::from_pem(private), Err("it has something that is neither a public key nor a certificate"));
        assert_eq!(KeySet::from_pem(b""), Err("it has no public key in PEM"));
    }

    proptest! {
        #[test]
        fn no_document_makes_it_panic(text in "\\PC{0,200}", der in proptest::collection::vec(any::<u8>(), 0..200)) {
            use base64::Engine as _;
            let _ = KeySet::from_jwk_set(text.as_bytes());
            let _ = KeySet::from_pem(text.as_bytes());
            for label in ["PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE"] {
                let der = base64::engine::general_purpose::STANDARD.encode(&der);
                let _ = KeySet::from_pem(format!("-----BEGIN {label}-----\n{der}\n-----END {label}-----\n").as_bytes());
            }
        }
    }
}
