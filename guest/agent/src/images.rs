//! What the agent needs from whoever pulls images inside the guest.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

/// Resolves, pulls and mounts images.
///
/// A future of these methods may be dropped at any await; [`Images::release`] follows for the same bundle.
#[async_trait]
pub trait Images: Send + Sync {
    /// Finds the digest of the manifest that `reference` names now, and the process that its configuration describes.
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError>;

    /// Pulls exactly the manifest with that digest and mounts its root file system at `<bundle>/rootfs`.
    async fn pull(&self, image: &ResolvedImage, bundle: &Path) -> Result<PulledImage, ImageError>;

    /// Unmounts what [`Images::pull`] mounted, or left half done, for this bundle. Fine to call where nothing is.
    async fn release(&self, bundle: &Path);
}

/// A reference to an image together with the digest that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The reference as the host gave it.
    pub reference: String,
    /// The digest of the manifest, as in `sha256:…`.
    pub digest: String,
    /// The process that the image's configuration describes.
    pub process: ImageProcess,
}

/// An image whose root file system is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledImage {
    /// The digest of the manifest, equal to the one that was asked for.
    pub digest: String,
    /// Where the root file system is mounted.
    pub rootfs: PathBuf,
}

/// The process that an image's configuration describes.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct ImageProcess {
    /// Entrypoint and command.
    pub args: Vec<String>,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty stands for `/`.
    pub cwd: String,
    /// User as `user[:group]`, numbers or names of the image's `/etc/passwd` and `/etc/group`; empty stands for root.
    pub user: String,
}

/// Why an image can't be had: stage, cause and next step, fit for the host to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ImageError(pub String);
