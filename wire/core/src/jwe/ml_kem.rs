//! Keys encapsulated by ML-KEM-768 (FIPS 203), which a quantum computer doesn't open: ML-KEM-768+A192KW.

use aes_kw::{KeyInit, KwAes192};
use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::Error;
use super::kmac::kmac256;
use super::message::{A256GCM, ContentKey, Jwe, KEY_LEN};
use crate::encoding;

/// A guest's private key of this kind.
pub(super) struct MlKemKey {
    private: DecapsulationKey,
    /// Of the encapsulation key, base64url.
    public: String,
}

impl MlKemKey {
    pub fn generate() -> Result<Self, Error> {
        let private = DecapsulationKey::generate(&ML_KEM_768)?;
        let public = encoding::to_url(private.encapsulation_key()?.key_bytes()?.as_ref());
        Ok(Self { private, public })
    }

    /// `None` for anything but an expanded key as [`MlKemKey::to_pkcs8`] writes it.
    pub fn from_pkcs8(der: &[u8]) -> Option<Self> {
        let expanded = der.strip_prefix(&PKCS8_HEAD)?;
        let private = DecapsulationKey::new(&ML_KEM_768, expanded).ok()?;
        let public = encoding::to_url(expanded.get(PUBLIC)?);
        Some(Self { private, public })
    }

    pub fn to_pkcs8(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let expanded = self.private.key_bytes()?;
        Ok(Zeroizing::new([&PKCS8_HEAD, expanded.as_ref()].concat()))
    }

    pub fn public_jwk(&self) -> Value {
        json!({ "kty": "AKP", "alg": ALG, "pub": self.public })
    }

    /// The content encryption key that was wrapped for this key.
    pub fn unwrap(&self, jwe: &Jwe) -> Result<ContentKey, Error> {
        let header: Header = jwe.header()?;
        if header.alg != ALG || header.enc != A256GCM {
            return Err(Error::Header);
        }
        let wrapped: [u8; KEY_LEN + 8] = jwe.wrapped_key()?;
        let encapsulated = encoding::url(&header.ek).ok_or(Error::Header)?;
        let secret = self.private.decapsulate(Ciphertext::from(&*encapsulated))?;
        let mut cek = Zeroizing::new([0; KEY_LEN]);
        wrapping(secret.as_ref())?.unwrap_key(&wrapped, &mut *cek).map_err(|_| Error::Crypto)?;
        Ok(ContentKey::new(cek))
    }
}

/// The public half as Trustee uses it.
pub(super) struct MlKemPublicKey(EncapsulationKey);

impl MlKemPublicKey {
    pub fn new(public: &str) -> Result<Self, Error> {
        let refused = Error::Key("it is not an encapsulation key of ML-KEM-768");
        let public = encoding::url(public).ok_or(refused)?;
        let key = EncapsulationKey::new(&ML_KEM_768, &public).map_err(|_| refused)?;
        // FIPS 203 section 7.2: the key is checked where it is used.
        key.encapsulate().map_err(|_| refused)?;
        Ok(Self(key))
    }

    /// The protected header and the wrapped key.
    pub fn wrap(&self, cek: &ContentKey) -> Result<(String, Vec<u8>), Error> {
        let (encapsulated, secret) = self.0.encapsulate()?;
        let mut wrapped = [0; KEY_LEN + 8];
        wrapping(secret.as_ref())?.wrap_key(cek.as_bytes(), &mut wrapped).map_err(|_| Error::Crypto)?;
        let ek = encoding::to_url(encapsulated.as_ref());
        Ok((format!(r#"{{"alg":"{ALG}","enc":"{A256GCM}","ek":"{ek}"}}"#), wrapped.to_vec()))
    }
}

/// AES key wrap (RFC 3394) under the key of 192 bits that follows from a shared secret.
fn wrapping(secret: &[u8]) -> Result<KwAes192, Error> {
    let mut info = (ALG.len() as u32).to_be_bytes().to_vec();
    info.extend_from_slice(ALG.as_bytes());
    info.extend_from_slice(&(8 * KEK_LEN as u32).to_be_bytes());
    let kek = kmac256::<KEK_LEN>(secret, &info);
    KwAes192::new_from_slice(&*kek).map_err(|_| Error::Crypto)
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
    ek: String,
}

pub(super) const ALG: &str = "ML-KEM-768+A192KW";
const KEK_LEN: usize = 24;
/// All of the PKCS#8 document (RFC 9935) but the expanded key, which has one length: version 0, id-alg-ml-kem-768, and an
/// octet string in another.
const PKCS8_HEAD: [u8; 28] = [
    0x30, 0x82, 0x09, 0x78, 0x02, 0x01, 0x00, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x04,
    0x02, 0x04, 0x82, 0x09, 0x64, 0x04, 0x82, 0x09, 0x60,
];
/// Where an expanded key has the encapsulation key (FIPS 203, algorithm 16).
const PUBLIC: std::ops::Range<usize> = 1152..2336;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wrapping_key_is_the_one_of_another_implementation() {
        // openssl mac -macopt hexkey:00..1f -macopt size:24 KMAC-256 over len32(alg) alg bits32(192), and RFC 3394 by
        // openssl enc -id-aes192-wrap under what comes out.
        let secret: Vec<u8> = (0..32).collect();
        let mut wrapped = [0; 40];
        wrapping(&secret).unwrap().wrap_key(&[0x11; 32], &mut wrapped).unwrap();
        assert_eq!(
            hex::encode(wrapped),
            "4a1a2c5defb8eb147ff9860d6ac3b17089c27a9beaf2ce8787fe7be329826fb9a1d7497b18abec0a"
        );
    }

    #[test]
    fn the_vector_of_rfc_3394_for_192_bits_comes_out() {
        let kek = hex::decode("000102030405060708090a0b0c0d0e0f1011121314151617").unwrap();
        let data = hex::decode("00112233445566778899aabbccddeeff0001020304050607").unwrap();
        let mut wrapped = [0; 32];
        KwAes192::new_from_slice(&kek).unwrap().wrap_key(&data, &mut wrapped).unwrap();
        assert_eq!(hex::encode(wrapped), "031d33264e15d33268f24ec260743edce1c6c7ddee725a936ba814915c6762d2");
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let key = MlKemKey::generate().unwrap();
        let der = key.to_pkcs8().unwrap();
        let read = MlKemKey::from_pkcs8(&der).unwrap();
        assert_eq!(read.public, key.public);
        assert_eq!(read.to_pkcs8().unwrap(), der);
        assert!(MlKemKey::from_pkcs8(&der[..der.len() - 1]).is_none());
        assert!(MlKemKey::from_pkcs8(&[&der, &[0][..]].concat()).is_none());
        assert!(MlKemKey::from_pkcs8(&[]).is_none());
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        let good = MlKemKey::generate().unwrap().public;
        // Coefficients beyond the modulus, which FIPS 203 section 7.2 has refused.
        let beyond = encoding::to_url(&[0xff; 1184]);
        for public in ["", "*", &good[..good.len() - 4], &format!("{good}AAAA"), &beyond] {
            assert!(MlKemPublicKey::new(public).is_err(), "{public}");
        }
        assert!(MlKemPublicKey::new(&good).is_ok());
    }
}
