//! Why a secret can't be sealed or opened.

use aws_lc_rs::error::Unspecified;

/// Why a secret can't be sealed or opened. No variant repeats what it was about.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the key can't be used: {0}")]
    Key(&'static str),
    #[error("the JWE's protected header is not the one of this kind of key with enc A256GCM")]
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
