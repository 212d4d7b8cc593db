//! Secrets sealed to a guest's key: flattened JWE JSON (RFC 7516) with A256GCM content encryption.
//!
//! The guest's key decides how: agreed by ECDH-ES+A256KW, transported by RSA-OAEP-256 or RSA1_5, or encapsulated by
//! ML-KEM-768+A192KW. Upstream guests compute the additional data from a header that they serialise again, so the
//! protected header is compact JSON with `alg` and `enc` first and what else there is (`epk` or `ek`) after them.

mod ecdh;
mod error;
mod kmac;
mod message;
mod ml_kem;
mod rsa;
mod rsa_key;
mod tee_key;

use serde::Deserialize;
use serde_json::Value;

pub use ecdh::EcdhCurve;
pub use error::Error;
pub use message::Jwe;
pub use ml_kem::MlKemKey;
pub use rsa_key::RsaKey;
pub use tee_key::TeeKey;

use ecdh::EcdhPublicKey;
use message::ContentKey;
use ml_kem::MlKemPublicKey;
use rsa::RsaPublicKey;

/// The public half of a guest's key, which decides how secrets are sealed to it.
pub struct TeePublicKey(PublicKey);

impl TeePublicKey {
    /// Reads the JWK of a guest, for any algorithm but RSA1_5.
    ///
    /// # Errors
    /// [`Error::Key`] for any other kind of key, curve or algorithm, and for a point that is not on its curve.
    pub fn from_jwk(jwk: &Value) -> Result<Self, Error> {
        Self::from_jwk_with(jwk, false)
    }

    /// Reads the JWK of a guest. RSA1_5 is for guests that know nothing better: whoever can watch the guest handle
    /// changed messages learns the secret from its timing.
    ///
    /// # Errors
    /// [`Error::Key`] for any other kind of key, curve or algorithm, and for a point that is not on its curve.
    pub fn from_jwk_with(jwk: &Value, allow_rsa1_5: bool) -> Result<Self, Error> {
        let jwk = Jwk::deserialize(jwk).map_err(|_| Error::Key("it is not an EC, RSA or AKP JWK with an alg"))?;
        let key = match jwk {
            Jwk::Ec { crv, alg, x, y } if alg == ecdh::ALG => PublicKey::Ecdh(EcdhPublicKey::new(&crv, &x, &y)?),
            Jwk::Rsa { alg, n, e } if alg == rsa::OAEP => PublicKey::Rsa(RsaPublicKey::oaep(&n, &e)?),
            Jwk::Rsa { alg, n, e } if alg == rsa::PKCS1 && allow_rsa1_5 => PublicKey::Rsa(RsaPublicKey::pkcs1(&n, &e)?),
            Jwk::Rsa { alg, .. } if alg == rsa::PKCS1 => {
                return Err(Error::Key("its alg RSA1_5 is not allowed; next: let the guest use RSA-OAEP-256"));
            }
            Jwk::Akp { alg, public } if alg == ml_kem::ALG => PublicKey::MlKem(MlKemPublicKey::new(&public)?),
            Jwk::Ec { .. } | Jwk::Rsa { .. } | Jwk::Akp { .. } => {
                return Err(Error::Key("its alg is not ECDH-ES+A256KW, RSA-OAEP-256 or ML-KEM-768+A192KW"));
            }
        };
        Ok(Self(key))
    }

    /// Seals `plaintext` so that only the holder of the private half can read it.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator or a primitive fails, which is not expected.
    pub fn seal(&self, plaintext: &[u8]) -> Result<Jwe, Error> {
        let cek = ContentKey::generate()?;
        let (header, encrypted_key) = match &self.0 {
            PublicKey::Ecdh(key) => key.wrap(&cek)?,
            PublicKey::Rsa(key) => key.wrap(&cek)?,
            PublicKey::MlKem(key) => key.wrap(&cek)?,
        };
        cek.seal(&header, &encrypted_key, plaintext)
    }
}

enum PublicKey {
    Ecdh(EcdhPublicKey),
    Rsa(RsaPublicKey),
    MlKem(MlKemPublicKey),
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum Jwk {
    #[serde(rename = "EC")]
    Ec { crv: String, alg: String, x: String, y: String },
    #[serde(rename = "RSA")]
    Rsa { alg: String, n: String, e: String },
    #[serde(rename = "AKP")]
    Akp {
        alg: String,
        #[serde(rename = "pub")]
        public: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding;
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, Pkcs1PrivateDecryptingKey, PrivateDecryptingKey, PublicKeyComponents};
    use proptest::prelude::*;
    use serde_json::json;
    use zeroize::Zeroizing;

    fn seal_to(jwk: &Value) -> Jwe {
        TeePublicKey::from_jwk(jwk).unwrap().seal(b"secret").unwrap()
    }

    fn header(jwe: &Jwe) -> String {
        String::from_utf8(encoding::url(&jwe.protected).unwrap()).unwrap()
    }

    #[test]
    fn only_the_holder_of_the_key_opens_a_secret() {
        for curve in [EcdhCurve::P256, EcdhCurve::P521] {
            let key = TeeKey::generate_on(curve).unwrap();
            let jwe = seal_to(&key.public_jwk().unwrap());
            assert_eq!(&**key.open(&jwe).unwrap(), b"secret");
            assert_eq!(TeeKey::generate_on(curve).unwrap().open(&jwe).unwrap_err(), Error::Crypto);
        }
        let key = MlKemKey::generate().unwrap();
        let jwe = seal_to(&key.public_jwk().unwrap());
        assert_eq!(&**key.open(&jwe).unwrap(), b"secret");
        assert_eq!(MlKemKey::generate().unwrap().open(&jwe).unwrap_err(), Error::Crypto);
        assert_eq!(TeeKey::generate().unwrap().open(&jwe).unwrap_err(), Error::Header);
    }

    #[test]
    fn the_header_has_the_order_that_upstream_guests_rebuild() {
        let jwe = seal_to(&TeeKey::generate().unwrap().public_jwk().unwrap());
        let start = r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":""#;
        assert!(header(&jwe).starts_with(start), "{}", header(&jwe));

        let jwe = seal_to(&MlKemKey::generate().unwrap().public_jwk().unwrap());
        let rest = header(&jwe);
        let rest = rest.strip_prefix(r#"{"alg":"ML-KEM-768+A192KW","enc":"A256GCM","ek":""#).unwrap();
        // A ciphertext of 1088 bytes.
        assert_eq!(rest.strip_suffix(r#""}"#).unwrap().len(), 1451);
    }

    #[test]
    fn a_changed_member_is_noticed() {
        let (ecdh, ml_kem) = (TeeKey::generate().unwrap(), MlKemKey::generate().unwrap());
        let flip = |text: &str| {
            let mut bytes = encoding::url(text).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            encoding::to_url(&bytes)
        };
        for jwk in [ecdh.public_jwk().unwrap(), ml_kem.public_jwk().unwrap()] {
            let sealed = seal_to(&jwk);
            for changed in [
                Jwe { encrypted_key: flip(&sealed.encrypted_key), ..sealed.clone() },
                Jwe { encrypted_key: String::new(), ..sealed.clone() },
                Jwe { iv: flip(&sealed.iv), ..sealed.clone() },
                Jwe { ciphertext: flip(&sealed.ciphertext), ..sealed.clone() },
                Jwe { tag: flip(&sealed.tag), ..sealed.clone() },
                Jwe { tag: String::new(), ..sealed.clone() },
                Jwe { aad: Some("AA".to_owned()), ..sealed.clone() },
                Jwe { protected: encoding::to_url(b"{}"), ..sealed.clone() },
                Jwe { protected: encoding::to_url(format!("{} ", header(&sealed)).as_bytes()), ..sealed.clone() },
            ] {
                assert!(ecdh.open(&changed).is_err() && ml_kem.open(&changed).is_err(), "{changed:?}");
            }
        }
    }

    #[test]
    fn rsa1_5_is_for_those_who_allow_it() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let parts = PublicKeyComponents::<Vec<u8>>::from(&aws_lc_rs::rsa::PublicKey::from_der(der.as_ref()).unwrap());
        let (n, e) = (encoding::to_url(&parts.n), encoding::to_url(&parts.e));
        let jwk = json!({ "kty": "RSA", "alg": "RSA1_5", "n": n, "e": e });

        let refusal = TeePublicKey::from_jwk(&jwk).err().unwrap().to_string();
        assert!(refusal.contains("RSA1_5 is not allowed"), "{refusal}");
        let jwe = TeePublicKey::from_jwk_with(&jwk, true).unwrap().seal(b"secret").unwrap();

        assert_eq!(header(&jwe), r#"{"alg":"RSA1_5","enc":"A256GCM"}"#);
        let private = Pkcs1PrivateDecryptingKey::new(private).unwrap();
        let mut cek = vec![0; private.min_output_size()];
        let wrapped = encoding::url(&jwe.encrypted_key).unwrap();
        let cek: [u8; 32] = (*private.decrypt(&wrapped, &mut cek).unwrap()).try_into().unwrap();
        assert_eq!(&**ContentKey::new(Zeroizing::new(cek)).open(&jwe).unwrap(), b"secret");
    }

    #[test]
    fn a_key_survives_its_pem() {
        let key = TeeKey::generate_on(EcdhCurve::P521).unwrap();
        let jwe = seal_to(&key.public_jwk().unwrap());
        let read = TeeKey::from_pkcs8_pem(&key.to_pkcs8_pem().unwrap()).unwrap();
        assert_eq!(&**read.open(&jwe).unwrap(), b"secret");
        assert!(TeeKey::from_pkcs8_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----").is_err());
    }

    #[test]
    fn other_keys_are_refused() {
        let good = TeeKey::generate().unwrap().public_jwk().unwrap();
        for (member, value) in [
            ("kty", json!("oct")),
            ("kty", json!("AKP")),
            ("crv", json!("P-384")),
            ("alg", json!("none")),
            ("alg", json!("ML-KEM-768+A192KW")),
            ("x", json!("AA")),
            ("y", json!(7)),
            // Not on the curve.
            ("y", good["x"].clone()),
        ] {
            let mut jwk = good.clone();
            jwk[member] = value;
            assert!(matches!(TeePublicKey::from_jwk_with(&jwk, true), Err(Error::Key(_))), "{jwk}");
        }
        let mut jwk = MlKemKey::generate().unwrap().public_jwk().unwrap();
        jwk["alg"] = json!("ML-KEM-768");
        assert!(TeePublicKey::from_jwk(&jwk).is_err());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(header in "\\PC{0,200}", key in proptest::collection::vec(any::<u8>(), 0..80)) {
            let jwe = Jwe {
                protected: encoding::to_url(header.as_bytes()),
                encrypted_key: encoding::to_url(&key),
                iv: String::new(), ciphertext: String::new(), tag: String::new(), aad: None,
            };
            prop_assert!(TeeKey::generate().unwrap().open(&jwe).is_err());
        }

        #[test]
        fn no_encapsulation_makes_it_panic(ek in proptest::collection::vec(any::<u8>(), 0..1200), key: [u8; 32]) {
            let header = json!({ "alg": ml_kem::ALG, "enc": "A256GCM", "ek": encoding::to_url(&ek) });
            let jwe = Jwe {
                protected: encoding::to_url(header.to_string().as_bytes()),
                encrypted_key: encoding::to_url(&[&key[..], &[0; 8]].concat()),
                iv: String::new(), ciphertext: String::new(), tag: String::new(), aad: None,
            };
            prop_assert!(MlKemKey::generate().unwrap().open(&jwe).is_err());
        }
    }
}
