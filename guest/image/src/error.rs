//! Why an image could not be pulled, in words that name the stage, the cause and the next step.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::registry::error::RegistryError;

/// Why an image could not be pulled or released.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `[image]` section can't be used.
    #[error("image configuration: {cause}; next: change [image] in cdh.toml")]
    Config {
        /// The key and what is wrong with it.
        cause: String,
    },
    /// A document that the configuration names can't be had or can't be used.
    #[error("image configuration: {key} ({location}): {cause}")]
    Document {
        /// The key of `[image]`.
        key: &'static str,
        /// Where the document is.
        location: String,
        /// What is wrong, and the next step. No word of the document.
        cause: String,
    },
    /// The signature policy refuses the image, or can't be used.
    #[error(transparent)]
    Policy(Box<image_policy::Error>),
    /// The image's name is not a reference.
    #[error(
        "image reference {reference:?} can't be used: {cause}; next: write it as registry/repository:tag or @digest"
    )]
    Reference {
        /// The name as it was given.
        reference: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The registry did not deliver a manifest or the image's configuration.
    #[error("image {reference}: {stage}: {source}")]
    Registry {
        /// The image.
        reference: String,
        /// What was being fetched.
        stage: &'static str,
        /// Why it did not arrive.
        source: RegistryError,
    },
    /// The manifest, the index or the image configuration is not acceptable.
    #[error("image {reference}: manifest: {cause}; next: rebuild or push the image again")]
    Manifest {
        /// The image.
        reference: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A layer could not be fetched, verified, decrypted or unpacked. What it had unpacked is removed.
    #[error("image {reference}: layer {index} ({digest}): {stage}: {cause}")]
    Layer {
        /// The image.
        reference: String,
        /// The layer's place in the manifest, 0 is the bottom.
        index: usize,
        /// The layer's blob.
        digest: String,
        /// Where it failed.
        stage: Stage,
        /// What failed, and the next step.
        cause: String,
    },
    /// The root filesystem can't be mounted or unmounted.
    #[error(
        "image {reference}: root filesystem {path}: {action}: {source}; next: build the guest image with a kernel that has overlayfs (Linux 6.8 or newer)"
    )]
    Mount {
        /// The image.
        reference: String,
        /// The mount point.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The work directory can't be used.
    #[error("work directory {path}: {source}; next: check that it exists, is writable and has space")]
    WorkDir {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The bundle already holds an image.
    #[error("bundle {path} already holds an image; next: release it first")]
    BundleInUse {
        /// The bundle.
        path: PathBuf,
    },
}

/// Where a layer failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Stage {
    /// The blob did not arrive.
    Fetch,
    /// The blob's bytes are not those of its digest.
    Digest,
    /// The key of an encrypted layer could not be had.
    Key,
    /// An encrypted layer is not authentic.
    Decrypt,
    /// The compressed stream is damaged.
    Inflate,
    /// The archive is damaged or tries something forbidden.
    Archive,
    /// The archive's digest is not the diff id of the image's configuration.
    DiffId,
    /// A bound was exceeded.
    Limit,
    /// The work directory refused to hold an entry.
    Unpack,
}

impl Stage {
    fn next_step(self) -> &'static str {
        match self {
            Self::Fetch => "check the registry and the guest's network",
            Self::Digest => "the registry or a proxy altered the blob: push the image again or pull it from another",
            Self::Key => "encrypt the image again for a key in Trustee",
            Self::Decrypt => "encrypt the image again with the key that Trustee serves",
            Self::Inflate | Self::DiffId => "rebuild the image",
            Self::Archive => "rebuild the image with a layer that stays inside its root",
            Self::Limit => "make the layer smaller",
            Self::Unpack => "give the guest more memory or storage for the image's work directory",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fetch => "fetch",
            Self::Digest => "digest",
            Self::Key => "key",
            Self::Decrypt => "decrypt",
            Self::Inflate => "inflate",
            Self::Archive => "archive",
            Self::DiffId => "diff id",
            Self::Limit => "limit",
            Self::Unpack => "unpack",
        })
    }
}

/// A stage and a cause: what a layer's pipeline fails with, also inside an [`io::Error`] on its way up.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    pub(crate) cause: String,
    /// Whether the cause names the next step itself.
    advised: bool,
}

impl Failure {
    pub(crate) fn new(stage: Stage, cause: impl fmt::Display) -> Self {
        Self { stage, cause: cause.to_string(), advised: false }
    }

    /// A failure whose cause comes from somebody who knows the next step and names it.
    pub(crate) fn advised(stage: Stage, cause: impl fmt::Display) -> Self {
        Self { advised: true, ..Self::new(stage, cause) }
    }

    /// The cause and one next step.
    pub(crate) fn into_advice(self) -> String {
        if self.advised { self.cause } else { format!("{}; next: {}", self.cause, self.stage.next_step()) }
    }

    /// Finds the failure that a reader further down put into `error`; `stage` is blamed if there is none.
    pub(crate) fn from_io(error: io::Error, stage: Stage) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = error.get_ref().map(|inner| inner as _);
        while let Some(inner) = cause {
            if let Some(failure) = inner.downcast_ref::<Self>() {
                return failure.clone();
            }
            cause = match inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(nested) => Some(nested as _),
                None => inner.source(),
            };
        }
        Self::new(stage, error)
    }

    /// Whether damaged or foreign bytes can be the reason, so that the checks further down tell more.
    pub(crate) fn blames_content(&self) -> bool {
        matches!(self.stage, Stage::Decrypt | Stage::Inflate | Stage::Archive | Stage::DiffId)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.cause)
    }
}

impl StdError for Failure {}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure)
    }
}
