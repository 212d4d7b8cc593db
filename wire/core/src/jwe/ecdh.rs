//! Keys agreed by ECDH-ES+A256KW (RFC 7518 section 4.6) on P-256 or P-521.

use aws_lc_rs::agreement::{self, Algorithm, ECDH_P256, ECDH_P521, ParsedPublicKey, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::encoding::{AsBigEndian, AsDer, EcPublicKeyUncompressedBin, Pkcs8V1Der};
use aws_lc_rs::kdf::{SskdfDigestAlgorithmId, get_sskdf_digest_algorithm, sskdf_digest};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::error::Error;
use super::message::{A256GCM, ContentKey, Jwe, KEY_LEN};
use crate::encoding;

/// Curves for key agreement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum EcdhCurve {
    P256,
    P521,
}

/// A guest's private key on one of the curves.
pub(super) struct EcdhKey {
    curve: EcdhCurve,
    private: PrivateKey,
}

/// A point on one of the curves.
pub(super) struct EcdhPublicKey {
    curve: EcdhCurve,
    point: ParsedPublicKey,
}

impl EcdhPublicKey {
    pub fn new(crv: &str, x: &str, y: &str) -> Result<Self, Error> {
        let curve = EcdhCurve::from_name(crv).ok_or(Error::Key("its curve is not P-256 or P-521"))?;
        Ok(Self { curve, point: curve.point(x, y)? })
    }

    /// The protected header and the wrapped key.
    pub fn wrap(&self, cek: &ContentKey) -> Result<(String, Vec<u8>), Error> {
        let ephemeral = PrivateKey::generate(self.curve.algorithm())?;
        let kek = self.curve.agree(&ephemeral, self.point.clone())?;
        let mut wrapped = [0; KEY_LEN + 8];
        AesKek::new(&AES_256, &*kek)?.wrap(cek.as_bytes(), &mut wrapped)?;
        let (x, y) = self.curve.coordinates(&ephemeral)?;
        let epk = EphemeralKey { crv: self.curve.name().to_owned(), kty: "EC".to_owned(), x, y };
        let epk = serde_json::to_string(&epk).map_err(|_| Error::Crypto)?;
        // `json!` would sort the members; the order is part of the contract.
        Ok((format!(r#"{{"alg":"{ALG}","enc":"{A256GCM}","epk":{epk}}}"#), wrapped.to_vec()))
    }
}

impl EcdhKey {
    pub fn generate(curve: EcdhCurve) -> Result<Self, Error> {
        Ok(Self { curve, private: PrivateKey::generate(curve.algorithm())? })
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let on = |curve: EcdhCurve| {
            let private = PrivateKey::from_private_key_der(curve.algorithm(), der).ok()?;
            Some(Self { curve, private })
        };
        on(EcdhCurve::P256).or_else(|| on(EcdhCurve::P521)).ok_or(Error::Key("it is not a key on P-256 or P-521"))
    }

    pub fn to_pkcs8(&self) -> Result<Pkcs8V1Der<'static>, Error> {
        Ok(self.private.as_der()?)
    }

    pub fn public_jwk(&self) -> Result<Value, Error> {
        let (x, y) = self.curve.coordinates(&self.private)?;
        Ok(json!({ "kty": "EC", "crv": self.curve.name(), "alg": ALG, "x": x, "y": y }))
    }

    /// The content encryption key that was wrapped for this key.
    pub fn unwrap(&self, jwe: &Jwe) -> Result<ContentKey, Error> {
        let header: Header = jwe.header()?;
        if header.alg != ALG || header.enc != A256GCM || header.epk.crv != self.curve.name() {
            return Err(Error::Header);
        }
        let wrapped: [u8; KEY_LEN + 8] = jwe.wrapped_key()?;
        let kek = self.curve.agree(&self.private, self.curve.point(&header.epk.x, &header.epk.y)?)?;
        let mut cek = Zeroizing::new([0; KEY_LEN]);
        AesKek::new(&AES_256, &*kek)?.unwrap(&wrapped, &mut *cek)?;
        Ok(ContentKey::new(cek))
    }
}

impl EcdhCurve {
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

    /// The coordinates of a private key's point, base64url.
    fn coordinates(self, private: &PrivateKey) -> Result<(String, String), Error> {
        let public = private.compute_public_key()?;
        let point: EcPublicKeyUncompressedBin<'_> = public.as_be_bytes()?;
        let (x, y) = point.as_ref()[1..].split_at(self.width());
        Ok((encoding::to_url(x), encoding::to_url(y)))
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::P256, Self::P521].into_iter().find(|curve| curve.name() == name)
    }

    /// Bytes of one coordinate.
    fn width(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P521 => 66,
        }
    }

    /// The point of base64url coordinates, which is on the curve.
    fn point(self, x: &str, y: &str) -> Result<ParsedPublicKey, Error> {
        let mut point = vec![4];
        for coordinate in [x, y] {
            let coordinate = encoding::url(coordinate).ok_or(Error::Key("a coordinate is not base64url"))?;
            if coordinate.len() != self.width() {
                return Err(Error::Key("a coordinate has the wrong length"));
            }
            point.extend_from_slice(&coordinate);
        }
        let point = UnparsedPublicKey::new(self.algorithm(), point);
        ParsedPublicKey::try_from(point).map_err(|_| Error::Key("its point is not on its curve"))
    }

    /// The key encryption key: Concat KDF (NIST SP 800-56A) over the shared secret, with empty party info.
    fn agree(self, private: &PrivateKey, peer: ParsedPublicKey) -> Result<Zeroizing<[u8; KEY_LEN]>, Error> {
        let mut info = Vec::new();
        for field in [ALG, "", ""] {
            info.extend_from_slice(&u32::try_from(field.len()).unwrap_or_default().to_be_bytes());
            info.extend_from_slice(field.as_bytes());
        }
        info.extend_from_slice(&(8 * KEY_LEN as u32).to_be_bytes());

        let kdf = get_sskdf_digest_algorithm(SskdfDigestAlgorithmId::Sha256).ok_or(Error::Crypto)?;
        agreement::agree(private, peer, Error::Crypto, |secret| {
            let mut kek = Zeroizing::new([0; KEY_LEN]);
            sskdf_digest(kdf, secret, &info, &mut *kek)?;
            Ok(kek)
        })
    }
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

pub(super) const ALG: &str = "ECDH-ES+A256KW";
