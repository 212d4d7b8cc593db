//! What a sealed secret says: the secret, encrypted (an envelope), or where it lies (a vault).

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::{iv::FixedLength, rand};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::error::{Error, excerpt};
use crate::encoding;
use crate::resource::ResourceUri;

/// The payload of a sealed secret.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// The secret itself, encrypted.
    Envelope(Envelope),
    /// The secret's name.
    Vault(Vault),
}

impl Payload {
    /// Reads the JSON form. Members that are not known are passed over, as upstream does.
    ///
    /// # Errors
    /// [`Error::Payload`], [`Error::Version`], [`Error::Type`], or what is wrong with a member.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Head {
            version: String,
            r#type: String,
        }
        let head: Head = read(json)?;
        if head.version != VERSION {
            return Err(Error::Version(excerpt(&head.version)));
        }
        match head.r#type.as_str() {
            ENVELOPE => read::<EnvelopeDocument>(json)?.check().map(Self::Envelope),
            VAULT => Ok(Self::Vault(read::<VaultDocument>(json)?.into())),
            other => Err(Error::Type(excerpt(other))),
        }
    }

    /// The JSON form.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it has none, which is not expected.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        let json = match self {
            Self::Envelope(envelope) => serde_json::to_vec(&EnvelopeDocument::from(envelope)),
            Self::Vault(vault) => serde_json::to_vec(&VaultDocument::from(vault)),
        };
        json.map_err(|_| Error::Crypto)
    }

    /// Reads the JWS' part.
    pub(super) fn from_part(part: &str) -> Result<Self, Error> {
        let json =
            encoding::url(part).ok_or_else(|| Error::Payload("it is not base64url without padding".to_owned()))?;
        Self::parse(&json)
    }
}

/// A secret that is encrypted with a data key of its own, which is encrypted with a key that a provider holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Who can decrypt the data key.
    pub provider: Provider,
    /// The provider's name of the key that the data key is encrypted with. For `kbs`, the URI of a resource of 32 bytes.
    pub key_id: String,
    /// The data key, encrypted. For `kbs`, with A256GCM under the nonce in the annotation `iv` (base64 of 12 bytes).
    pub encrypted_key: Vec<u8>,
    /// The secret, encrypted with the data key; with A256GCM, the 16 bytes of the tag come last.
    pub encrypted_data: Vec<u8>,
    /// How the secret is encrypted.
    pub wrap_type: WrapType,
    /// The nonce of 12 bytes, or the counter block of 16, of the secret's encryption.
    pub iv: Vec<u8>,
    /// What the provider's client needs to know.
    pub provider_settings: Map<String, Value>,
    /// What the provider needs for this key.
    pub annotations: Map<String, Value>,
}

impl Envelope {
    /// Encrypts `secret` under `kek`, which guests will fetch from the key broker as `key_id`.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn for_key_broker(secret: &[u8], kek: &[u8; 32], key_id: &ResourceUri) -> Result<Self, Error> {
        let mut data_key = Zeroizing::new([0; KEY]);
        rand::fill(&mut *data_key)?;
        let (encrypted_key, key_iv) = encrypt(kek, &*data_key)?;
        let (encrypted_data, iv) = encrypt(&data_key, secret)?;
        Ok(Self {
            provider: Provider::Kbs,
            key_id: key_id.to_string(),
            encrypted_key,
            encrypted_data,
            wrap_type: WrapType::A256Gcm,
            iv: iv.to_vec(),
            provider_settings: Map::new(),
            annotations: [(KEY_IV.to_owned(), Value::from(encoding::to_standard(&key_iv)))].into_iter().collect(),
        })
    }

    /// The data key, if `kek` is the key broker's resource that [`Envelope::key_id`] names.
    ///
    /// # Errors
    /// [`Error::Kek`] if it is not 32 bytes, [`Error::KeyIv`], [`Error::Unwrap`] if it is another key.
    pub fn unwrap_key(&self, kek: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let kek: Zeroizing<[u8; KEY]> = Zeroizing::new(kek.try_into().map_err(|_| Error::Kek)?);
        let iv = self.annotations.get(KEY_IV).and_then(Value::as_str).and_then(encoding::standard);
        let iv: [u8; NONCE_LEN] = iv.and_then(|iv| iv.as_slice().try_into().ok()).ok_or(Error::KeyIv)?;
        decrypt(&kek, iv, &self.encrypted_key)?.ok_or(Error::Unwrap)
    }

    /// The secret, if `data_key` is the decrypted [`Envelope::encrypted_key`].
    ///
    /// # Errors
    /// [`Error::DataKey`] if it is not 32 bytes, [`Error::Decrypt`] if it is another key or the data was changed. With
    /// A256CTR another key is not noticed.
    pub fn open(&self, data_key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let key: Zeroizing<[u8; KEY]> = Zeroizing::new(data_key.try_into().map_err(|_| Error::DataKey)?);
        let iv_error = || self.wrap_type.iv_error(self.iv.len());
        match self.wrap_type {
            WrapType::A256Gcm => {
                let iv = self.iv.as_slice().try_into().map_err(|_| iv_error())?;
                decrypt(&key, iv, &self.encrypted_data)?.ok_or(Error::Decrypt)
            }
            WrapType::A256Ctr => {
                let iv: [u8; 16] = self.iv.as_slice().try_into().map_err(|_| iv_error())?;
                let mut data = Zeroizing::new(self.encrypted_data.clone());
                let cipher = DecryptingKey::ctr(UnboundCipherKey::new(&AES_256, &*key)?)?;
                cipher.decrypt(&mut data, DecryptionContext::Iv128(FixedLength::from(iv)))?;
                Ok(data)
            }
        }
    }
}

/// The place of a secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Vault {
    /// Who keeps it.
    pub provider: Provider,
    /// The provider's name of the secret: for `kbs`, the URI of a resource.
    pub name: String,
    /// What the provider's client needs to know.
    pub provider_settings: Map<String, Value>,
    /// What the provider needs for this secret, such as its version.
    pub annotations: Map<String, Value>,
}

impl Vault {
    /// The resource `uri` of the key broker.
    pub fn in_key_broker(uri: &ResourceUri) -> Self {
        Self { provider: Provider::Kbs, name: uri.to_string(), provider_settings: Map::new(), annotations: Map::new() }
    }
}

/// Who holds keys and secrets. Names are compared without regard to case.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Provider {
    /// The key broker.
    Kbs,
    /// Alibaba Cloud KMS.
    Aliyun,
    /// AWS KMS and Secrets Manager.
    Aws,
    /// Anybody else, in lower case, cut and escaped.
    Other(String),
}

impl Provider {
    /// The provider of this name.
    pub fn named(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "kbs" => Self::Kbs,
            "aliyun" => Self::Aliyun,
            "aws" => Self::Aws,
            other => Self::Other(excerpt(other)),
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kbs => "kbs",
            Self::Aliyun => "aliyun",
            Self::Aws => "aws",
            Self::Other(name) => name,
        })
    }
}

/// How an envelope's secret is encrypted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WrapType {
    /// AES-256-GCM with a nonce of 12 bytes.
    A256Gcm,
    /// AES-256-CTR with a counter block of 16 bytes. It does not notice changes: written by others, read by us.
    A256Ctr,
}

impl WrapType {
    fn parse(name: &str) -> Result<Self, Error> {
        match name {
            "A256GCM" => Ok(Self::A256Gcm),
            "A256CTR" => Ok(Self::A256Ctr),
            other => Err(Error::WrapType(excerpt(other))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::A256Gcm => "A256GCM",
            Self::A256Ctr => "A256CTR",
        }
    }

    fn iv_length(self) -> usize {
        match self {
            Self::A256Gcm => NONCE_LEN,
            Self::A256Ctr => 16,
        }
    }

    fn iv_error(self, found: usize) -> Error {
        Error::Iv { wrap_type: self.name(), expected: self.iv_length(), found }
    }
}

#[derive(Deserialize, Serialize)]
struct EnvelopeDocument {
    version: String,
    r#type: String,
    provider: String,
    key_id: String,
    encrypted_key: String,
    encrypted_data: String,
    wrap_type: String,
    iv: String,
    #[serde(default)]
    provider_settings: Map<String, Value>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

impl EnvelopeDocument {
    fn check(self) -> Result<Envelope, Error> {
        let decode = |text: &str, member| match encoding::standard(text) {
            Some(bytes) => Ok(bytes.to_vec()),
            None => Err(Error::Encoding(member)),
        };
        let wrap_type = WrapType::parse(&self.wrap_type)?;
        let iv = decode(&self.iv, "iv")?;
        if iv.len() != wrap_type.iv_length() {
            return Err(wrap_type.iv_error(iv.len()));
        }
        Ok(Envelope {
            provider: Provider::named(&self.provider),
            key_id: self.key_id,
            encrypted_key: decode(&self.encrypted_key, "encrypted_key")?,
            encrypted_data: decode(&self.encrypted_data, "encrypted_data")?,
            wrap_type,
            iv,
            provider_settings: self.provider_settings,
            annotations: self.annotations,
        })
    }
}

impl From<&Envelope> for EnvelopeDocument {
    fn from(envelope: &Envelope) -> Self {
        Self {
            version: VERSION.to_owned(),
            r#type: ENVELOPE.to_owned(),
            provider: envelope.provider.to_string(),
            key_id: envelope.key_id.clone(),
            encrypted_key: encoding::to_standard(&envelope.encrypted_key),
            encrypted_data: encoding::to_standard(&envelope.encrypted_data),
            wrap_type: envelope.wrap_type.name().to_owned(),
            iv: encoding::to_standard(&envelope.iv),
            provider_settings: envelope.provider_settings.clone(),
            annotations: envelope.annotations.clone(),
        }
    }
}

#[derive(Deserialize, Serialize)]
struct VaultDocument {
    version: String,
    r#type: String,
    name: String,
    provider: String,
    #[serde(default)]
    provider_settings: Map<String, Value>,
    #[serde(default)]
    annotations: Map<String, Value>,
}

impl From<VaultDocument> for Vault {
    fn from(document: VaultDocument) -> Self {
        Self {
            provider: Provider::named(&document.provider),
            name: document.name,
            provider_settings: document.provider_settings,
            annotations: document.annotations,
        }
    }
}

impl From<&Vault> for VaultDocument {
    fn from(vault: &Vault) -> Self {
        Self {
            version: VERSION.to_owned(),
            r#type: VAULT.to_owned(),
            name: vault.name.clone(),
            provider: vault.provider.to_string(),
            provider_settings: vault.provider_settings.clone(),
            annotations: vault.annotations.clone(),
        }
    }
}

/// A payload holds no secret in clear, so the parser's own words may be shown.
fn read<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(json).map_err(|e| Error::Payload(excerpt(&e.to_string())))
}

fn encrypt(key: &[u8; KEY], plain: &[u8]) -> Result<(Vec<u8>, [u8; NONCE_LEN]), Error> {
    let mut iv = [0; NONCE_LEN];
    rand::fill(&mut iv)?;
    // With room for the tag, so that what is in clear is never moved.
    let mut data = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
    data.extend_from_slice(plain);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?);
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data)?;
    Ok((data, iv))
}

/// What was encrypted, or nothing if the tag does not fit.
fn decrypt(key: &[u8; KEY], iv: [u8; NONCE_LEN], data: &[u8]) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key)?);
    let mut data = Zeroizing::new(data.to_vec());
    let Ok(plain) = key.open_in_place(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut data) else {
        return Ok(None);
    };
    let length = plain.len();
    data.truncate(length);
    Ok(Some(data))
}

const VERSION: &str = "0.1.0";
const ENVELOPE: &str = "envelope";
const VAULT: &str = "vault";
/// Annotation of an envelope of the key broker, named as Alibaba Cloud's.
const KEY_IV: &str = "iv";
const KEY: usize = 32;
