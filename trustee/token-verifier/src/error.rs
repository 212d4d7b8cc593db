//! Why a token is refused, or the keys for tokens can't be had.

use std::io;
use std::path::PathBuf;

/// Why a token is refused, or the keys for tokens can't be had. No variant repeats any part of a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there are no keys to trust attestation tokens by; next: set trusted_certs_paths or trusted_jwk_sets")]
    NoTrust,
    #[error("there are no identity providers; next: name one with its keys")]
    NoProviders,
    #[error("\"{0}\" is no place of keys; next: give file:///... or https://... of keys, or of an OIDC issuer")]
    Place(String),
    #[error("the HTTPS client can't be set up: {0}; next: check the CA certificates that were given")]
    Client(String),
    #[error("keys in {}: {source}; next: check the path and who may read it", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("keys in {}: {source}", path.display())]
    Watch { path: PathBuf, source: file_watch::Error },
    #[error("keys in {place}: {cause}")]
    Keys { place: String, cause: &'static str },
    #[error("keys from {url}: {cause}")]
    Fetch { url: String, cause: String },

    #[error("the token is longer than 1 MiB, or its header than 64 KiB")]
    TooLarge,
    #[error("the token is not a compact JWS of JSON")]
    Form,
    #[error("the token has critical extensions, which are not understood here")]
    Critical,
    #[error("the token's algorithm is not one of the key that it is to be verified with")]
    Algorithm,
    #[error("the token's own key is not one of EC P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")]
    HeaderKey,
    #[error("the token was not signed with a trusted key; next: check who issued it, and which keys are trusted")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token's certificate chain is not trusted: {0}")]
    Chain(String),
    #[error("the token has no exp, or a time in it is not a number")]
    Times,
    #[error("the token has expired; next: get a new one")]
    Expired,
    #[error("the token is not valid yet; next: compare the clocks")]
    NotYetValid,
    #[error("the token was issued by another issuer")]
    Issuer,
    #[error("the token is meant for another audience")]
    Audience,
    #[error("the keys to verify the token with could not be had for now; next: try again, and see the Trustee's log")]
    Unavailable,
    /// The beginning is what upstream's tests and users look for.
    #[error("Cannot verify token with any of the issuers: {0}")]
    Issuers(Box<Error>),
}

impl Error {
    /// What an error means to who meets it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoTrust
            | Self::NoProviders
            | Self::Place(_)
            | Self::Client(_)
            | Self::Read { .. }
            | Self::Watch { .. }
            | Self::Keys { .. }
            | Self::Fetch { .. } => Kind::Configuration,
            Self::Unavailable => Kind::Unavailable,
            Self::Issuers(cause) => cause.kind(),
            _ => Kind::Refused,
        }
    }

    /// How far a token got before it was refused: of several refusals, the one that got farthest tells most.
    pub(crate) fn progress(&self) -> u8 {
        match self {
            // A form that is found wrong this late is the one of claims that were signed.
            Self::Form | Self::Issuer | Self::Audience | Self::Times | Self::NotYetValid | Self::Expired => 4,
            Self::Signature => 3,
            Self::Unavailable => 2,
            Self::Algorithm => 1,
            _ => 0,
        }
    }
}

/// What an error means to who meets it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The owner has to change something before the Trustee can start.
    Configuration,
    /// The token is not good.
    Refused,
    /// The same token may be good later.
    Unavailable,
}
