//! What is signed: a small document that binds an image's name to the digest of its manifest.
//!
//! Source: containers-signature(5), "JSON data format"; cosign's signature specification for the second type.

use oci_spec::image::Digest;
use serde::Deserialize;

use crate::identity::Name;

/// The form of signature that a payload may stand in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PayloadType {
    /// OpenPGP, in a lookaside store.
    Simple,
    /// sigstore, beside the image.
    Cosign,
}

/// A payload that says no more than it may; whether it was signed is another question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Payload {
    /// The name that the signer gave to the image.
    pub(crate) name: String,
    /// The digest of the manifest.
    pub(crate) digest: Digest,
}

impl Payload {
    /// Parses a payload of the given type.
    ///
    /// What is unknown beside `critical`'s three members is refused: a signer may have restricted the signature by it.
    /// `optional` is the signer's own.
    pub(crate) fn parse(json: &[u8], expected: PayloadType) -> Result<Self, PayloadError> {
        if json.len() > MAX_PAYLOAD {
            return Err(PayloadError::TooLarge);
        }
        let Fields { critical, optional: _ } =
            serde_json::from_slice(json).map_err(|e| PayloadError::Form(e.to_string()))?;
        let name = match expected {
            PayloadType::Simple => "atomic container signature",
            PayloadType::Cosign => "cosign container image signature",
        };
        match critical.kind == name {
            true => {
                Ok(Self { name: critical.identity.docker_reference, digest: critical.image.docker_manifest_digest })
            }
            false => Err(PayloadError::Type { actual: critical.kind, expected: name }),
        }
    }

    /// The signed name, in the form in which names are compared.
    pub(crate) fn name(&self) -> Result<Name, PayloadError> {
        Name::parse(&self.name).map_err(PayloadError::Form)
    }
}

/// Why a payload says nothing about an image.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PayloadError {
    #[error("its payload is larger than {MAX_PAYLOAD} bytes")]
    TooLarge,
    #[error("its payload is not of the expected form: {0}")]
    Form(String),
    #[error("its payload is of type {actual:?}, not {expected:?}")]
    Type { actual: String, expected: &'static str },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    critical: Critical,
    #[serde(default)]
    #[expect(dead_code, reason = "known, so that others can be refused")]
    optional: serde::de::IgnoredAny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    identity: Identity,
    image: SignedImage,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Digest,
}

/// A name has at most some 400 bytes; the rest is for the signer's own words.
const MAX_PAYLOAD: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(kind: &str, critical: &str, rest: &str) -> String {
        format!(
            r#"{{"critical":{{"type":"{kind}","image":{{"docker-manifest-digest":"sha256:{}"}},
                "identity":{{"docker-reference":"r.io/a:v1"}}{critical}}}{rest}}}"#,
            "a".repeat(64)
        )
    }

    #[test]
    fn a_payload_names_an_image_and_a_digest() {
        for (kind, text) in [
            (PayloadType::Simple, json("atomic container signature", "", r#","optional":{"creator":"x"}"#)),
            (PayloadType::Cosign, json("cosign container image signature", "", r#","optional":null"#)),
            (PayloadType::Cosign, json("cosign container image signature", "", "")),
        ] {
            let payload = Payload::parse(text.as_bytes(), kind).unwrap();
            assert_eq!(payload.name, "r.io/a:v1");
            assert_eq!(payload.digest.to_string(), format!("sha256:{}", "a".repeat(64)));
        }
    }

    #[test]
    fn a_payload_that_says_anything_else_is_refused() {
        for (text, reason) in [
            (json("cosign container image signature", "", ""), "is of type"),
            (json("atomic container signature", r#","until":"tomorrow""#, ""), "until"),
            (json("atomic container signature", "", r#","more":1"#), "more"),
            (json("atomic container signature", r#","type":"atomic container signature""#, ""), "duplicate"),
            (json("atomic container signature", "", "").replace("sha256", "md5!"), "form"),
            ("{}".to_owned(), "critical"),
            (format!("{}{}", json("atomic container signature", "", ""), " ".repeat(MAX_PAYLOAD)), "larger"),
        ] {
            let error = Payload::parse(text.as_bytes(), PayloadType::Simple).unwrap_err().to_string();
            assert!(error.contains(reason), "{text} gave {error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_payload_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Payload::parse(&bytes, PayloadType::Simple);
        }
    }
}
