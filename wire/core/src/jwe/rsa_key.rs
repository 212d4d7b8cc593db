//! The private key of a guest that brings RSA: no guest of ours does, but tools can be told to.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeyPair, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey, PublicKey, PublicKeyComponents,
};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::Error;
use super::message::{A256GCM, ContentKey, Jwe};
use super::rsa::OAEP;
use crate::encoding;

/// An RSA key that secrets are sealed to with OAEP and SHA-256.
pub struct RsaKey {
    private: OaepPrivateDecryptingKey,
    public: Value,
}

impl RsaKey {
    /// Reads a PKCS#1 PEM.
    ///
    /// # Errors
    /// [`Error::Key`] for anything else.
    pub fn from_pkcs1_pem(pem: &str) -> Result<Self, Error> {
        let body = pem.trim().strip_prefix(PEM_HEAD).and_then(|rest| rest.strip_suffix(PEM_TAIL));
        let body = body.ok_or(Error::Key("it is not a PEM of a PKCS#1 private key"))?;
        let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        let der = Zeroizing::new(encoding::standard(&body).ok_or(Error::Key("its PEM is not base64"))?);
        let pair = KeyPair::from_der(&der).map_err(|_| REFUSED)?;
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der()?;
        Self::new(PrivateDecryptingKey::from_pkcs8(pkcs8.as_ref()).map_err(|_| REFUSED)?)
    }

    /// The public half as the JWK that goes into the runtime data.
    ///
    /// # Errors
    /// None; other kinds of keys have some.
    pub fn public_jwk(&self) -> Result<Value, Error> {
        Ok(self.public.clone())
    }

    /// Opens what was sealed to this key.
    ///
    /// # Errors
    /// [`Error::Header`] or [`Error::Encoding`] for a malformed message, [`Error::Crypto`] if it was sealed to another
    /// key or changed on its way.
    pub fn open(&self, jwe: &Jwe) -> Result<Zeroizing<Vec<u8>>, Error> {
        let header: Header = jwe.header()?;
        if header.alg != OAEP || header.enc != A256GCM {
            return Err(Error::Header);
        }
        let wrapped = encoding::url(&jwe.encrypted_key).ok_or(Error::Encoding("encrypted_key"))?;
        let mut unwrapped = Zeroizing::new(vec![0; self.private.min_output_size()]);
        let key = self.private.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut unwrapped, None)?;
        let key = Zeroizing::new((&*key).try_into().map_err(|_| Error::Crypto)?);
        ContentKey::new(key).open(jwe)
    }

    fn new(private: PrivateDecryptingKey) -> Result<Self, Error> {
        let der: PublicKeyX509Der<'_> = private.public_key().as_der()?;
        let parts = PublicKeyComponents::<Vec<u8>>::from(&PublicKey::from_der(der.as_ref()).map_err(|_| REFUSED)?);
        let (n, e) = (encoding::to_url(&parts.n), encoding::to_url(&parts.e));
        let public = json!({ "kty": "RSA", "alg": OAEP, "n": n, "e": e });
        Ok(Self { private: OaepPrivateDecryptingKey::new(private).map_err(|_| REFUSED)?, public })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
}

const PEM_HEAD: &str = "-----BEGIN RSA PRIVATE KEY-----";
const PEM_TAIL: &str = "-----END RSA PRIVATE KEY-----";
const REFUSED: Error = Error::Key("it is not an RSA private key of 2048 to 8192 bits");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwe::TeePublicKey;
    use aws_lc_rs::rsa::KeySize;

    #[test]
    fn the_key_opens_what_was_sealed_to_its_public_half() {
        let key = RsaKey::new(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()).unwrap();
        let other = RsaKey::new(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap()).unwrap();
        let sealed = TeePublicKey::from_jwk(&key.public_jwk().unwrap()).unwrap().seal(b"a secret").unwrap();
        assert_eq!(key.open(&sealed).unwrap().as_slice(), b"a secret");
        assert_eq!(other.open(&sealed).err(), Some(Error::Crypto));
        assert!(
            RsaKey::from_pkcs1_pem("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----").is_err()
        );
        assert!(RsaKey::from_pkcs1_pem("nonsense").is_err());
    }
}
