//! Encrypted image layers as ocicrypt defines them: AES-256-CTR over the compressed layer, HMAC-SHA256 over the
//! ciphertext, and the layer's key in an annotation, wrapped by a key that the key broker holds.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{error::Unspecified, hmac, iv::FixedLength, rand};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::encoding;
use crate::resource::ResourceUri;

/// Annotation of a layer that holds its [`PublicOptions`].
pub const PUBLIC_OPTIONS_ANNOTATION: &str = "org.opencontainers.image.enc.pubopts";
/// Annotations of a layer that start with this hold [`AnnotationPacket`]s for the key provider named behind it:
/// a comma-separated list, each in standard base64.
pub const PROVIDER_ANNOTATION_PREFIX: &str = "org.opencontainers.image.enc.keys.provider.";
/// The key provider's name in the images that we encrypt, the one that upstream's guests look for too.
pub const PROVIDER: &str = "attestation-agent";

/// What it takes to decrypt a layer: its key, its nonce and the digest of the compressed layer.
pub struct PrivateOptions {
    key: Zeroizing<[u8; 32]>,
    nonce: [u8; 16],
    digest: String,
}

impl PrivateOptions {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`Error::PrivateOptions`] for anything else; what was read is not repeated.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Document {
            symkey: Zeroizing<String>,
            #[serde(default)]
            digest: String,
            cipheroptions: CipherOptions,
        }
        #[derive(Deserialize)]
        struct CipherOptions {
            nonce: String,
        }
        let document: Document = serde_json::from_slice(json).map_err(|_| Error::PrivateOptions)?;
        let key = encoding::standard(&document.symkey).ok_or(Error::PrivateOptions)?;
        let nonce = encoding::standard(&document.cipheroptions.nonce).ok_or(Error::PrivateOptions)?;
        Ok(Self {
            key: Zeroizing::new(key.as_slice().try_into().map_err(|_| Error::PrivateOptions)?),
            nonce: nonce.as_slice().try_into().map_err(|_| Error::PrivateOptions)?,
            digest: document.digest,
        })
    }

    /// The JSON form, which is what gets wrapped.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        let symkey = Zeroizing::new(encoding::to_standard(&*self.key));
        let nonce = encoding::to_standard(&self.nonce);
        // Written by hand, so that no copy of the key stays behind in a JSON value.
        let digest = Value::from(self.digest.as_str());
        let json = format!(r#"{{"symkey":"{}","digest":{digest},"cipheroptions":{{"nonce":"{nonce}"}}}}"#, &*symkey);
        Zeroizing::new(json.into_bytes())
    }

    /// Digest of the compressed layer before encryption, `sha256:…`; empty where the encrypter left it out.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// What anyone may know of a layer's encryption.
#[derive(Clone, Debug, PartialEq)]
pub struct PublicOptions {
    hmac: Vec<u8>,
}

impl PublicOptions {
    /// Reads the value of [`PUBLIC_OPTIONS_ANNOTATION`].
    ///
    /// # Errors
    /// [`Error::PublicOptions`] for anything else, [`Error::Cipher`] for another cipher.
    pub fn from_annotation(annotation: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Document {
            cipher: String,
            hmac: String,
        }
        let json = encoding::standard(annotation).ok_or(Error::PublicOptions)?;
        let document: Document = serde_json::from_slice(&json).map_err(|_| Error::PublicOptions)?;
        if document.cipher != CIPHER {
            return Err(Error::Cipher(document.cipher.chars().take(40).flat_map(char::escape_default).collect()));
        }
        let hmac = encoding::standard(&document.hmac).ok_or(Error::PublicOptions)?;
        if hmac.len() != 32 {
            return Err(Error::PublicOptions);
        }
        Ok(Self { hmac: hmac.to_vec() })
    }

    /// The value of [`PUBLIC_OPTIONS_ANNOTATION`].
    pub fn to_annotation(&self) -> String {
        let json =
            json!({ "cipher": CIPHER, "hmac": encoding::to_standard(&self.hmac), "cipheroptions": {} }).to_string();
        encoding::to_standard(json.as_bytes())
    }
}

/// Encrypts one layer as a stream, under a key and a nonce of its own.
pub struct Encryptor {
    options: PrivateOptions,
    stream: KeyStream,
    hmac: hmac::Context,
}

impl Encryptor {
    /// A new key and nonce.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn new() -> Result<Self, Error> {
        let mut options = PrivateOptions { key: Zeroizing::new([0; 32]), nonce: [0; 16], digest: String::new() };
        rand::fill(&mut *options.key)?;
        rand::fill(&mut options.nonce)?;
        let (stream, hmac) = options.ciphers()?;
        Ok(Self { options, stream, hmac })
    }

    /// Encrypts the next bytes of the compressed layer in place.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the cipher fails, which is not expected.
    pub fn update(&mut self, data: &mut [u8]) -> Result<(), Error> {
        self.stream.apply(data)?;
        self.hmac.update(data);
        Ok(())
    }

    /// Ends the stream. `digest` is that of the compressed layer before encryption.
    pub fn finish(self, digest: String) -> (PrivateOptions, PublicOptions) {
        let hmac = self.hmac.sign().as_ref().to_vec();
        (PrivateOptions { digest, ..self.options }, PublicOptions { hmac })
    }
}

/// Decrypts one layer as a stream.
///
/// The HMAC comes last, so what was decrypted must not be used before [`Decryptor::finish`] succeeded.
pub struct Decryptor {
    stream: KeyStream,
    hmac: hmac::Context,
    expected: Vec<u8>,
}

impl Decryptor {
    /// Starts at the layer's first byte.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the cipher can't be set up, which is not expected.
    pub fn new(private: &PrivateOptions, public: &PublicOptions) -> Result<Self, Error> {
        let (stream, hmac) = private.ciphers()?;
        Ok(Self { stream, hmac, expected: public.hmac.clone() })
    }

    /// Decrypts the next bytes in place.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the cipher fails, which is not expected.
    pub fn update(&mut self, data: &mut [u8]) -> Result<(), Error> {
        self.hmac.update(data);
        self.stream.apply(data)
    }

    /// Checks the HMAC over all that was given to [`Decryptor::update`].
    ///
    /// # Errors
    /// [`Error::Hmac`] if the key is another or the ciphertext was changed.
    pub fn finish(self) -> Result<(), Error> {
        verify_slices_are_equal(self.hmac.sign().as_ref(), &self.expected).map_err(|_| Error::Hmac)
    }
}

/// A layer's [`PrivateOptions`], wrapped by a key encryption key that the key broker holds.
///
/// Version 1 of upstream's packet has no provider; version 2 does. Both are read, version 2 is written.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AnnotationPacket {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    kid: String,
    wrapped_data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wrap_type: Option<String>,
    #[serde(default)]
    provider_settings: serde_json::Map<String, Value>,
    #[serde(default)]
    annotations: serde_json::Map<String, Value>,
}

impl AnnotationPacket {
    /// Wraps `options` with A256GCM under `kek`, which guests will fetch as `kid`.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the random generator fails.
    pub fn wrap(kek: &[u8; 32], kid: &ResourceUri, options: &[u8]) -> Result<Self, Error> {
        let mut iv = [0; NONCE_LEN];
        rand::fill(&mut iv)?;
        let mut wrapped = options.to_vec();
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, kek)?);
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut wrapped)?;
        Ok(Self {
            version: Some(PACKET_VERSION.to_owned()),
            provider: Some(KBS_PROVIDER.to_owned()),
            kid: kid.to_string(),
            wrapped_data: encoding::to_standard(&wrapped),
            iv: Some(encoding::to_standard(&iv)),
            wrap_type: Some(A256GCM.to_owned()),
            provider_settings: serde_json::Map::new(),
            annotations: serde_json::Map::new(),
        })
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`Error::Packet`] for anything else.
    pub fn parse(json: &[u8]) -> Result<Self, Error> {
        let packet: Self = serde_json::from_slice(json).map_err(|_| Error::Packet)?;
        match packet.version.as_deref() {
            None | Some(PACKET_VERSION) => Ok(packet),
            Some(_) => Err(Error::Packet),
        }
    }

    /// The JSON form.
    ///
    /// # Errors
    /// [`Error::Packet`] if it has no JSON form, which is not expected.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|_| Error::Packet)
    }

    /// The key encryption key's name: for the provider `kbs`, a resource URI.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Who holds the key encryption key: `kbs` where the packet does not say.
    pub fn provider(&self) -> &str {
        self.provider.as_deref().unwrap_or(KBS_PROVIDER)
    }

    /// What a provider other than the key broker decrypts to the layer's [`PrivateOptions`] in JSON.
    ///
    /// # Errors
    /// [`Error::Packet`] if it is not base64.
    pub fn wrapped_data(&self) -> Result<Vec<u8>, Error> {
        encoding::standard(&self.wrapped_data).map(|data| data.to_vec()).ok_or(Error::Packet)
    }

    /// What the provider's client needs to know.
    pub fn provider_settings(&self) -> &serde_json::Map<String, Value> {
        &self.provider_settings
    }

    /// What the provider needs for this key.
    pub fn annotations(&self) -> &serde_json::Map<String, Value> {
        &self.annotations
    }

    /// Unwraps the layer's [`PrivateOptions`] in JSON.
    ///
    /// # Errors
    /// [`Error::Kek`] if `kek` is not 32 bytes, [`Error::Unwrap`] if it is another key than the packet was wrapped
    /// with, [`Error::Packet`] for a wrap type or an initialisation vector that does not fit.
    pub fn unwrap(&self, kek: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let kek: Zeroizing<[u8; 32]> = Zeroizing::new(kek.try_into().map_err(|_| Error::Kek)?);
        let iv = encoding::standard(self.iv.as_deref().unwrap_or_default()).ok_or(Error::Packet)?;
        let mut data = encoding::standard(&self.wrapped_data).ok_or(Error::Packet)?;
        match self.wrap_type.as_deref().unwrap_or(A256GCM) {
            A256GCM => {
                let iv: [u8; NONCE_LEN] = iv.as_slice().try_into().map_err(|_| Error::Packet)?;
                let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*kek)?);
                let nonce = Nonce::assume_unique_for_key(iv);
                let length = key.open_in_place(nonce, Aad::empty(), &mut data).map_err(|_| Error::Unwrap)?.len();
                data.truncate(length);
            }
            A256CTR => {
                let iv: [u8; 16] = iv.as_slice().try_into().map_err(|_| Error::Packet)?;
                KeyStream::new(&kek, &iv)?.apply(&mut data)?;
            }
            _ => return Err(Error::Packet),
        }
        Ok(data)
    }
}

/// Why a layer or its key was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the layer's private options are malformed")]
    PrivateOptions,
    #[error("the layer's annotation {PUBLIC_OPTIONS_ANNOTATION} is malformed")]
    PublicOptions,
    #[error("the layer is encrypted with \"{0}\"; only {CIPHER} is supported")]
    Cipher(String),
    #[error("the layer's HMAC is wrong: its key is another or the ciphertext was changed")]
    Hmac,
    #[error("the layer's annotation packet is malformed or of an unknown version")]
    Packet,
    #[error("the key encryption key is not 32 bytes long")]
    Kek,
    #[error("the layer's key can't be unwrapped: it was wrapped with another key encryption key")]
    Unwrap,
    #[error("the cipher failed")]
    Crypto,
}

impl From<Unspecified> for Error {
    fn from(_: Unspecified) -> Self {
        Self::Crypto
    }
}

impl fmt::Debug for PrivateOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateOptions").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl PrivateOptions {
    fn ciphers(&self) -> Result<(KeyStream, hmac::Context), Error> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*self.key);
        Ok((KeyStream::new(&self.key, &self.nonce)?, hmac::Context::with_key(&key)))
    }
}

/// AES-256-CTR with a 128-bit big-endian counter. Encryption and decryption are the same operation.
struct KeyStream {
    cipher: StreamingEncryptingKey,
    buffer: Zeroizing<Vec<u8>>,
}

impl KeyStream {
    fn new(key: &[u8; 32], nonce: &[u8; 16]) -> Result<Self, Error> {
        let context = EncryptionContext::Iv128(FixedLength::from(nonce));
        let cipher = StreamingEncryptingKey::less_safe_ctr(UnboundCipherKey::new(&AES_256, key)?, context)?;
        Ok(Self { cipher, buffer: Zeroizing::new(vec![0; CHUNK + AES_BLOCK]) })
    }

    fn apply(&mut self, data: &mut [u8]) -> Result<(), Error> {
        for chunk in data.chunks_mut(CHUNK) {
            let update = self.cipher.update(chunk, &mut self.buffer)?;
            // A counter mode is a stream: as much comes out as goes in.
            chunk.copy_from_slice(update.written());
        }
        Ok(())
    }
}

const CIPHER: &str = "AES_256_CTR_HMAC_SHA256";
const A256GCM: &str = "A256GCM";
const A256CTR: &str = "A256CTR";
const PACKET_VERSION: &str = "0.1.0";
const KBS_PROVIDER: &str = "kbs";
const AES_BLOCK: usize = 16;
/// Fits the first-level cache together with its copy.
const CHUNK: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encrypt(plain: &[u8]) -> (Vec<u8>, PrivateOptions, PublicOptions) {
        let mut encryptor = Encryptor::new().unwrap();
        let mut layer = plain.to_vec();
        encryptor.update(&mut layer).unwrap();
        let (private, public) = encryptor.finish("sha256:00".to_owned());
        (layer, private, public)
    }

    #[test]
    fn counter_mode_agrees_with_the_published_vector() {
        // NIST SP 800-38A, F.5.5, CTR-AES256: its first two blocks, fed in uneven pieces.
        let key = hex::decode("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap();
        let counter = hex::decode("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff").unwrap();
        let mut data = hex::decode("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51").unwrap();
        let mut stream = KeyStream::new(&key.try_into().unwrap(), &counter.try_into().unwrap()).unwrap();
        let (head, tail) = data.split_at_mut(5);
        stream.apply(head).unwrap();
        stream.apply(tail).unwrap();
        assert_eq!(hex::encode(data), "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5");
    }

    #[test]
    fn a_layer_is_decrypted_after_its_options_travelled() {
        let kek = [7; 32];
        let (mut layer, private, public) = encrypt(b"the layer");
        let kid = ResourceUri::parse("kbs:///default/key/1").unwrap();

        let packet = AnnotationPacket::wrap(&kek, &kid, &private.to_json()).unwrap().to_json().unwrap();
        let packet = AnnotationPacket::parse(&packet).unwrap();
        assert_eq!((packet.kid(), packet.provider()), ("kbs:///default/key/1", "kbs"));
        let private = PrivateOptions::parse(&packet.unwrap(&kek).unwrap()).unwrap();
        let public = PublicOptions::from_annotation(&public.to_annotation()).unwrap();

        let mut decryptor = Decryptor::new(&private, &public).unwrap();
        decryptor.update(&mut layer).unwrap();
        decryptor.finish().unwrap();
        assert_eq!(layer, b"the layer");
        assert_eq!(private.digest(), "sha256:00");
        assert_eq!(packet.unwrap(&[8; 32]).unwrap_err(), Error::Unwrap);
        assert_eq!(packet.unwrap(&[7; 16]).unwrap_err(), Error::Kek);
    }

    #[test]
    fn a_flipped_bit_fails_the_hmac() {
        let (mut layer, private, public) = encrypt(b"the layer");
        layer[3] ^= 1;
        let mut decryptor = Decryptor::new(&private, &public).unwrap();
        decryptor.update(&mut layer).unwrap();
        assert_eq!(decryptor.finish().unwrap_err(), Error::Hmac);
    }

    #[test]
    fn a_version_1_packet_means_the_key_broker() {
        let packet =
            AnnotationPacket::parse(br#"{"kid":"kbs:///a/b/c","wrapped_data":"","iv":"","wrap_type":"A256GCM"}"#);
        assert_eq!(packet.unwrap().provider(), "kbs");
        assert_eq!(
            AnnotationPacket::parse(br#"{"version":"9","kid":"","wrapped_data":""}"#).unwrap_err(),
            Error::Packet
        );
    }

    #[test]
    fn no_key_is_shown() {
        let (_, private, _) = encrypt(b"");
        assert_eq!(format!("{private:?}"), "PrivateOptions { digest: \"sha256:00\", .. }");
    }

    proptest! {
        #[test]
        fn any_layer_survives_in_any_pieces(plain in proptest::collection::vec(any::<u8>(), 0..40_000), cut in 0usize..40_000) {
            let (mut layer, private, public) = encrypt(&plain);
            let cut = cut.min(layer.len());
            let mut decryptor = Decryptor::new(&private, &public).unwrap();
            let (head, tail) = layer.split_at_mut(cut);
            decryptor.update(head).unwrap();
            decryptor.update(tail).unwrap();
            decryptor.finish().unwrap();
            prop_assert_eq!(layer, plain);
        }

        #[test]
        fn no_document_makes_it_panic(text in "\\PC{0,200}") {
            let _ = PrivateOptions::parse(text.as_bytes());
            let _ = PublicOptions::from_annotation(&text);
            let _ = PublicOptions::from_annotation(&encoding::to_standard(text.as_bytes()));
            let _ = AnnotationPacket::parse(text.as_bytes());
        }
    }
}
