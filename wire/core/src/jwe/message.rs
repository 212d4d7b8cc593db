//! The flattened JWE and its content encryption, which is the same for every kind of key.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::error::Error;
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

impl Jwe {
    /// The protected header in the form that a kind of key expects.
    pub(super) fn header<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let header = encoding::url(&self.protected).ok_or(Error::Encoding("protected"))?;
        serde_json::from_slice(&header).map_err(|_| Error::Header)
    }

    /// The wrapped key, which has one length for each way of wrapping.
    pub(super) fn wrapped_key<const LENGTH: usize>(&self) -> Result<[u8; LENGTH], Error> {
        let refused = Error::Encoding("encrypted_key");
        encoding::url(&self.encrypted_key).ok_or(refused)?.try_into().map_err(|_| refused)
    }
}

/// The key of one JWE's content.
pub(super) struct ContentKey(Zeroizing<[u8; KEY_LEN]>);

impl ContentKey {
    pub fn generate() -> Result<Self, Error> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        rand::fill(&mut *key)?;
        Ok(Self(key))
    }

    pub fn new(key: Zeroizing<[u8; KEY_LEN]>) -> Self {
        Self(key)
    }

    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }

    /// Seals the content. The header is JSON and goes out exactly as it is.
    pub fn seal(&self, header: &str, encrypted_key: &[u8], plaintext: &[u8]) -> Result<Jwe, Error> {
        let protected = encoding::to_url(header.as_bytes());
        let mut iv = [0; NONCE_LEN];
        rand::fill(&mut iv)?;
        let mut ciphertext = plaintext.to_vec();
        let tag = self.cipher()?.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(iv),
            Aad::from(protected.as_bytes()),
            &mut ciphertext,
        )?;
        Ok(Jwe {
            protected,
            encrypted_key: encoding::to_url(encrypted_key),
            iv: encoding::to_url(&iv),
            ciphertext: encoding::to_url(&ciphertext),
            tag: encoding::to_url(tag.as_ref()),
            aad: None,
        })
    }

    /// Opens the content. The additional data is the header exactly as it was received.
    pub fn open(&self, jwe: &Jwe) -> Result<Zeroizing<Vec<u8>>, Error> {
        let member = |name: &'static str, text: &str| encoding::url(text).ok_or(Error::Encoding(name));
        let iv: [u8; NONCE_LEN] = member("iv", &jwe.iv)?.try_into().map_err(|_| Error::Encoding("iv"))?;
        let mut text = Zeroizing::new(member("ciphertext", &jwe.ciphertext)?);
        text.extend_from_slice(&member("tag", &jwe.tag)?);
        let aad = match &jwe.aad {
            None => jwe.protected.clone(),
            Some(aad) => format!("{}.{aad}", jwe.protected),
        };
        let nonce = Nonce::assume_unique_for_key(iv);
        let length = self.cipher()?.open_in_place(nonce, Aad::from(aad.as_bytes()), &mut text)?.len();
        text.truncate(length);
        Ok(text)
    }

    fn cipher(&self) -> Result<LessSafeKey, Error> {
        Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, self.as_bytes())?))
    }
}

/// Bytes of a content encryption key.
pub(super) const KEY_LEN: usize = 32;
pub(super) const A256GCM: &str = "A256GCM";
