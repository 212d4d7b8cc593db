//! Sealed secrets: what an owner puts in place of a secret where the cluster can read it, and only a guest can resolve.
//!
//! The text is `sealed.` and a compact JWS (RFC 7515) with the header `{"alg":"ES256","kid":…}`, whose payload is an
//! [`Envelope`] (the secret itself, encrypted) or a [`Vault`] (where the secret lies). The signature is what stops a
//! host from swapping one secret for another, so the key it is checked with must be one that the owner named.
//!
//! Source: CoCo sealed secret format 0.1.0, section 3.4 of the notes on guest components.

mod error;
mod key;
mod payload;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encoding;
use crate::resource::ResourceUri;

pub use error::Error;
pub use key::{SealingKey, VerifyingKey};
pub use payload::{Envelope, Payload, Provider, Vault, WrapType};

/// What a sealed secret's text starts with.
pub const PREFIX: &str = "sealed.";
/// The longest text that is read: a secret of Kubernetes' 1 MiB in its two layers of base64.
pub const MAX_TEXT: usize = 2 << 20;

/// A sealed secret as it came, **not verified** yet.
#[derive(Clone, Debug, PartialEq)]
pub struct SealedSecret {
    kid: KeyId,
    signed: String,
    payload: String,
    signature: Vec<u8>,
}

impl SealedSecret {
    /// Reads a text whose signature is going to be verified. The prefix may be missing, or be there more than once.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Parts`], [`Error::Header`], [`Error::Algorithm`] for anything but ES256,
    /// [`Error::Critical`], [`Error::KeyId`], or [`Error::Signature`] if it is not 64 bytes long.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut jws = bounded(text)?;
        while let Some(rest) = jws.strip_prefix(PREFIX) {
            jws = rest;
        }
        let (signed, signature) = jws.rsplit_once('.').ok_or(Error::Parts)?;
        let (header, payload) = signed.split_once('.').ok_or(Error::Parts)?;
        if payload.contains('.') {
            return Err(Error::Parts);
        }
        let header = encoding::url(header).ok_or(Error::Header)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| Error::Header)?;
        if header.alg != ALGORITHM {
            return Err(Error::Algorithm(error::excerpt(&header.alg)));
        }
        if header.crit.is_some() {
            return Err(Error::Critical);
        }
        let kid = KeyId::parse(&header.kid.ok_or(Error::NoKeyId)?)?;
        let signature = encoding::url(signature).filter(|s| s.len() == SIGNATURE).ok_or(Error::Signature)?;
        Ok(Self { kid, signed: signed.to_owned(), payload: payload.to_owned(), signature })
    }

    /// Signs `payload` so that guests verify it with the public half of `key`, which they find as `kid`.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the signature can't be made, which is not expected; [`Error::TooLarge`].
    pub fn seal(payload: &Payload, key: &SealingKey, kid: &KeyId) -> Result<String, Error> {
        #[derive(Serialize)]
        struct Protected<'a> {
            alg: &'a str,
            kid: String,
        }
        let header = serde_json::to_vec(&Protected { alg: ALGORITHM, kid: kid.to_string() });
        let header = encoding::to_url(&header.map_err(|_| Error::Crypto)?);
        let signed = format!("{header}.{}", encoding::to_url(&payload.to_json()?));
        let signature = encoding::to_url(&key.sign(signed.as_bytes())?);
        let text = format!("{PREFIX}{signed}.{signature}");
        bounded(&text)?;
        Ok(text)
    }

    /// Which key its author says it is signed with. Whether that one may be used is the owner's word, not this one.
    pub fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// The payload, if it is signed with `key`.
    ///
    /// # Errors
    /// [`Error::Forged`], or what is wrong with the payload.
    pub fn verify(&self, key: &VerifyingKey) -> Result<Payload, Error> {
        key.verify(self.signed.as_bytes(), &self.signature)?;
        Payload::from_part(&self.payload)
    }
}

impl Payload {
    /// The payload of a text **without a look at its signature**, which anyone could have made: `sealed.`, two parts
    /// that are not read, and the payload between them.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::UnverifiedParts`], or what is wrong with the payload.
    pub fn parse_unverified(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = bounded(text)?.splitn(5, '.').collect();
        match parts[..] {
            ["sealed", _, payload, _] => Self::from_part(payload),
            _ => Err(Error::UnverifiedParts),
        }
    }
}

/// The name of the key that a sealed secret is signed with.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum KeyId {
    /// A resource of the key broker that holds the public JWK.
    Resource(ResourceUri),
    /// A file of this name in the guest's folder for such keys. It is one plain name: no path, no dot in front.
    File(String),
}

impl KeyId {
    /// Parses a `kbs://` URI or a bare file name.
    ///
    /// # Errors
    /// [`Error::KeyId`] for anything else.
    pub fn parse(kid: &str) -> Result<Self, Error> {
        let refused = || Error::KeyId(error::excerpt(kid));
        if kid.contains("://") {
            return ResourceUri::parse(kid).map(Self::Resource).map_err(|_| refused());
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if kid.is_empty() || kid.len() > MAX_FILE_NAME || kid.starts_with('.') || !kid.bytes().all(plain) {
            return Err(refused());
        }
        Ok(Self::File(kid.to_owned()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resource(uri) => uri.fmt(f),
            Self::File(name) => f.write_str(name),
        }
    }
}

/// The protected header. Keys that it brings along (`jwk`, `x5c`, `jku`) are not looked at.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

/// The text without the white space around it, which files end with.
fn bounded(text: &str) -> Result<&str, Error> {
    let text = text.trim();
    if text.len() > MAX_TEXT { Err(Error::TooLarge) } else { Ok(text) }
}

const ALGORITHM: &str = "ES256";
/// `r` and `s` of P-256.
const SIGNATURE: usize = 64;
const MAX_FILE_NAME: usize = 255;
