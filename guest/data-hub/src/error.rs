//! Why the data hub could not do what was asked, with the whole chain of causes in one line.

use std::path::PathBuf;

use crate::config::ConfigError;

/// A failure of the data hub. No secret is ever part of a text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key broker's answer, or why there is none.
    #[error(transparent)]
    Broker(#[from] attestation_agent::Error),
    /// A name that is no resource.
    #[error(transparent)]
    Name(#[from] wire::resource::Error),
    /// A message of the key provider protocol that can't be read.
    #[error("layer key: {0}")]
    KeyProvider(#[from] wire::key_provider::Error),
    /// A layer whose key is with somebody else.
    #[error(
        "{kid}: its provider is {provider:?}; only kbs is supported yet; next: encrypt the image with a key of the KBS"
    )]
    Provider {
        /// The key's name.
        kid: String,
        /// Who holds it.
        provider: String,
    },
    /// The key encryption key could not be had.
    #[error("{kid}: {cause}")]
    Kek {
        /// The key's name.
        kid: String,
        /// Why.
        cause: Box<Error>,
    },
    /// The key encryption key does not fit.
    #[error("{kid}: {cause}; next: check that this resource is the key that the image was encrypted with")]
    Unwrap {
        /// The key's name.
        kid: String,
        /// Why.
        cause: wire::layer::Error,
    },
    /// An image could not be pulled or released.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The accounts for registries could not be had.
    #[error("credentials for registries ({uri}): {cause}")]
    RegistryCredentials {
        /// The resource with the accounts.
        uri: String,
        /// Why.
        cause: Box<Error>,
    },
    /// A credential's file can't be written.
    #[error("credential {}: {cause}", path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The socket can't be served.
    #[error(transparent)]
    Endpoint(#[from] attestation_agent::endpoint::Error),
}

impl Error {
    /// True if the key broker says that there is no such resource.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Broker(attestation_agent::Error::NotFound { .. }))
    }

    /// True if somebody who could have answered refused: the key broker the evidence, or its policy the resource.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Broker(error @ attestation_agent::Error::Refused { .. }) if !error.is_unreachable())
    }

    /// True if the key broker did not answer.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_unreachable())
    }
}
