//! Keys for sealed secrets: JWKs on P-256 (RFC 7517, RFC 7518 section 6.2), to sign with and to verify with.

use std::fmt;

use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, ParsedPublicKey,
};
use serde::Deserialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::Error;
use crate::encoding;

/// The owner's key that secrets are sealed with. It belongs at the owner's desk, in no guest.
pub struct SealingKey {
    pair: EcdsaKeyPair,
}

impl SealingKey {
    /// A new key.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn generate() -> Result<Self, Error> {
        Ok(Self { pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)? })
    }

    /// Reads a private JWK.
    ///
    /// # Errors
    /// [`Error::Jwk`] for anything else, and for halves that don't belong together.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let jwk = Jwk::parse(json)?;
        let private = jwk.d.as_deref().ok_or(Error::Jwk("it has no private half (d)"))?;
        let private = Zeroizing::new(coordinate(private)?);
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &private[..],
            &jwk.point()?,
        );
        Ok(Self { pair: pair.map_err(|_| Error::Jwk("d does not belong to x and y"))? })
    }

    /// The private JWK, with `kid` in it if one is given.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it can't be encoded, which is not expected.
    pub fn to_jwk(&self, kid: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let private: EcPrivateKeyBin<'_> = self.pair.private_key().as_be_bytes()?;
        let private = Zeroizing::new(encoding::to_url(private.as_ref()));
        let public = self.public_jwk(kid);
        // By hand, so that no copy of the key stays behind in a JSON value.
        let mut jwk = Zeroizing::new(Vec::with_capacity(public.len() + private.len() + 16));
        jwk.extend_from_slice(public.strip_suffix(b"}").ok_or(Error::Crypto)?);
        jwk.extend_from_slice(br#","d":""#);
        jwk.extend_from_slice(private.as_bytes());
        jwk.extend_from_slice(br#""}"#);
        Ok(jwk)
    }

    /// The public JWK, which guests verify with: what to store in the key broker, or to give to guests as a file.
    pub fn public_jwk(&self, kid: Option<&str>) -> Vec<u8> {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(COORDINATE);
        let mut jwk = Map::new();
        let mut set = |name: &str, value: &str| jwk.insert(name.to_owned(), Value::from(value));
        for (name, value) in [("kty", "EC"), ("crv", "P-256"), ("alg", "ES256"), ("use", "sig")] {
            set(name, value);
        }
        set("x", &encoding::to_url(x));
        set("y", &encoding::to_url(y));
        if let Some(kid) = kid {
            set("kid", kid);
        }
        Value::Object(jwk).to_string().into_bytes()
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.pair.sign(&SystemRandom::new(), message)?.as_ref().to_vec())
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey").finish_non_exhaustive()
    }
}

/// A public key that tells who sealed a secret.
#[derive(Clone)]
pub struct VerifyingKey {
    key: ParsedPublicKey,
}

impl VerifyingKey {
    /// Reads a public JWK. The private half of one that has it is not looked at.
    ///
    /// # Errors
    /// [`Error::Jwk`] for another kind of key, one for another purpose, or one that is not on the curve.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let point = Jwk::parse(json)?.point()?;
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        Ok(Self { key: key.map_err(|_| Error::Jwk("x and y are not a point of the curve"))? })
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), Error> {
        self.key.verify_sig(message, signature).map_err(|_| Error::Forged)
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyingKey").finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<Zeroizing<String>>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
}

impl Jwk {
    fn parse(json: &[u8]) -> Result<Self, Error> {
        if json.len() > MAX_JWK {
            return Err(Error::Jwk("it is longer than 16 KiB"));
        }
        // The parser's own words could repeat a private key.
        let jwk: Self = serde_json::from_slice(json).map_err(|_| Error::Jwk("it is not a JSON object with kty"))?;
        if jwk.kty != "EC" || jwk.crv.as_deref() != Some("P-256") {
            return Err(Error::Jwk("it is not a key on P-256"));
        }
        if jwk.alg.as_deref().is_some_and(|alg| alg != "ES256") {
            return Err(Error::Jwk("its alg is not ES256"));
        }
        if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return Err(Error::Jwk("its use is not sig"));
        }
        Ok(jwk)
    }

    /// The point in its uncompressed form.
    fn point(&self) -> Result<[u8; 1 + 2 * COORDINATE], Error> {
        let mut point = [UNCOMPRESSED; 1 + 2 * COORDINATE];
        let (x, y) = point[1..].split_at_mut(COORDINATE);
        for (half, text) in [(x, &self.x), (y, &self.y)] {
            half.copy_from_slice(&coordinate(text.as_deref().ok_or(Error::Jwk("it has no x or no y"))?)?);
        }
        Ok(point)
    }
}

fn coordinate(text: &str) -> Result<[u8; COORDINATE], Error> {
    let bytes = encoding::url(text).map(Zeroizing::new);
    let bytes = bytes.and_then(|bytes| bytes.as_slice().try_into().ok());
    bytes.ok_or(Error::Jwk("x, y or d is not base64url of 32 bytes"))
}

const COORDINATE: usize = 32;
const UNCOMPRESSED: u8 = 4;
const MAX_JWK: usize = 16 << 10;
