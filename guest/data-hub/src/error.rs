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
    /// A file with resources that can't be used.
    #[error("{}: {cause}; next: correct the file", path.display())]
    OfflineFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// No file has this resource.
    #[error("{0} is in none of the files of offline_fs_kbc; next: check its name, or add it to a file")]
    NotOffline(String),
    /// A name that is no resource.
    #[error(transparent)]
    Name(#[from] wire::resource::Error),
    /// A message of the key provider protocol that can't be read.
    #[error("layer key: {0}")]
    KeyProvider(#[from] wire::key_provider::Error),
    /// A layer whose key is with somebody else.
    #[error(
        "{kid}: its provider is {provider:?}; only kbs, aliyun and aws are supported; next: encrypt the image with a \
         key of one of them"
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
    /// A sealed secret that is not what it should be.
    #[error("sealed secret: {0}")]
    Sealed(#[from] wire::sealed_secret::Error),
    /// A sealed secret is text.
    #[error("sealed secret: it is not text; next: make it with \"cocoon secret seal\"")]
    NotText,
    /// A sealed secret of a key that the owner has not named.
    #[error(
        "sealed secret: its key {kid} is no trust anchor; accepted are {allowed}; next: seal it with one of them, or \
         name this key in sealed_secret.trust_anchors of cdh.toml in the initdata"
    )]
    Anchor {
        /// The key's name.
        kid: String,
        /// What the owner has named.
        allowed: String,
    },
    /// The key that verifies a sealed secret can't be had.
    #[error("sealed secret: verification key {kid}: {cause}")]
    VerificationKey {
        /// The key's name.
        kid: String,
        /// Why.
        cause: Box<Error>,
    },
    /// A key's file can't be read.
    #[error("{}: {cause}; next: fill it through \"credentials\" in cdh.toml", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A sealed secret that somebody else holds.
    #[error("sealed secret: its provider is {0:?}; next: use kbs, aliyun or aws")]
    SealedProvider(String),
    /// What a sealed secret stands for can't be had.
    #[error("sealed secret: {name}: {cause}")]
    Vault {
        /// Its name.
        name: String,
        /// Why.
        cause: Box<Error>,
    },
    /// A key management service could not be used.
    #[error(transparent)]
    Kms(#[from] kms::Error),
    /// An image could not be pulled or released.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// An image was pulled, and could not be measured; it was released again.
    #[error("{image} was pulled and is not used, since it can't be measured: {cause}")]
    Measurement {
        /// Its reference.
        image: String,
        /// Why.
        cause: String,
    },
    /// A volume could not be mounted or released.
    #[error(transparent)]
    Volume(#[from] secure_mount::Error),
    /// The key of a volume is named in a way that is not known.
    #[error("the volume's key is not named as sealed.…, kbs://…, kbs+plugin://… or file:///…; next: correct \"key\"")]
    VolumeKey,
    /// The key of a volume could not be had.
    #[error("the volume's key: {0}")]
    NoVolumeKey(Box<Error>),
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
    /// A task ended without an outcome.
    #[error("it was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    /// True if there is no such resource.
    pub fn is_not_found(&self) -> bool {
        matches!(self.root(), Self::Broker(attestation_agent::Error::NotFound { .. }) | Self::NotOffline(_))
    }

    /// True if somebody who could have answered refused: the key broker the evidence, or its policy the resource.
    pub fn is_refused(&self) -> bool {
        matches!(self.root(), Self::Broker(error @ attestation_agent::Error::Refused { .. }) if !error.is_unreachable())
    }

    /// True if the key broker did not answer.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.root(), Self::Broker(error) if error.is_unreachable())
    }

    /// The first cause.
    fn root(&self) -> &Self {
        match self {
            Self::Kek { cause, .. } | Self::VerificationKey { cause, .. } | Self::Vault { cause, .. } => cause.root(),
            Self::NoVolumeKey(cause) => cause.root(),
            error => error,
        }
    }
}
