//! The message with which reference values are registered (RVPS message version 0.1.0), and its signature.
//!
//! `{ "version", "type", "payload" }` is upstream's message. The member `signature` is this project's addition, which
//! other readers ignore: a signature over the DSSE pre-authentication encoding (PAE) of the payload's bytes, so that
//! reference values carry the name of whoever vouches for them, and not of whoever may register them.

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::encoding;

/// Reference values in transit: what they are is up to the extractor that `kind` names.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Message {
    /// Version of the message format, [`VERSION`] where it is left out.
    #[serde(default = "default_version")]
    pub version: String,
    /// Name of the extractor: `sample`, `swid`, `corim`, `in-toto`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The payload in standard base64.
    pub payload: String,
    /// Who vouches for the payload; nobody where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
}

/// A signature over [`Message::signed_bytes`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Signature {
    /// The [`key_id`] of the signer's key.
    pub keyid: String,
    /// Ed25519 (64 bytes), or ECDSA in DER over P-256 with SHA-256 or P-384 with SHA-384; in standard base64.
    pub sig: String,
}

impl Message {
    /// An unsigned message of the current version.
    pub fn new(kind: &str, payload: &[u8]) -> Self {
        let payload = encoding::to_standard(payload);
        Self { version: VERSION.to_owned(), kind: kind.to_owned(), payload, signature: None }
    }

    /// What a signature of this message covers: its type and the decoded `payload`.
    pub fn signed_bytes(&self, payload: &[u8]) -> Vec<u8> {
        pae(&format!("{PAYLOAD_TYPE}.{}", self.kind), payload)
    }
}

/// The message with a signature by `private_key`: PEM of PKCS#8 (Ed25519, P-256, P-384) or of SEC 1 (P-256, P-384).
///
/// # Errors
/// [`Error::Key`] for another key, [`Error::Payload`] if the payload is not standard base64.
pub fn sign_message(message: &Message, private_key: &str) -> Result<Message, Error> {
    let payload = encoding::standard(&message.payload).ok_or(Error::Payload)?;
    let key = PrivateKey::from_pem(private_key)?;
    let signature = Signature {
        keyid: key_id(&key.public_der()?),
        sig: encoding::to_standard(&key.sign(&message.signed_bytes(&payload))?),
    };
    Ok(Message { signature: Some(signature), ..message.clone() })
}

/// The DSSE version 1 pre-authentication encoding: what is signed for a body of a type.
pub fn pae(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), body.len());
    [head.as_bytes(), body].concat()
}

/// The name of a public key: the first 16 hex digits of the SHA-256 of its DER SubjectPublicKeyInfo.
pub fn key_id(subject_public_key_info: &[u8]) -> String {
    hex::encode(&Sha256::digest(subject_public_key_info)[..8])
}

/// Why a message could not be signed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The private key is of another kind or form.
    #[error("the private key can't sign reference values: it must be Ed25519, P-256 or P-384, in PKCS#8 or SEC 1 PEM")]
    Key,
    /// The payload is not base64.
    #[error("the payload of the message is not standard base64")]
    Payload,
    /// The library failed.
    #[error("the message could not be signed: {0}")]
    Crypto(#[from] aws_lc_rs::error::Unspecified),
}

enum PrivateKey {
    Ed25519(Ed25519KeyPair),
    Ecdsa(EcdsaKeyPair),
}

impl PrivateKey {
    fn from_pem(pem: &str) -> Result<Self, Error> {
        let der = private_key_der(pem).ok_or(Error::Key)?;
        if let Ok(key) = Ed25519KeyPair::from_pkcs8(&der) {
            return Ok(Self::Ed25519(key));
        }
        [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING]
            .into_iter()
            .find_map(|algorithm| EcdsaKeyPair::from_private_key_der(algorithm, &der).ok())
            .map(Self::Ecdsa)
            .ok_or(Error::Key)
    }

    fn public_der(&self) -> Result<Vec<u8>, Error> {
        let der: PublicKeyX509Der<'_> = match self {
            Self::Ed25519(key) => key.public_key().as_der()?,
            Self::Ecdsa(key) => key.public_key().as_der()?,
        };
        Ok(der.as_ref().to_vec())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let signature = match self {
            Self::Ed25519(key) => key.try_sign(message)?,
            Self::Ecdsa(key) => key.sign(&SystemRandom::new(), message)?,
        };
        Ok(signature.as_ref().to_vec())
    }
}

/// The first private key among the blocks of a PEM file: OpenSSL writes a SEC 1 key after its parameters.
fn private_key_der(pem: &str) -> Option<Zeroizing<Vec<u8>>> {
    ["PRIVATE KEY", "EC PRIVATE KEY"].into_iter().find_map(|label| {
        let (_, rest) = pem.split_once(&format!("-----BEGIN {label}-----"))?;
        let (body, _) = rest.split_once(&format!("-----END {label}-----"))?;
        let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        encoding::standard(&body)
    })
}

fn default_version() -> String {
    VERSION.to_owned()
}

/// The only version of [`Message`].
pub const VERSION: &str = "0.1.0";
/// What is signed is of the type `application/vnd.cocoon.reference-values.<type of the message>`.
const PAYLOAD_TYPE: &str = "application/vnd.cocoon.reference-values";

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{EcPrivateKeyRfc5915Der, Pkcs8V1Der};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey};
    use proptest::prelude::*;

    fn pem(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", encoding::to_standard(der))
    }

    #[test]
    fn upstreams_message_has_no_signature_and_keeps_its_form() {
        let text = r#"{"version":"0.1.0","type":"sample","payload":"e30="}"#;
        let message: Message = serde_json::from_str(text).unwrap();
        assert_eq!(message, Message::new("sample", b"{}"));
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
        assert_eq!(serde_json::from_str::<Message>(r#"{"type":"sample","payload":"e30="}"#).unwrap(), message);
    }

    #[test]
    fn the_pre_authentication_encoding_is_that_of_the_dsse_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn keys_of_every_kind_and_form_sign() {
        let ed25519 = Ed25519KeyPair::generate().unwrap();
        let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_ASN1_SIGNING).unwrap();
        let pkcs8: Pkcs8V1Der<'_> = ed25519.as_der().unwrap();
        let sec1: EcPrivateKeyRfc5915Der<'_> = p384.private_key().as_der().unwrap();
        let with_parameters = pem("EC PARAMETERS", &[6, 0]) + &pem("EC PRIVATE KEY", sec1.as_ref());

        let message = Message::new("sample", b"{\"svn\":1}");
        for (private, public, algorithm) in [
            (
                pem("PRIVATE KEY", pkcs8.as_ref()),
                ed25519.public_key().as_ref(),
                &ED25519 as &'static dyn aws_lc_rs::signature::VerificationAlgorithm,
            ),
            (
                pem("PRIVATE KEY", p256.to_pkcs8v1().unwrap().as_ref()),
                p256.public_key().as_ref(),
                &ECDSA_P256_SHA256_ASN1,
            ),
            (
                pem("PRIVATE KEY", p384.to_pkcs8v1().unwrap().as_ref()),
                p384.public_key().as_ref(),
                &ECDSA_P384_SHA384_ASN1,
            ),
            (with_parameters, p384.public_key().as_ref(), &ECDSA_P384_SHA384_ASN1),
        ] {
            let signed = sign_message(&message, &private).unwrap();
            let signature = signed.signature.clone().unwrap();
            assert_eq!(signature.keyid.len(), 16);
            assert_eq!(Message { signature: None, ..signed }, message);

            let key = UnparsedPublicKey::new(algorithm, public);
            let sig = encoding::standard(&signature.sig).unwrap();
            key.verify(&message.signed_bytes(b"{\"svn\":1}"), &sig).unwrap();
            assert!(key.verify(&Message::new("swid", b"").signed_bytes(b"{\"svn\":1}"), &sig).is_err());
        }
    }

    #[test]
    fn what_can_not_be_signed_is_named() {
        let message = Message::new("sample", b"{}");
        for bad in ["", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----"] {
            assert_eq!(sign_message(&message, bad), Err(Error::Key));
        }
        let no_base64 = Message { payload: "*".to_owned(), ..message };
        assert_eq!(sign_message(&no_base64, ""), Err(Error::Payload));
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(body in "[A-Za-z0-9+/=\n]{0,200}") {
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----");
            let _ = sign_message(&Message::new("sample", b"{}"), &pem);
        }
    }
}
