//! Brings what an image consists of into the cache while containerd pulls it, once for all who pull it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use oci_spec::image::{Descriptor, ImageManifest};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::timeout;
use wire::blob::BlobDigest;
use wire::image_reference::parse_reference;

use crate::cache::{self, Cache};
use crate::registry::Registry;
use crate::volume::{IMAGE_REF, MANIFEST_DIGEST};

/// An image as containerd is pulling it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Image {
    reference: String,
    /// The manifest for this node's platform.
    manifest: BlobDigest,
}

impl Image {
    /// What the labels say that a pull for Kubernetes puts on each layer. Other pulls have none.
    pub(crate) fn from_labels(labels: &HashMap<String, String>) -> Option<Self> {
        let manifest = labels.get(MANIFEST_DIGEST)?.parse().ok()?;
        Some(Self { reference: labels.get(IMAGE_REF)?.clone(), manifest })
    }
}

/// Downloads into the cache.
pub(crate) struct Prefetch {
    cache: Arc<Cache>,
    registries: PathBuf,
    credentials: PathBuf,
    /// Those that run, and those that failed a moment ago; true once they are over.
    images: Mutex<HashMap<Image, watch::Receiver<bool>>>,
}

impl Prefetch {
    pub(crate) fn new(cache: Arc<Cache>, registries: PathBuf, credentials: PathBuf) -> Self {
        Self { cache, registries, credentials, images: Mutex::default() }
    }

    /// Waits until an image is in the cache or can't be brought there, but not for ever: whatever is missing then, guests
    /// download themselves.
    pub(crate) async fn wait_for(self: Arc<Self>, image: Image) {
        if self.cache.limit() == 0 {
            return;
        }
        let mut over = self.start(image.clone());
        if timeout(PATIENCE, over.wait_for(|over| *over)).await.is_err() {
            tracing::warn!(image = image.reference, "the download takes long; the pull goes on without it");
        }
    }

    /// Starts the download of an image, unless it runs already or has just failed: a pull asks once for each layer, and
    /// one that can't be had would cost its time as often.
    fn start(self: &Arc<Self>, image: Image) -> watch::Receiver<bool> {
        let mut images = self.images();
        if let Some(over) = images.get(&image) {
            return over.clone();
        }
        let (end, over) = watch::channel(false);
        images.insert(image.clone(), over.clone());
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = this.fetch(&image).await;
            end.send_replace(true);
            match outcome {
                Ok(blobs) => tracing::info!(image = image.reference, blobs, "an image is in the cache"),
                Err(error) => {
                    tracing::warn!(image = image.reference, %error, "an image is left to the guests");
                    tokio::time::sleep(RETRY).await;
                }
            }
            this.images().remove(&image);
        });
        over
    }

    /// Fetches the manifest, what it is found through, the configuration and the layers. Says how many blobs they are.
    async fn fetch(&self, image: &Image) -> Result<usize, Error> {
        let reference = parse_reference(&image.reference).map_err(|cause| Error::Reference { cause })?;
        let registry = Registry::of(&reference, &self.registries, &self.credentials).map_err(Error::Node)?;
        if let Some(index) =
            reference.digest().and_then(|digest| digest.parse().ok()).filter(|it| *it != image.manifest)
        {
            self.document(&registry, &index).await?;
        }
        let document = self.document(&registry, &image.manifest).await?;
        let manifest: ImageManifest =
            serde_json::from_slice(&document).map_err(|e| Error::Manifest { cause: e.to_string() })?;
        let blobs: Vec<_> = std::iter::once(manifest.config()).chain(manifest.layers()).collect();
        if blobs.len() > MAX_BLOBS {
            return Err(Error::Manifest { cause: format!("it has {} blobs", blobs.len()) });
        }
        let mut fetched = Vec::new();
        for blob in &blobs {
            fetched.push(self.blob(&registry, blob));
        }
        // All are tried: a layer that can't be had costs a guest one download.
        let outcomes: Vec<_> = stream::iter(fetched).buffer_unordered(AT_ONCE).collect().await;
        outcomes.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(blobs.len())
    }

    /// A manifest or an index, through the cache.
    async fn document(&self, registry: &Registry, digest: &BlobDigest) -> Result<Vec<u8>, Error> {
        if self.cache.blob(digest).await?.is_none() {
            let document = registry.manifest(&digest.to_string(), MAX_DOCUMENT).await.map_err(Error::Registry)?;
            let size = document.len() as u64;
            let fetch = async { Ok(stream::iter([Ok::<Bytes, String>(document)])) };
            self.cache.fill(digest, size, fetch).await?;
        }
        let mut bytes = Vec::new();
        if let Some((file, _)) = self.cache.blob(digest).await? {
            let read = file.take(MAX_DOCUMENT as u64).read_to_end(&mut bytes).await;
            read.map_err(|e| Error::Manifest { cause: format!("it can't be read: {e}") })?;
        }
        Ok(bytes)
    }

    async fn blob(&self, registry: &Registry, blob: &Descriptor) -> Result<(), Error> {
        let digest: BlobDigest =
            blob.digest().as_ref().parse().map_err(|e| Error::Manifest { cause: format!("{}: {e}", blob.digest()) })?;
        let mut outcome = Ok(());
        for _ in 0..TRIES {
            outcome = self.cache.fill(&digest, blob.size(), registry.blob(blob.digest().as_ref())).await;
            // Only a broken stream may be whole the next time.
            match &outcome {
                Err(cache::Error::Fetch { .. } | cache::Error::Length { .. }) => {}
                _ => break,
            }
        }
        Ok(outcome?)
    }

    fn images(&self) -> MutexGuard<'_, HashMap<Image, watch::Receiver<bool>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an image is not in the cache.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the image's name can't be used: {cause}")]
    Reference { cause: &'static str },
    #[error("{0}; next: check the node's configuration of registries")]
    Node(String),
    #[error("{0}; next: give the node an account for the registry, or leave the download to guests")]
    Registry(String),
    #[error("manifest: {cause}; next: push the image again")]
    Manifest { cause: String },
    #[error(transparent)]
    Cache(#[from] cache::Error),
}

/// The distribution specification asks registries to accept manifests of up to 4 MiB.
const MAX_DOCUMENT: usize = 4 << 20;
/// What the kernel's overlayfs can stack, and the configuration.
const MAX_BLOBS: usize = 501;
/// Blobs of one image that are downloaded side by side.
const AT_ONCE: usize = 3;
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const RETRY: Duration = Duration::from_secs(30);
