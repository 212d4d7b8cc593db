//! Holders of private keys who can decrypt a layer without Trustee: ocicrypt's `jwe` recipients.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::rsa::{PublicKey, PublicKeyComponents};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use wire::jwe::TeePublicKey;

use super::Error;
use crate::pem;

/// A public key that layer keys are sealed to: RSA, or EC on P-256.
pub(super) struct Recipient {
    path: PathBuf,
    key: TeePublicKey,
}

impl Recipient {
    /// Reads a public key in PEM (SubjectPublicKeyInfo).
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let failed = |cause: String| Error::Recipient { path: path.to_owned(), cause };
        let text = fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        let der = pem::block(&text, "PUBLIC KEY").ok_or_else(|| failed("it has no PUBLIC KEY block".to_owned()))?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwk = match der.strip_prefix(P256_HEAD) {
            Some(point) if point.len() == 64 => {
                let (x, y) = point.split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": encode(x), "y": encode(y) })
            }
            _ => {
                let key = PublicKey::from_der(&der).map_err(|_| failed("it is neither RSA nor on P-256".to_owned()))?;
                let parts = PublicKeyComponents::<Vec<u8>>::from(&key);
                json!({ "kty": "RSA", "alg": "RSA-OAEP-256", "n": encode(&parts.n), "e": encode(&parts.e) })
            }
        };
        let key = TeePublicKey::from_jwk(&jwk).map_err(|e| failed(e.to_string()))?;
        Ok(Self { path: path.to_owned(), key })
    }

    /// The layer's options for this holder, as an element of the annotation's list.
    pub(super) fn seal(&self, options: &[u8]) -> Result<String, Error> {
        let failed = |cause: String| Error::Recipient { path: self.path.clone(), cause };
        let sealed = self.key.seal(options).map_err(|e| failed(e.to_string()))?;
        Ok(STANDARD.encode(serde_json::to_vec(&sealed).map_err(|e| failed(e.to_string()))?))
    }
}

/// Annotation of a layer with its options for holders of private keys: a comma-separated list of JWEs in base64.
pub(super) const JWE_ANNOTATION: &str = "org.opencontainers.image.enc.keys.jwe";
/// RFC 5480: a SubjectPublicKeyInfo on P-256 up to the point, which is uncompressed.
const P256_HEAD: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
