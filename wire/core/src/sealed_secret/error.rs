//! Why a sealed secret, or a key for it, was refused.

use super::{MAX_TEXT, PREFIX};

/// A refusal. Texts of others are cut and escaped; no secret and no key is ever part of one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("it is longer than {MAX_TEXT} bytes; next: keep the secret in the key broker and seal its name (a vault)")]
    TooLarge,
    #[error("it is not {PREFIX} and a JWS of three parts; next: make it with \"cocoon secret seal\"")]
    Parts,
    #[error(
        "it does not have the four parts of a sealed secret whose signature is not verified ({PREFIX}x.PAYLOAD.y); \
         next: make it with \"cocoon secret seal\""
    )]
    UnverifiedParts,
    #[error("its header is not base64url of a JSON object with alg and kid; next: make it with \"cocoon secret seal\"")]
    Header,
    #[error("it is signed with \"{0}\"; only ES256 is accepted; next: sign it with a P-256 key")]
    Algorithm(String),
    #[error("its header has critical extensions (crit), of which none is known; next: sign it without them")]
    Critical,
    #[error("its header names no key (kid); next: sign it with the name of the verification key as kid")]
    NoKeyId,
    #[error("\"{0}\" does not name a key; next: write kbs:///repository/type/tag, or a bare file name")]
    KeyId(String),
    #[error("its signature is not base64url of the 64 bytes that ES256 has")]
    Signature,
    #[error(
        "its signature is not of the key that it names: it was changed, or signed by somebody else; next: seal it \
         again, and check that the verification key is the public half of the one it is sealed with"
    )]
    Forged,
    #[error("its payload is not base64url of a JSON object of the type it says: {0}")]
    Payload(String),
    #[error("its version is \"{0}\"; only 0.1.0 is known; next: check which program made it")]
    Version(String),
    #[error("its type is \"{0}\", neither envelope nor vault; next: check which program made it")]
    Type(String),
    #[error("its member {0} is not standard base64")]
    Encoding(&'static str),
    #[error("its wrap_type is \"{0}\", neither A256GCM nor A256CTR")]
    WrapType(String),
    #[error("its iv is {found} bytes long, where {wrap_type} takes {expected}")]
    Iv {
        /// The cipher.
        wrap_type: &'static str,
        /// What the cipher takes.
        expected: usize,
        /// What there is.
        found: usize,
    },
    #[error("its annotation iv, that of the wrapped key, is missing or not base64 of 12 bytes")]
    KeyIv,
    #[error(
        "the key encryption key is not 32 bytes long; next: check that this resource is the key it was sealed with"
    )]
    Kek,
    #[error(
        "its key can't be unwrapped: it was wrapped with another key encryption key, or changed; next: check that the \
         resource in key_id still holds the key it was sealed with"
    )]
    Unwrap,
    #[error("its data key is not 32 bytes long")]
    DataKey,
    #[error("its data can't be decrypted: it was encrypted with another data key, or changed")]
    Decrypt,
    #[error("the JWK can't be used: {0}; next: use a JWK with kty EC, crv P-256, x and y (and d to seal with)")]
    Jwk(&'static str),
    #[error("the cipher or the random generator failed")]
    Crypto,
}

impl From<aws_lc_rs::error::Unspecified> for Error {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self::Crypto
    }
}

/// What somebody wrote, fit for a log: cut and escaped.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}
