//! The way from an image's name to a mounted root filesystem, and back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::try_join_all;
use image_policy::Policy;
use oci_spec::image::ImageConfiguration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;

use crate::auth::Credentials;
use crate::config::ImageConfig;
use crate::documents::{Document, Documents, FilesAlone, Library};
use crate::encryption::{self, LayerKeys};
use crate::error::{Error, Failure, Stage};
use crate::fetch::{LayerFetch, Never};
use crate::layer_dir::LayerDir;
use crate::manifest::{LayerPlan, Resolved};
use crate::overlay::Overlay;
use crate::registries::RegistryConfig;
use crate::registry::{Clients, Patience, Session};
use crate::signatures::Signatures;
use crate::store::{Contents, Layer, Store};
use crate::zstd::Windows;

/// Pulls images and owns everything that they occupy in the work directory.
///
/// Pulls run side by side; two that need the same layer fetch it once. Dropping the puller releases all bundles.
pub struct Puller {
    config: ImageConfig,
    clients: Arc<Clients>,
    keys: Arc<dyn LayerKeys>,
    library: Library,
    store: Store,
    windows: Arc<Windows>,
}

/// An image that is ready to run.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The digest of the manifest that was pulled.
    pub digest: String,
    /// The image's configuration.
    pub config: ImageConfiguration,
    /// Where its root filesystem is mounted.
    pub rootfs: PathBuf,
}

/// An image whose layers are unpacked and not mounted.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// The image's configuration.
    pub config: ImageConfiguration,
    /// A directory for each layer, the bottom one first, in the form that overlayfs stacks.
    pub layers: Vec<PathBuf>,
}

impl Puller {
    /// A puller whose documents are files: a `kbs://` URI in the configuration fails when it is needed.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::WorkDir`].
    pub fn new(config: ImageConfig, keys: Arc<dyn LayerKeys>) -> Result<Self, Error> {
        Self::with_documents(config, keys, Arc::new(FilesAlone))
    }

    /// Prepares the work directory and the registry client. No request is made yet.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::WorkDir`].
    pub fn with_documents(
        config: ImageConfig,
        keys: Arc<dyn LayerKeys>,
        documents: Arc<dyn Documents>,
    ) -> Result<Self, Error> {
        Self::with_patience(config, keys, documents, Patience::default())
    }

    pub(crate) fn with_patience(
        config: ImageConfig,
        keys: Arc<dyn LayerKeys>,
        documents: Arc<dyn Documents>,
        patience: Patience,
    ) -> Result<Self, Error> {
        config.validate()?;
        let clients = Arc::new(Clients::new(&config, patience)?);
        let store = Store::open(&config.work_dir)?;
        Ok(Self { config, clients, keys, library: Library::new(documents), store, windows: Arc::default() })
    }

    /// Finds the manifest that a reference stands for, at its registry or a mirror, through an index if need be.
    ///
    /// Accounts and mirrors are read anew, and stay with the result until it is pulled.
    ///
    /// # Errors
    /// [`Error::Document`], [`Error::Reference`], [`Error::Registry`] and [`Error::Manifest`].
    pub async fn resolve(&self, reference: &str) -> Result<Resolved, Error> {
        let (registries, credentials) = tokio::try_join!(self.registries(), self.credentials())?;
        let session = Session::new(self.clients.clone(), registries, credentials);
        Resolved::resolve(Arc::new(session), reference).await
    }

    /// Fetches, checks and unpacks the image, and mounts it at `rootfs` in `bundle`.
    ///
    /// A pull that fails or is dropped leaves nothing behind.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Reference`].
    pub async fn pull(&self, resolved: &Resolved, bundle: &Path) -> Result<Pulled, Error> {
        let claim = self.store.claim(bundle)?;
        let (config, layers) = self.layers(resolved).await?;

        let (writable, rootfs) = (self.store.fresh_overlay(), bundle.join("rootfs"));
        let (stack, target) = (stack(&layers), rootfs.clone());
        let mounted = spawn_blocking(move || {
            let stack: Vec<&LayerDir> = stack.iter().filter_map(|layer| layer.get()).collect();
            Overlay::mount(&stack, writable, target)
        });
        let overlay = mounted.await.unwrap_or_else(|e| Err(("mount", e.into()))).map_err(|(action, source)| {
            Error::Mount { reference: resolved.reference.clone(), path: rootfs.clone(), action, source }
        })?;
        claim.keep(Contents { overlay: Some(overlay), _layers: layers });
        Ok(Pulled { digest: resolved.digest.clone(), config, rootfs })
    }

    /// Like [`Self::pull`], without the mount; needs no privilege that the image's owners, devices and EROFS layers do
    /// not need.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Reference`] and [`Error::Mount`].
    pub async fn unpack(&self, resolved: &Resolved, bundle: &Path) -> Result<Unpacked, Error> {
        let claim = self.store.claim(bundle)?;
        let (config, layers) = self.layers(resolved).await?;
        let paths = layers.iter().filter_map(|layer| layer.get()).map(|layer| layer.path().to_owned()).collect();
        claim.keep(Contents { overlay: None, _layers: layers });
        Ok(Unpacked { config, layers: paths })
    }

    /// Unmounts a bundle's image and removes its writable directory, and every layer that no other bundle uses.
    ///
    /// A bundle without an image is left alone.
    ///
    /// # Errors
    /// [`Error::Mount`].
    pub async fn release(&self, bundle: &Path) -> Result<(), Error> {
        let Some(contents) = self.store.take(bundle) else { return Ok(()) };
        let removed = spawn_blocking(move || {
            let Contents { overlay, _layers } = contents;
            overlay.map_or(Ok(()), Overlay::unmount)
        });
        removed.await.unwrap_or_else(|e| Err(("release", e.into()))).map_err(|(action, source)| Error::Mount {
            reference: "of this bundle".to_owned(),
            path: bundle.join("rootfs"),
            action,
            source,
        })
    }

    async fn registries(&self) -> Result<RegistryConfig, Error> {
        if let Some(inline) = &self.config.registry_config {
            return Ok(inline.clone());
        }
        let uri = self.config.registry_configuration_uri.as_deref();
        match self.library.read("registry_configuration_uri", uri).await? {
            Some(document) => document.parse(RegistryConfig::from_bytes),
            None => Ok(RegistryConfig::default()),
        }
    }

    async fn credentials(&self) -> Result<Credentials, Error> {
        let uri = self.config.authenticated_registry_credentials_uri.as_deref();
        match self.library.read("authenticated_registry_credentials_uri", uri).await? {
            Some(document) => document.parse(Credentials::parse),
            None => Ok(Credentials::default()),
        }
    }

    /// The signature policy as it is now: it counts also for what was pulled before.
    async fn policy(&self) -> Result<Option<Policy>, Error> {
        let config = &self.config;
        let found = self.library.read("image_security_policy_uri", config.image_security_policy_uri.as_deref()).await?;
        let inline = config.image_security_policy.as_deref().filter(|text| !text.is_empty());
        let inline = inline.map(|text| Document::inline("image_security_policy", text));
        let Some(policy) = found.or(inline) else { return Ok(None) };
        let policy = policy.parse(Policy::parse)?;
        let found = self.library.read("sigstore_config_uri", config.sigstore_config_uri.as_deref()).await?;
        let inline = config.sigstore_config.as_deref().filter(|text| !text.is_empty());
        match found.or(inline.map(|text| Document::inline("sigstore_config", text))) {
            Some(stores) => stores.parse(|yaml| policy.with_lookaside(yaml)).map(Some),
            None => Ok(Some(policy)),
        }
    }

    async fn layers(&self, resolved: &Resolved) -> Result<(ImageConfiguration, Vec<Layer>), Error> {
        if let Some(policy) = self.policy().await? {
            Signatures { resolved, library: &self.library }.check(&policy).await?;
        }
        let config = resolved.configuration().await?;
        let plans = resolved.layers(&config)?;
        let permits = Semaphore::new(self.config.concurrency());
        let (working, mut idle) = mpsc::channel(1);
        let layers: Vec<Layer> =
            plans.iter().map(|plan| self.store.layer((plan.blob.digest().clone(), plan.diff_id.clone()))).collect();
        let ready =
            plans.iter().zip(&layers).map(|(plan, layer)| self.ready(resolved, plan, layer, &permits, working.clone()));
        if let Err(error) = try_join_all(ready).await {
            // The other layers' threads end when their streams do; only then is the work directory clean again.
            drop(working);
            let _: Option<Never> = idle.recv().await;
            spawn_blocking(move || drop(layers)).await.ok();
            return Err(error);
        }
        Ok((config, layers))
    }

    /// Waits for a layer, or brings it about.
    async fn ready(
        &self,
        resolved: &Resolved,
        plan: &LayerPlan,
        layer: &Layer,
        permits: &Semaphore,
        working: mpsc::Sender<Never>,
    ) -> Result<(), Error> {
        let fetched = layer.get_or_try_init(|| self.layer(resolved, plan, permits, working)).await;
        fetched.map(drop).map_err(|failure| Error::Layer {
            reference: resolved.reference.clone(),
            index: plan.index,
            digest: plan.blob.digest().to_string(),
            stage: failure.stage,
            cause: failure.into_advice(),
        })
    }

    /// Fetches and unpacks one layer once it is its turn.
    ///
    /// `working` is held until no thread works on it any more.
    async fn layer(
        &self,
        resolved: &Resolved,
        plan: &LayerPlan,
        permits: &Semaphore,
        working: mpsc::Sender<Never>,
    ) -> Result<LayerDir, Failure> {
        let _permit = permits.acquire().await.map_err(|e| Failure::new(Stage::Fetch, e))?;
        let secrets = match plan.format.encrypted {
            true => Some(encryption::secrets(&*self.keys, plan.blob.annotations().as_ref()).await?.into()),
            false => None,
        };
        LayerFetch { resolved, plan, store: &self.store, windows: &self.windows, secrets, working }.run().await
    }
}

/// A layer that occurs again further up is hidden entirely by it, and overlayfs takes each directory only once.
fn stack(layers: &[Layer]) -> Vec<Layer> {
    let again = |(index, layer): &(usize, &Layer)| !layers[index + 1..].iter().any(|above| Arc::ptr_eq(above, layer));
    layers.iter().enumerate().filter(again).map(|(_, layer)| layer.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_future_can_move_between_threads() {
        fn assert_send<T: Send>(_: impl FnOnce(&'static Puller, &'static Resolved) -> T) {}
        assert_send(|puller, _| puller.resolve("image"));
        assert_send(|puller, image| puller.pull(image, Path::new("/bundle")));
        assert_send(|puller, image| puller.unpack(image, Path::new("/bundle")));
        assert_send(|puller, _| puller.release(Path::new("/bundle")));
    }
}
