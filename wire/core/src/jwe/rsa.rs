//! Keys transported by RSA: OAEP with SHA-256, or PKCS#1 v1.5 for guests that know nothing else.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, Pkcs1PublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};

use super::error::Error;
use super::message::{A256GCM, ContentKey};
use crate::encoding;

/// A public key and the way of wrapping that its owner asked for.
pub(super) enum RsaPublicKey {
    Oaep(OaepPublicEncryptingKey),
    Pkcs1(Pkcs1PublicEncryptingKey),
}

impl RsaPublicKey {
    pub fn oaep(n: &str, e: &str) -> Result<Self, Error> {
        OaepPublicEncryptingKey::new(key(n, e)?).map(Self::Oaep).map_err(|_| REFUSED)
    }

    pub fn pkcs1(n: &str, e: &str) -> Result<Self, Error> {
        Pkcs1PublicEncryptingKey::new(key(n, e)?).map(Self::Pkcs1).map_err(|_| REFUSED)
    }

    /// The protected header and the wrapped key.
    pub fn wrap(&self, cek: &ContentKey) -> Result<(String, Vec<u8>), Error> {
        let (alg, wrapped) = match self {
            Self::Oaep(key) => {
                let mut wrapped = vec![0; key.ciphertext_size()];
                key.encrypt(&OAEP_SHA256_MGF1SHA256, cek.as_bytes(), &mut wrapped, None)?;
                (OAEP, wrapped)
            }
            Self::Pkcs1(key) => {
                let mut wrapped = vec![0; key.ciphertext_size()];
                key.encrypt(cek.as_bytes(), &mut wrapped)?;
                (PKCS1, wrapped)
            }
        };
        Ok((format!(r#"{{"alg":"{alg}","enc":"{A256GCM}"}}"#), wrapped))
    }
}

fn key(n: &str, e: &str) -> Result<PublicEncryptingKey, Error> {
    let components = PublicKeyComponents { n: encoding::url(n).ok_or(REFUSED)?, e: encoding::url(e).ok_or(REFUSED)? };
    if !(256..=1024).contains(&components.n.len()) {
        return Err(REFUSED);
    }
    let der: PublicKeyX509Der<'_> = components.as_der().map_err(|_| REFUSED)?;
    PublicEncryptingKey::from_der(der.as_ref()).map_err(|_| REFUSED)
}

pub(super) const OAEP: &str = "RSA-OAEP-256";
pub(super) const PKCS1: &str = "RSA1_5";
const REFUSED: Error = Error::Key("it is not an RSA key of 2048 to 8192 bits");

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::{
        KeySize, OaepPrivateDecryptingKey, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey, PublicKey,
    };
    use zeroize::Zeroizing;

    #[test]
    fn the_owner_of_the_key_unwraps_what_was_wrapped() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let (n, e) = jwk_members(&private);
        let cek = ContentKey::new(Zeroizing::new([7; 32]));

        let (header, wrapped) = RsaPublicKey::oaep(&n, &e).unwrap().wrap(&cek).unwrap();
        assert_eq!(header, r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#);
        let oaep = OaepPrivateDecryptingKey::new(private.clone()).unwrap();
        let mut unwrapped = vec![0; oaep.min_output_size()];
        assert_eq!(oaep.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut unwrapped, None).unwrap(), [7; 32]);

        let (header, wrapped) = RsaPublicKey::pkcs1(&n, &e).unwrap().wrap(&cek).unwrap();
        assert_eq!(header, r#"{"alg":"RSA1_5","enc":"A256GCM"}"#);
        let pkcs1 = Pkcs1PrivateDecryptingKey::new(private).unwrap();
        let mut unwrapped = vec![0; pkcs1.min_output_size()];
        assert_eq!(pkcs1.decrypt(&wrapped, &mut unwrapped).unwrap(), [7; 32]);
    }

    #[test]
    fn odd_keys_are_refused() {
        let (n, e) = jwk_members(&PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap());
        let short = encoding::to_url(&[0xff; 128]);
        let long = encoding::to_url(&[0xff; 1025]);
        for (n, e) in [(&*short, &*e), (&long, &e), ("", &e), (&n, ""), (&n, "*"), ("*", &e)] {
            assert!(RsaPublicKey::oaep(n, e).is_err(), "{n} {e}");
            assert!(RsaPublicKey::pkcs1(n, e).is_err(), "{n} {e}");
        }
    }

    fn jwk_members(private: &PrivateDecryptingKey) -> (String, String) {
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let parts = PublicKeyComponents::<Vec<u8>>::from(&PublicKey::from_der(der.as_ref()).unwrap());
        (encoding::to_url(&parts.n), encoding::to_url(&parts.e))
    }
}
