//! The key that a guest has unless it asks for another kind: on P-256, or on P-521.

use aws_lc_rs::agreement::PrivateKey;
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::ecdh::{ALG, EcdhCurve};
use super::error::Error;
use super::message::Jwe;
use crate::encoding;

/// A guest's private key, made for one attestation token and bound to it by the report data.
pub struct TeeKey {
    curve: EcdhCurve,
    private: PrivateKey,
}

impl TeeKey {
    /// A new key on P-256.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn generate() -> Result<Self, Error> {
        Self::generate_on(EcdhCurve::P256)
    }

    /// A new key on the given curve.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn generate_on(curve: EcdhCurve) -> Result<Self, Error> {
        Ok(Self { curve, private: PrivateKey::generate(curve.algorithm())? })
    }

    /// Reads a PKCS#8 PEM on either curve.
    ///
    /// # Errors
    /// [`Error::Key`] for anything else.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, Error> {
        let body = pem
            .trim()
            .strip_prefix(PEM_HEAD)
            .and_then(|rest| rest.strip_suffix(PEM_TAIL))
            .ok_or(Error::Key("it is not a PEM of a PKCS#8 private key"))?;
        let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        let der = encoding::standard(&body).ok_or(Error::Key("its PEM is not base64"))?;
        [EcdhCurve::P256, EcdhCurve::P521]
            .into_iter()
            .find_map(|curve| {
                let private = PrivateKey::from_private_key_der(curve.algorithm(), &der).ok()?;
                Some(Self { curve, private })
            })
            .ok_or(Error::Key("it is not a key on P-256 or P-521"))
    }

    /// The key as PKCS#8 PEM.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it can't be encoded, which is not expected.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, Error> {
        let der: Pkcs8V1Der<'_> = self.private.as_der()?;
        let body = Zeroizing::new(STANDARD.encode(der.as_ref()));
        let mut pem = Zeroizing::new(format!("{PEM_HEAD}\n"));
        // Base64 is ASCII, so every 64 bytes are a line.
        for line in body.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str(PEM_TAIL);
        pem.push('\n');
        Ok(pem)
    }

    /// The public half as the JWK that goes into the runtime data.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it can't be computed, which is not expected.
    pub fn public_jwk(&self) -> Result<Value, Error> {
        let (x, y) = self.curve.coordinates(&self.private)?;
        Ok(json!({ "kty": "EC", "crv": self.curve.name(), "alg": ALG, "x": x, "y": y }))
    }

    /// Opens what was sealed to this key. The additional data is the header exactly as it was received.
    ///
    /// # Errors
    /// [`Error::Header`] or [`Error::Encoding`] for a malformed message, [`Error::Key`] if the other side's key is not
    /// on the curve, [`Error::Crypto`] if it was sealed to another key or changed on its way.
    pub fn open(&self, jwe: &Jwe) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.curve.unwrap(&self.private, jwe)?.open(jwe)
    }
}

const PEM_HEAD: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_TAIL: &str = "-----END PRIVATE KEY-----";
