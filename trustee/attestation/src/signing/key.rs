//! One key of the token signer: EC P-256, as a JWK (RFC 7517), named by its thumbprint (RFC 7638).

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::token::ALGORITHM;

/// A key that signs.
pub(super) struct SigningKey {
    pair: EcdsaKeyPair,
    /// The protected header, the same for every token, in base64url.
    header: String,
    public: PublicKey,
}

/// A key that verifies.
#[derive(Clone)]
pub(super) struct PublicKey {
    /// The thumbprint, in base64url.
    pub id: String,
    point: Vec<u8>,
    /// As a token's header has it: with the certificates, without the id.
    jwk: Value,
}

/// What comes with a key that an owner's certification authority vouches for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Certificates {
    /// The certificates in DER, the key's own first.
    pub chain: Vec<Vec<u8>>,
    /// Where to get them.
    pub url: Option<String>,
}

impl SigningKey {
    /// Makes a key, in PKCS#8.
    pub fn generate() -> Option<Zeroizing<Vec<u8>>> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).ok()?;
        Some(Zeroizing::new(pair.to_pkcs8v1().ok()?.as_ref().to_vec()))
    }

    /// Reads a key in PKCS#8 or RFC 5915 (SEC 1), in DER.
    pub fn from_der(document: &[u8], certificates: &Certificates) -> Option<Self> {
        let pair = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, document).ok()?;
        let public = PublicKey::from_point(pair.public_key().as_ref(), certificates)?;
        let header = json!({ "typ": "JWT", "alg": ALGORITHM, "kid": public.id, "jwk": public.jwk });
        Some(Self { pair, header: URL_SAFE_NO_PAD.encode(header.to_string()), public })
    }

    /// The key that verifies what this one signs.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A compact JWS over a payload; nothing if the system gives no randomness.
    pub fn sign(&self, payload: &str) -> Option<String> {
        let length = self.header.len() + payload.len().div_ceil(3) * 4 + 90;
        let mut token = String::with_capacity(length);
        token.push_str(&self.header);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(payload, &mut token);
        let signature = self.pair.sign(&SystemRandom::new(), token.as_bytes()).ok()?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Some(token)
    }

    /// Whether a token's header, in base64url, is the one of this key.
    pub fn has_header(&self, header: &str) -> bool {
        self.header == header
    }
}

impl PublicKey {
    /// The key of an uncompressed point: 4, x, y.
    pub fn from_point(point: &[u8], certificates: &Certificates) -> Option<Self> {
        let (x, y) = match point {
            [4, coordinates @ ..] if coordinates.len() == 64 => coordinates.split_at(32),
            _ => return None,
        };
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        let canonical = format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}");
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()));
        let mut jwk = json!({ "kty": "EC", "crv": "P-256", "alg": ALGORITHM, "x": x, "y": y });
        if !certificates.chain.is_empty() {
            jwk["x5c"] = certificates.chain.iter().map(|der| STANDARD.encode(der)).collect();
        }
        if let Some(url) = &certificates.url {
            jwk["x5u"] = Value::from(url.as_str());
        }
        Some(Self { id, point: point.to_vec(), jwk })
    }

    pub fn point(&self) -> &[u8] {
        &self.point
    }

    /// As a JWK set publishes it.
    pub fn published(&self) -> Value {
        let mut jwk = self.jwk.clone();
        jwk["kid"] = Value::from(self.id.as_str());
        jwk["use"] = Value::from("sig");
        jwk
    }

    /// Whether the signature, r and s of 32 bytes each, is this key's.
    pub fn verifies(&self, signed: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point).verify(signed, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinate_that_begins_with_zeros_is_padded() {
        let mut point = vec![4];
        point.extend([0; 2]);
        point.extend([7; 62]);
        let key = PublicKey::from_point(&point, &Certificates::default()).unwrap();
        let jwk = key.published();
        assert_eq!(jwk["x"].as_str().unwrap().len(), 43);
        assert_eq!(URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap()[..3], [0, 0, 7]);
        assert!(PublicKey::from_point(&point[..64], &Certificates::default()).is_none());
    }

    #[test]
    fn the_id_is_the_thumbprint_of_rfc_7638() {
        // The key of RFC 7515, appendix A.3; its thumbprint was computed with another implementation.
        let coordinates =
            ["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"];
        let mut point = vec![4];
        coordinates.iter().for_each(|part| point.extend(URL_SAFE_NO_PAD.decode(part).unwrap()));
        let key = PublicKey::from_point(&point, &Certificates::default()).unwrap();
        assert_eq!(key.id, "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U");
    }
}
