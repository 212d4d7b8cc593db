//! Secrets sealed to a guest's key: flattened JWE JSON (RFC 7516) with A256GCM content encryption.
//!
//! Keys are agreed by ECDH-ES+A256KW (RFC 7518 section 4.6) on P-256 or P-521, or transported by RSA-OAEP-256.
//! Upstream guests compute the additional data from a header that they serialise again, so the protected header is
//! compact JSON with the members in this order: `alg`, `enc`, `epk` {`crv`, `kty`, `x`, `y`}.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, Algorithm, ECDH_P256, ECDH_P521, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPublicKeyUncompressedBin, Pkcs8V1Der, PublicKeyX509Der};
use aws_lc_rs::kdf::{SskdfDigestAlgorithmId, get_sskdf_digest_algorithm, sskdf_digest};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents};
use aws_lc_rs::{error::Unspecified, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::encoding;

/// A secret on its way to one guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Jwe {
    /// The protected header, base64url; as it stands it is the additional authenticated data.
    pub protected: String,
    /// The wrapped content encryption key, base64url.
    pub encrypted_key: String,
    /// 12 bytes, base64url.
    pub iv: String,
    /// The ciphertext, base64url.
    pub ciphertext: String,
    /// 16 bytes, base64url.
    pub tag: String,
    /// More authenticated data, base64url. Never sent by us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aad: Option<String>,
}

/// The public half of a guest's key, which decides how secrets are sealed to it.
pub struct TeePublicKey(PublicKey);

impl TeePublicKey {
    /// Reads the JWK of a guest.
    ///
    /// # Errors
    /// [`Error::Key`] for any other kind of key, curve or algorithm, and for a point that is not on its curve.
    pub fn from_jwk(jwk: &Value) -> Result<Self, Error> {
        let jwk: Jwk = Jwk::deserialize(jwk).map_err(|_| Error::Key("it is not an EC or RSA JWK with an alg"))?;
        let key = match jwk {
            Jwk::Ec { crv, alg, x, y } if alg == EcdhCurve::ALG => {
                let curve = EcdhCurve::from_name(&crv).ok_or(Error::Key("its curve is not P-256 or P-521"))?;
                PublicKey::Ec { curve, point: curve.point(&x, &y)? }
            }
            Jwk::Rsa { alg, n, e } if alg == RSA_OAEP_256 => PublicKey::Rsa(Box::new(rsa_key(&n, &e)?)),
            Jwk::Ec { .. } | Jwk::Rsa { .. } => {
                return Err(Error::Key("its alg is not ECDH-ES+A256KW or RSA-OAEP-256"));
            }
        };
        Ok(Self(key))
    }

    /// Seals `plaintext` so that only the holder of the private half can read it.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator or a primitive fails, which is not expected.
    pub fn seal(&self, plaintext: &[u8]) -> Result<Jwe, Error> {
        let mut cek = Zeroizing::new([0; KEY_LEN]);
        rand::fill(&mut *cek)?;
        let (protected, encrypted_key) = match &self.0 {
            PublicKey::Ec { curve, point } => {
                let ephemeral = PrivateKey::generate(curve.algorithm())?;
                let kek = curve.agree(&ephemeral, point)?;
                let mut wrapped = [0; KEY_LEN + 8];
                AesKek::new(&AES_256, &*kek)?.wrap(&*cek, &mut wrapped)?;
                let epk = curve.jwk(&ephemeral)?;
                // `json!` would sort the members; the order is part of the contract.
                (format!(r#"{{"alg":"{}","enc":"{A256GCM}","epk":{epk}}}"#, EcdhCurve::ALG), wrapped.to_vec())
            }
            PublicKey::Rsa(key) => {
                let mut wrapped = vec![0; key.ciphertext_size()];
                key.encrypt(&OAEP_SHA256_MGF1SHA256, &*cek, &mut wrapped, None)?;
                (format!(r#"{{"alg":"{RSA_OAEP_256}","enc":"{A256GCM}"}}"#), wrapped)
            }
        };

        let protected = encoding::to_url(protected.as_bytes());
        let mut iv = [0; NONCE_LEN];
        rand::fill(&mut iv)?;
        let mut ciphertext = plaintext.to_vec();
        let tag = content_key(&cek)?.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(iv),
            Aad::from(protected.as_bytes()),
            &mut ciphertext,
        )?;
        Ok(Jwe {
            protected,
            encrypted_key: encoding::to_url(&encrypted_key),
            iv: encoding::to_url(&iv),
            ciphertext: encoding::to_url(&ciphertext),
            tag: encoding::to_url(tag.as_ref()),
            aad: None,
        })
    }
}

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
        Ok(json!({ "kty": "EC", "crv": self.curve.name(), "alg": EcdhCurve::ALG, "x": x, "y": y }))
    }

    /// Opens what was sealed to this key. The additional data is the header exactly as it was received.
    ///
    /// # Errors
    /// [`Error::Header`] or [`Error::Encoding`] for a malformed message, [`Error::Crypto`] if it was sealed to
    /// another key or changed on its way.
    pub fn open(&self, jwe: &Jwe) -> Result<Zeroizing<Vec<u8>>, Error> {
        let member = |name: &'static str, text: &str| encoding::url(text).ok_or(Error::Encoding(name));
        let header: Header =
            serde_json::from_slice(&member("protected", &jwe.protected)?).map_err(|_| Error::Header)?;
        if header.alg != EcdhCurve::ALG || header.enc != A256GCM || header.epk.crv != self.curve.name() {
            return Err(Error::Header);
        }
        let encrypted_key = member("encrypted_key", &jwe.encrypted_key)?;
        if encrypted_key.len() != KEY_LEN + 8 {
            return Err(Error::Encoding("encrypted_key"));
        }

        let point = self.curve.point(&header.epk.x, &header.epk.y)?;
        let kek = self.curve.agree(&self.private, &point)?;
        let mut cek = Zeroizing::new([0; KEY_LEN]);
        AesKek::new(&AES_256, &*kek)?.unwrap(&encrypted_key, &mut *cek)?;

        let iv: [u8; NONCE_LEN] = member("iv", &jwe.iv)?.try_into().map_err(|_| Error::Encoding("iv"))?;
        let mut text = Zeroizing::new(member("ciphertext", &jwe.ciphertext)?);
        text.extend_from_slice(&member("tag", &jwe.tag)?);
        let aad = match &jwe.aad {
            None => jwe.protected.clone(),
            Some(aad) => format!("{}.{aad}", jwe.protected),
        };
        let nonce = Nonce::assume_unique_for_key(iv);
        let length = content_key(&cek)?.open_in_place(nonce, Aad::from(aad.as_bytes()), &mut text)?.len();
        text.truncate(length);
        Ok(text)
    }
}

/// Curves for key agreement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EcdhCurve {
    /// NIST P-256.
    P256,
    /// NIST P-521.
    P521,
}

/// Why a secret can't be sealed or opened. No variant repeats what it was about.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the key can't be used: {0}")]
    Key(&'static str),
    #[error("the JWE's protected header is not one of alg ECDH-ES+A256KW, enc A256GCM and this key's curve")]
    Header,
    #[error("the JWE's member {0} is malformed")]
    Encoding(&'static str),
    #[error("the JWE was sealed to another key or changed on its way")]
    Crypto,
}

impl From<Unspecified> for Error {
    fn from(_: Unspecified) -> Self {
        Self::Crypto
    }
}

enum PublicKey {
    Ec { curve: EcdhCurve, point: Vec<u8> },
    Rsa(Box<OaepPublicEncryptingKey>),
}

#[derive(Deserialize)]
#[serde(tag = "kty")]
enum Jwk {
    #[serde(rename = "EC")]
    Ec { crv: String, alg: String, x: String, y: String },
    #[serde(rename = "RSA")]
    Rsa { alg: String, n: String, e: String },
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    enc: String,
    epk: EphemeralKey,
}

/// A JWK in the order in which its members are written.
#[derive(Deserialize, Serialize)]
struct EphemeralKey {
    crv: String,
    kty: String,
    x: String,
    y: String,
}

impl EcdhCurve {
    const ALG: &str = "ECDH-ES+A256KW";

    fn from_name(name: &str) -> Option<Self> {
        [Self::P256, Self::P521].into_iter().find(|curve| curve.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P521 => "P-521",
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::P256 => &ECDH_P256,
            Self::P521 => &ECDH_P521,
        }
    }

    /// Bytes of one coordinate.
    fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P521 => 66,
        }
    }

    /// The uncompressed point of base64url coordinates. That it is on the curve is checked at the agreement.
    fn point(self, x: &str, y: &str) -> Result<Vec<u8>, Error> {
        let mut point = vec![4];
        for coordinate in [x, y] {
            let coordinate = encoding::url(coordinate).ok_or(Error::Key("a coordinate is not base64url"))?;
            if coordinate.len() != self.width() {
                return Err(Error::Key("a coordinate has the wrong length"));
            }
            point.extend_from_slice(&coordinate);
        }
        UnparsedPublicKey::new(self.algorithm(), &point);
        Ok(point)
    }

    fn coordinates(self, private: &PrivateKey) -> Result<(String, String), Error> {
        let public = private.compute_public_key()?;
        let point: EcPublicKeyUncompressedBin<'_> = public.as_be_bytes()?;
        let (x, y) = point.as_ref()[1..].split_at(self.width());
        Ok((encoding::to_url(x), encoding::to_url(y)))
    }

    fn jwk(self, private: &PrivateKey) -> Result<String, Error> {
        let (x, y) = self.coordinates(private)?;
        let jwk = EphemeralKey { crv: self.name().to_owned(), kty: "EC".to_owned(), x, y };
        serde_json::to_string(&jwk).map_err(|_| Error::Crypto)
    }

    /// The key encryption key: Concat KDF (NIST SP 800-56A) over the shared secret, with empty party info.
    fn agree(self, private: &PrivateKey, point: &[u8]) -> Result<Zeroizing<[u8; KEY_LEN]>, Error> {
        let mut info = Vec::new();
        for field in [Self::ALG, "", ""] {
            info.extend_from_slice(&u32::try_from(field.len()).unwrap_or_default().to_be_bytes());
            info.extend_from_slice(field.as_bytes());
        }
        info.extend_from_slice(&(8 * KEY_LEN as u32).to_be_bytes());

        let kdf = get_sskdf_digest_algorithm(SskdfDigestAlgorithmId::Sha256).ok_or(Error::Crypto)?;
        let peer = UnparsedPublicKey::new(self.algorithm(), point);
        agreement::agree(private, peer, Error::Crypto, |secret| {
            let mut kek = Zeroizing::new([0; KEY_LEN]);
            sskdf_digest(kdf, secret, &info, &mut *kek)?;
            Ok(kek)
        })
    }
}

fn rsa_key(n: &str, e: &str) -> Result<OaepPublicEncryptingKey, Error> {
    let refused = Error::Key("it is not an RSA key of 2048 to 8192 bits");
    let components = PublicKeyComponents { n: encoding::url(n).ok_or(refused)?, e: encoding::url(e).ok_or(refused)? };
    if !(256..=1024).contains(&components.n.len()) {
        return Err(refused);
    }
    let der: PublicKeyX509Der<'_> = components.as_der().map_err(|_| refused)?;
    let key = PublicEncryptingKey::from_der(der.as_ref()).map_err(|_| refused)?;
    OaepPublicEncryptingKey::new(key).map_err(|_| refused)
}

fn content_key(cek: &[u8; KEY_LEN]) -> Result<LessSafeKey, Error> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, cek)?))
}

const KEY_LEN: usize = 32;
const A256GCM: &str = "A256GCM";
const RSA_OAEP_256: &str = "RSA-OAEP-256";
const PEM_HEAD: &str = "-----BEGIN PRIVATE KEY-----";
const PEM_TAIL: &str = "-----END PRIVATE KEY-----";

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use proptest::prelude::*;

    #[test]
    fn only_the_holder_of_the_key_opens_a_secret() {
        for curve in [EcdhCurve::P256, EcdhCurve::P521] {
            let key = TeeKey::generate_on(curve).unwrap();
            let public = TeePublicKey::from_jwk(&key.public_jwk().unwrap()).unwrap();

            let jwe = public.seal(b"secret").unwrap();

            assert_eq!(&**key.open(&jwe).unwrap(), b"secret");
            let other = TeeKey::generate_on(curve).unwrap();
            assert_eq!(other.open(&jwe).unwrap_err(), Error::Crypto);
        }
    }

    #[test]
    fn the_header_has_the_order_that_upstream_guests_rebuild() {
        let key = TeeKey::generate().unwrap();
        let jwe = TeePublicKey::from_jwk(&key.public_jwk().unwrap()).unwrap().seal(b"").unwrap();
        let header = String::from_utf8(encoding::url(&jwe.protected).unwrap()).unwrap();
        let start = r#"{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{"crv":"P-256","kty":"EC","x":""#;
        assert!(header.starts_with(start), "{header}");
    }

    #[test]
    fn a_changed_member_is_noticed() {
        let key = TeeKey::generate().unwrap();
        let sealed = TeePublicKey::from_jwk(&key.public_jwk().unwrap()).unwrap().seal(b"secret").unwrap();
        let flip = |text: &str| {
            let mut bytes = encoding::url(text).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            encoding::to_url(&bytes)
        };
        for changed in [
            Jwe { encrypted_key: flip(&sealed.encrypted_key), ..sealed.clone() },
            Jwe { encrypted_key: String::new(), ..sealed.clone() },
            Jwe { iv: flip(&sealed.iv), ..sealed.clone() },
            Jwe { ciphertext: flip(&sealed.ciphertext), ..sealed.clone() },
            Jwe { tag: flip(&sealed.tag), ..sealed.clone() },
            Jwe { tag: String::new(), ..sealed.clone() },
            Jwe { aad: Some("AA".to_owned()), ..sealed.clone() },
            Jwe { protected: encoding::to_url(b"{}"), ..sealed.clone() },
        ] {
            assert!(key.open(&changed).is_err(), "{changed:?}");
        }
    }

    #[test]
    fn rsa_guests_get_oaep() {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let public = aws_lc_rs::rsa::PublicKey::from_der(der.as_ref()).unwrap();
        let parts = PublicKeyComponents::<Vec<u8>>::from(&public);
        let jwk = json!({ "kty": "RSA", "alg": "RSA-OAEP-256", "n": encoding::to_url(&parts.n), "e": encoding::to_url(&parts.e) });

        let jwe = TeePublicKey::from_jwk(&jwk).unwrap().seal(b"secret").unwrap();

        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        let mut cek = vec![0; private.min_output_size()];
        let wrapped = encoding::url(&jwe.encrypted_key).unwrap();
        let cek: [u8; 32] =
            (*private.decrypt(&OAEP_SHA256_MGF1SHA256, &wrapped, &mut cek, None).unwrap()).try_into().unwrap();
        let iv = encoding::url(&jwe.iv).unwrap().try_into().unwrap();
        let mut text = [encoding::url(&jwe.ciphertext).unwrap(), encoding::url(&jwe.tag).unwrap()].concat();
        let aad = Aad::from(jwe.protected.as_bytes());
        let text = content_key(&cek).unwrap().open_in_place(Nonce::assume_unique_for_key(iv), aad, &mut text).unwrap();
        assert_eq!(text, b"secret");
    }

    #[test]
    fn a_key_survives_its_pem() {
        let key = TeeKey::generate_on(EcdhCurve::P521).unwrap();
        let jwe = TeePublicKey::from_jwk(&key.public_jwk().unwrap()).unwrap().seal(b"secret").unwrap();
        let read = TeeKey::from_pkcs8_pem(&key.to_pkcs8_pem().unwrap()).unwrap();
        assert_eq!(&**read.open(&jwe).unwrap(), b"secret");
        assert!(TeeKey::from_pkcs8_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----").is_err());
    }

    #[test]
    fn other_keys_are_refused() {
        let good = TeeKey::generate().unwrap().public_jwk().unwrap();
        for (member, value) in [
            ("kty", json!("oct")),
            ("crv", json!("P-384")),
            ("alg", json!("none")),
            ("x", json!("AA")),
            ("y", json!(7)),
        ] {
            let mut jwk = good.clone();
            jwk[member] = value;
            assert!(TeePublicKey::from_jwk(&jwk).is_err(), "{jwk}");
        }
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
    }
}
