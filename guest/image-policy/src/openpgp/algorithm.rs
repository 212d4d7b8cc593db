//! A key of a ring as aws-lc verifies with it: RSA, ECDSA on NIST's curves, Ed25519.
//!
//! SHA-1 is accepted, since keys and signatures made with it are about: rPGP hashes with detection of collisions, and a
//! signature over a colliding document doesn't verify. MD5 and RIPEMD-160 are not.

use std::io::{self, Write};

use aws_lc_rs::digest::{self, Digest};
use aws_lc_rs::signature::{
    self, ED25519, EcdsaVerificationAlgorithm, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::errors::Result;
use pgp::ser::Serialize;
use pgp::types::{
    EcdsaPublicParams, EddsaLegacyPublicParams, Fingerprint, KeyDetails, KeyId, KeyVersion, Mpi, PublicParams,
    SignatureBytes, Timestamp, VerifyingKey,
};

/// A key whose signatures are verified by aws-lc.
#[derive(Debug)]
pub(super) struct Verified<'a, K>(pub(super) &'a K);

impl<K: KeyDetails> VerifyingKey for Verified<'_, K> {
    /// Verifies a signature over a document whose digest is `hashed`.
    fn verify(&self, hash: HashAlgorithm, hashed: &[u8], signature: &SignatureBytes) -> Result<()> {
        let good = match self.0.public_params() {
            PublicParams::RSA(params) => {
                let key = mpis(params)?;
                let ([n, e], [signature]) = (&key[..], numbers(signature)?) else { return Err(refuse("form")) };
                rsa(n.as_ref(), e.as_ref(), hash, hashed, signature.as_ref())?
            }
            PublicParams::ECDSA(params) => {
                let [r, s] = numbers(signature)? else { return Err(refuse("form")) };
                ecdsa(params, hash, hashed, &der(r.as_ref(), s.as_ref()))?
            }
            PublicParams::EdDSALegacy(EddsaLegacyPublicParams::Ed25519 { key }) => {
                let [r, s] = numbers(signature)? else { return Err(refuse("form")) };
                let signature = [padded(r.as_ref(), 32)?, padded(s.as_ref(), 32)?].concat();
                algorithm(hash)?;
                UnparsedPublicKey::new(&ED25519, key.as_bytes()).verify(hashed, &signature)
            }
            PublicParams::Ed25519(params) => {
                algorithm(hash)?;
                UnparsedPublicKey::new(&ED25519, params.key.as_bytes()).verify(hashed, signature.try_into()?)
            }
            _ => return Err(refuse("its key's algorithm is not supported")),
        };
        good.map_err(|_| refuse("it doesn't verify"))
    }
}

impl<K: KeyDetails> KeyDetails for Verified<'_, K> {
    fn version(&self) -> KeyVersion {
        self.0.version()
    }

    fn legacy_key_id(&self) -> KeyId {
        self.0.legacy_key_id()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint()
    }

    fn algorithm(&self) -> PublicKeyAlgorithm {
        self.0.algorithm()
    }

    fn created_at(&self) -> Timestamp {
        self.0.created_at()
    }

    fn legacy_v3_expiration_days(&self) -> Option<u16> {
        self.0.legacy_v3_expiration_days()
    }

    fn public_params(&self) -> &PublicParams {
        self.0.public_params()
    }
}

impl<K: Serialize> Serialize for Verified<'_, K> {
    fn to_writer<W: Write>(&self, writer: &mut W) -> Result<()> {
        self.0.to_writer(writer)
    }

    fn write_len(&self) -> usize {
        self.0.write_len()
    }
}

type Outcome = std::result::Result<(), aws_lc_rs::error::Unspecified>;

fn rsa(n: &[u8], e: &[u8], hash: HashAlgorithm, hashed: &[u8], signature: &[u8]) -> Result<Outcome> {
    let parameters: &'static RsaParameters = match hash {
        HashAlgorithm::Sha1 => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        HashAlgorithm::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        HashAlgorithm::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        HashAlgorithm::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        _ => return Err(refuse("its hash algorithm is not supported")),
    };
    let key = RsaPublicKeyComponents { n, e }.to_parsed_public_key(parameters).map_err(|_| refuse("its RSA key"))?;
    Ok(key.verify_digest_sig(&digest(hash, hashed)?, &padded(signature, n.len())?))
}

fn ecdsa(params: &EcdsaPublicParams, hash: HashAlgorithm, hashed: &[u8], der: &[u8]) -> Result<Outcome> {
    use signature as s;
    let algorithm: &'static EcdsaVerificationAlgorithm = match (params, hash) {
        (EcdsaPublicParams::P256 { .. }, HashAlgorithm::Sha256) => &s::ECDSA_P256_SHA256_ASN1,
        (EcdsaPublicParams::P256 { .. }, HashAlgorithm::Sha384) => &s::ECDSA_P256_SHA384_ASN1,
        (EcdsaPublicParams::P256 { .. }, HashAlgorithm::Sha512) => &s::ECDSA_P256_SHA512_ASN1,
        (EcdsaPublicParams::P384 { .. }, HashAlgorithm::Sha256) => &s::ECDSA_P384_SHA256_ASN1,
        (EcdsaPublicParams::P384 { .. }, HashAlgorithm::Sha384) => &s::ECDSA_P384_SHA384_ASN1,
        (EcdsaPublicParams::P384 { .. }, HashAlgorithm::Sha512) => &s::ECDSA_P384_SHA512_ASN1,
        (EcdsaPublicParams::P521 { .. }, HashAlgorithm::Sha256) => &s::ECDSA_P521_SHA256_ASN1,
        (EcdsaPublicParams::P521 { .. }, HashAlgorithm::Sha384) => &s::ECDSA_P521_SHA384_ASN1,
        (EcdsaPublicParams::P521 { .. }, HashAlgorithm::Sha512) => &s::ECDSA_P521_SHA512_ASN1,
        _ => return Err(refuse("its curve or hash algorithm is not supported")),
    };
    // The curve's identifier with its length, then the point.
    let mut written = Vec::new();
    params.to_writer(&mut written)?;
    let point = written.split_first().and_then(|(&length, rest)| rest.get(usize::from(length)..));
    let point = Mpi::try_from_reader(point.ok_or_else(|| refuse("its key"))?)?;
    Ok(UnparsedPublicKey::new(algorithm, point.as_ref()).verify_digest(&digest(hash, hashed)?, der))
}

/// The two numbers that an RSA key consists of.
fn mpis(params: &impl Serialize) -> Result<Vec<Mpi>> {
    let mut written = Vec::new();
    params.to_writer(&mut written)?;
    let mut rest = &written[..];
    let mut numbers = Vec::new();
    while !rest.is_empty() {
        numbers.push(Mpi::try_from_reader(&mut rest)?);
    }
    Ok(numbers)
}

fn numbers(signature: &SignatureBytes) -> Result<&[Mpi]> {
    signature.try_into()
}

/// A number with the leading zeros that OpenPGP strips.
fn padded(number: &[u8], length: usize) -> Result<Vec<u8>> {
    let missing = length.checked_sub(number.len()).ok_or_else(|| refuse("a number is too long"))?;
    Ok([vec![0; missing], number.to_vec()].concat())
}

/// The DER sequence of two positive integers.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let start = number.iter().position(|&byte| byte != 0).unwrap_or(number.len());
        let digits = &number[start..];
        // A first bit that is set would mean a negative number.
        let sign = digits.first().is_none_or(|first| first & 0x80 != 0);
        tagged(0x02, &[if sign { &[0][..] } else { &[] }, digits].concat())
    };
    tagged(0x30, &[integer(r), integer(s)].concat())
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        short @ 0..0x80 => vec![short as u8],
        long => [&[0x82][..], &(long as u16).to_be_bytes()].concat(),
    };
    // DER wants the shortest form.
    let length = match length[..] {
        [0x82, 0, low] => vec![0x81, low],
        _ => length,
    };
    [&[tag][..], &length, content].concat()
}

fn digest(hash: HashAlgorithm, hashed: &[u8]) -> Result<Digest> {
    Digest::import_less_safe(hashed, algorithm(hash)?).map_err(|_| refuse("its hash"))
}

fn algorithm(hash: HashAlgorithm) -> Result<&'static digest::Algorithm> {
    match hash {
        HashAlgorithm::Sha1 => Ok(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        HashAlgorithm::Sha256 => Ok(&digest::SHA256),
        HashAlgorithm::Sha384 => Ok(&digest::SHA384),
        HashAlgorithm::Sha512 => Ok(&digest::SHA512),
        _ => Err(refuse("its hash algorithm is not supported")),
    }
}

fn refuse(what: &'static str) -> pgp::errors::Error {
    io::Error::other(what).into()
}
