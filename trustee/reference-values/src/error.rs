//! Why reference values could not be registered or read, and whose fault that is.

use wire::reference_value::VERSION;

/// Why reference values could not be registered or read. Texts of callers are cut short and escaped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A message of another version.
    #[error("reference value message has version \"{0}\", this Trustee speaks {VERSION}")]
    Version(String),
    /// A message of an unknown type.
    #[error("no extractor \"{0}\" for reference values; next: use sample, swid, corim or in-toto")]
    Extractor(String),
    /// A payload that is not what its type says.
    #[error("payload of the reference value message: {0}")]
    Payload(&'static str),
    /// A name that the store can't hold.
    #[error("\"{0}\" can't name a reference value: use the characters a-z A-Z 0-9 - _ . /")]
    Name(String),
    /// A name of somebody else.
    #[error("reference value \"{name}\" is not yours; next: let its name start with \"{prefix}\"")]
    Scope {
        /// The name in the message.
        name: String,
        /// What it must start with.
        prefix: String,
    },
    /// Nobody vouches for the values.
    #[error(
        "the reference value message is not signed; next: sign it with a key of trusted_signers, or \
             set allow_unsigned = true where only those who may change them reach this service"
    )]
    Unsigned,
    /// A signature that names a key nobody trusts.
    #[error("no trusted signer has the key \"{0}\" now; next: add its public key, or a certificate that is valid")]
    UnknownSigner(String),
    /// A signature that no trusted key made.
    #[error("no signature of the reference values is one of a trusted signer; next: sign what is sent, as it is sent")]
    Signature,
    /// Values that were good once.
    #[error("the reference values ended at {0}; next: ask their maker for newer ones")]
    Ended(store::clock::Timestamp),
    /// Values that will be good.
    #[error("the reference values begin at {0}; next: register them then")]
    NotYet(store::clock::Timestamp),
    /// The bound on their number.
    #[error("more than {0} reference values: delete some first")]
    TooMany(usize),
    /// A stored record of a form that no release wrote.
    #[error("record of reference value {0} can't be read: register it again")]
    Record(String),
    /// A trusted signer's file.
    #[error("trusted signer {0}: {1}; next: give PEM of a public key or certificate on Ed25519, P-256 or P-384")]
    TrustedSigner(usize, &'static str),
    /// The values are kept elsewhere, and that place does not answer.
    #[error("the reference value service does not answer: {0}; next: check its address and its log")]
    Remote(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Whose fault an [`Error`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// The message is wrong, whoever sends it.
    BadRequest,
    /// The message may be right, but nobody who may vouched for it.
    Forbidden,
    /// Something this depends on does not answer.
    Unavailable,
    /// The configuration or the stored data is wrong.
    Internal,
}

impl Error {
    /// Whose fault it is: what a server maps to its status codes.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Version(_)
            | Self::Extractor(_)
            | Self::Payload(_)
            | Self::Name(_)
            | Self::Ended(_)
            | Self::NotYet(_)
            | Self::TooMany(_) => Kind::BadRequest,
            Self::Scope { .. } | Self::Unsigned | Self::UnknownSigner(_) | Self::Signature => Kind::Forbidden,
            Self::Remote(_) | Self::Store(_) => Kind::Unavailable,
            Self::Record(_) | Self::TrustedSigner(..) => Kind::Internal,
        }
    }
}

/// A caller's text as errors and logs may repeat it.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}
