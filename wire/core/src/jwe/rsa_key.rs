//! The private key of a guest that was told to have RSA.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    KeyPair, KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey, PublicKey,
    PublicKeyComponents,
};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::Error;
use super::message::{A256GCM, ContentKey, Jwe};
use super::rsa::OAEP;
use crate::encoding;

/// An RSA key that secrets are sealed to with OAEP and SHA-256.
pub(super) struct RsaKey {
    private: PrivateDecryptingKey,
    oaep: OaepPrivateDecryptingKey,
}

impl RsaKey {
    /// Of 2048 bits, as upstream's guests make them.
    pub fn generate() -> Result<Self, Error> {
        Self::new(PrivateDecryptingKey::generate(KeySize::Rsa2048)?)
    }

    pub fn from_pkcs1(der: &[u8]) -> Result<Self, Error> {
        let pair = KeyPair::from_der(der).map_err(|_| REFUSED)?;
        let pkcs8: Pkcs8V1Der<'_> = pair.as_der()?;
        Self::new(PrivateDecryptingKey::from_pkcs8(pkcs8.as_ref()).map_err(|_| REFUSED)?)
    }

    pub fn to_pkcs1(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let pkcs8: Pkcs8V1Der<'_> = self.private.as_der()?;
        // Both lengths, at 2 and 24, have two bytes for keys of 2048 to 8192 bits.
        match pkcs8.as_ref().split_at_checked(26) {
            Some((head, pkcs1)) if head[4..24] == PKCS8_HEAD => Ok(Zeroizing::new(pkcs1.to_vec())),
            _ => Err(Error::Crypto),
        }
    }

    pub fn public_jwk(&self) -> Result<Value, Error> {
        let der: PublicKeyX509Der<'_> = self.private.public_key().as_der()?;
        let parts = PublicKeyComponents::<Vec<u8>>::from(&PublicKey::from_der(der.as_ref()).map_err(|_| REFUSED)?);
        let (n, e) = (encoding::to_url(&parts.n), encoding::to_url(&parts.e));
        Ok(json!({ "kty": "RSA", "alg": OAEP, "n": n, "e": e }))
    }

    /// The content encryption key that was wrapped for this key.
    pub fn unwrap(&self, jwe: &Jwe) -> Result<ContentKey, Error> {
        let header: Header = jwe.header()?;
        if header.alg != OAEP || header.enc != A256GCM {
            return Err(Error::Header);
        }
        let wrapped = encoding::url(&jwe.encrypted_key).ok_or(Error::Encoding("encrypted_key"))?;
        let mut unwrapped = Zeroizing::new(vec![0; self.oaep.min_output_size()]);
        let key = self.oaep.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut unwrapped, None)?;
        let key = Zeroizing::new((&*key).try_into().map_err(|_| Error::Crypto)?);
        Ok(ContentKey::new(key))
    }

    fn new(private: PrivateDecryptingKey) -> Result<Self, Error> {
        let oaep = OaepPrivateDecryptingKey::new(private.clone()).map_err(|_| REFUSED)?;
        Ok(Self { private, oaep })
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
}

/// What PKCS#8 has between its length and that of the PKCS#1 document: version 0, rsaEncryption, an octet string.
const PKCS8_HEAD: [u8; 20] = [
    0x02, 0x01, 0x00, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00, 0x04,
    0x82,
];
const REFUSED: Error = Error::Key("it is not an RSA private key of 2048 to 8192 bits");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_length_is_read_as_it_was_written() {
        for size in [KeySize::Rsa2048, KeySize::Rsa4096] {
            let key = RsaKey::new(PrivateDecryptingKey::generate(size).unwrap()).unwrap();
            let der = key.to_pkcs1().unwrap();
            let read = RsaKey::from_pkcs1(&der).unwrap();
            assert_eq!(read.to_pkcs1().unwrap(), der);
            assert_eq!(read.public_jwk().unwrap(), key.public_jwk().unwrap());
        }
        for der in [&[][..], b"nonsense", &[0x30, 0x82, 0xff, 0xff]] {
            assert!(matches!(RsaKey::from_pkcs1(der), Err(Error::Key(_))));
        }
    }
}
