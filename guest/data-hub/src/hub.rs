//! The data hub: one place to ask for resources, layer keys, sealed secrets, volumes and images.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attestation_agent::AttestationAgent;
use image::{Pulled, Puller, Resolved};
use secure_mount::{MountRequest, SecureMounts};
use wire::event_log::Event;
use wire::key_provider;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::broker::Broker;
use crate::config::{CdhConfig, Credential};
use crate::credentials;
use crate::error::Error;
use crate::secrets::Secrets;

/// Serves the guest's other parts. All methods may run side by side, over one attestation token.
pub struct DataHub {
    socket: String,
    folder: PathBuf,
    credentials: Vec<Credential>,
    secrets: Arc<Secrets>,
    puller: Puller,
    volumes: SecureMounts,
}

impl DataHub {
    /// A hub that shares its process with the attestation agent, and has asked nobody for anything yet.
    ///
    /// # Errors
    /// If a URL, certificate, trust anchor or setting for images can't be used.
    pub fn new(config: CdhConfig, agent: Arc<AttestationAgent>) -> Result<Self, Error> {
        let broker = Broker::with_agent(&config, agent)?;
        Self::with_broker(config, broker)
    }

    /// A hub in a process of its own, which has the attestation agent's tokens from its socket.
    ///
    /// # Errors
    /// As [`DataHub::new`], and if `kbc.url` is missing.
    pub fn standalone(config: CdhConfig) -> Result<Self, Error> {
        let broker = Broker::standalone(&config)?;
        Self::with_broker(config, broker)
    }

    fn with_broker(config: CdhConfig, broker: Broker) -> Result<Self, Error> {
        let secrets = Arc::new(Secrets::new(&config, broker)?);
        let socket = config.socket().to_owned();
        let images = config.image.unwrap_or_default();
        let puller = Puller::with_documents(images, Arc::clone(&secrets) as _, Arc::clone(&secrets) as _)?;
        Ok(Self {
            socket,
            folder: config.places.folder,
            credentials: config.credentials,
            secrets,
            puller,
            volumes: SecureMounts::new(secure_mount::Config::default()),
        })
    }

    /// Fetches a resource from the key broker.
    ///
    /// # Errors
    /// [`Error::Broker`]; see [`Error::is_not_found`], [`Error::is_refused`] and [`Error::is_unreachable`].
    pub async fn get_resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.secrets.resource(uri).await
    }

    /// Answers a request of ocicrypt's key provider protocol, JSON to JSON.
    ///
    /// # Errors
    /// [`Error::KeyProvider`] if the request can't be read, or why the key can't be had.
    pub async fn unwrap_key(&self, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let packet = key_provider::parse_unwrap(input)?;
        let options = self.secrets.layer_key(&packet).await?;
        Ok(key_provider::unwrap_output(&options))
    }

    /// The secret that a sealed one (`sealed.…`) stands for, if it is signed by a key that the owner trusts.
    ///
    /// # Errors
    /// [`Error::Sealed`] and [`Error::NotText`] if it is not what it should be, [`Error::Anchor`] if the owner does not
    /// trust its key; otherwise why key or secret can't be had.
    pub async fn unseal(&self, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.secrets.unseal(sealed).await
    }

    /// Mounts a volume, with the key that its option `key` names: `sealed.…`, `kbs://…`, `kbs+plugin://…`, `file:///…`.
    ///
    /// # Errors
    /// [`Error::VolumeKey`], [`Error::NoVolumeKey`] or [`Error::Volume`], with nothing left mounted.
    pub async fn mount(
        &self,
        volume_type: String,
        options: HashMap<String, String>,
        flags: Vec<String>,
        mount_point: PathBuf,
    ) -> Result<(), Error> {
        let key = match options.get("key").filter(|name| !name.is_empty()) {
            Some(name) => Some(self.volume_key(name).await?),
            None => None,
        };
        Ok(self.volumes.mount(MountRequest { volume_type, options, flags, mount_point, key }).await?)
    }

    /// Releases every volume and takes no further one, as a guest does before it ends.
    ///
    /// # Errors
    /// [`Error::Volume`] for one that is in use: it goes with its last user.
    pub async fn close(&self) -> Result<(), Error> {
        Ok(self.volumes.close().await?)
    }

    /// Finds the manifest that an image's reference stands for.
    ///
    /// # Errors
    /// [`Error::Image`], also if accounts or mirrors are configured and can't be had.
    pub async fn resolve_image(&self, reference: &str) -> Result<Resolved, Error> {
        Ok(self.puller.resolve(reference).await?)
    }

    /// Pulls a resolved image, mounts its root filesystem at `rootfs` in `bundle`, and has it measured under the name
    /// `reference` if there is an event log.
    ///
    /// # Errors
    /// [`Error::Image`], or [`Error::Measurement`], after which nothing is mounted either.
    pub async fn pull_image(&self, reference: &str, image: &Resolved, bundle: &Path) -> Result<Pulled, Error> {
        let pulled = self.puller.pull(image, bundle).await?;
        let Err(error) = self.measure(reference, &pulled.digest).await else { return Ok(pulled) };
        if let Err(error) = self.puller.release(bundle).await {
            tracing::error!(bundle = %bundle.display(), %error, "an image that was not measured is still mounted");
        }
        Err(error)
    }

    /// Unmounts a bundle's image and removes what no other bundle uses.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn release_image(&self, bundle: &Path) -> Result<(), Error> {
        Ok(self.puller.release(bundle).await?)
    }

    /// Where the configuration wants the services.
    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Fills the files of the configuration's `credentials`.
    pub(crate) async fn fetch_credentials(&self) -> Result<(), Error> {
        for credential in &self.credentials {
            let secret = self.get_resource(&credential.uri()?).await?;
            credentials::write(&credential.place(&self.folder), &secret)
                .map_err(|cause| Error::CredentialFile { path: credential.path.clone(), cause })?;
        }
        Ok(())
    }

    async fn measure(&self, reference: &str, digest: &str) -> Result<(), Error> {
        let failed = |cause: &dyn std::fmt::Display| Error::Measurement {
            image: format!("image {digest}"),
            cause: cause.to_string(),
        };
        let event = Event::pull_image(reference, digest).map_err(|e| failed(&e))?;
        self.secrets.broker().measure(event).await.map_err(|e| failed(&e))
    }

    async fn volume_key(&self, name: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let key = if name.starts_with("sealed.") {
            self.unseal(name.as_bytes()).await
        } else if name.starts_with("kbs://") || name.starts_with("kbs+") {
            async { self.get_resource(&ResourceUri::parse(name)?).await }.await
        } else if let Some(path) = name.strip_prefix("file://").filter(|path| path.starts_with('/')) {
            credentials::read(Path::new(path)).map_err(|cause| Error::KeyFile { path: path.into(), cause })
        } else {
            return Err(Error::VolumeKey);
        };
        key.map_err(|cause| Error::NoVolumeKey(Box::new(cause)))
    }
}
