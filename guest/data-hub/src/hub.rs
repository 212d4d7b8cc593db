//! The data hub: one place to ask for resources, layer keys and images.

use std::path::Path;
use std::sync::Arc;

use attestation_agent::AttestationAgent;
use image::{Pulled, Puller, Resolved};
use tokio::sync::OnceCell;
use wire::key_provider;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::config::{CdhConfig, Credential};
use crate::credentials;
use crate::error::Error;
use crate::secrets::Secrets;

/// Serves the guest's other parts. All methods may run side by side, over one attestation token.
pub struct DataHub {
    socket: String,
    credentials: Vec<Credential>,
    secrets: Arc<Secrets>,
    puller: Puller,
    registry_credentials: Option<ResourceUri>,
    accounts: OnceCell<()>,
}

impl DataHub {
    /// A hub that has asked nobody for anything yet.
    ///
    /// # Errors
    /// If a URL, certificate or setting for images can't be used.
    pub fn new(config: CdhConfig, agent: Arc<AttestationAgent>) -> Result<Self, Error> {
        let secrets = Arc::new(Secrets::new(&config.kbc, agent)?);
        let registry_credentials = match &config.image.authenticated_registry_credentials_uri {
            Some(uri) => Some(ResourceUri::parse(uri)?),
            None => None,
        };
        let puller = Puller::new(config.image, Arc::clone(&secrets) as _)?;
        Ok(Self {
            socket: config.socket,
            credentials: config.credentials,
            secrets,
            puller,
            registry_credentials,
            accounts: OnceCell::new(),
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

    /// Finds the manifest that an image's reference stands for.
    ///
    /// # Errors
    /// [`Error::Image`], or [`Error::RegistryCredentials`] if accounts are configured and can't be had.
    pub async fn resolve_image(&self, reference: &str) -> Result<Resolved, Error> {
        if let Some(uri) = &self.registry_credentials {
            self.accounts.get_or_try_init(|| self.sign_in(uri)).await?;
        }
        Ok(self.puller.resolve(reference).await?)
    }

    /// Pulls a resolved image and mounts its root filesystem at `rootfs` in `bundle`.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn pull_image(&self, image: &Resolved, bundle: &Path) -> Result<Pulled, Error> {
        Ok(self.puller.pull(image, bundle).await?)
    }

    /// Unmounts a bundle's image and removes what no other bundle uses.
    ///
    /// # Errors
    /// [`Error::Image`].
    pub async fn release_image(&self, bundle: &Path) -> Result<(), Error> {
        Ok(self.puller.release(bundle).await?)
    }

    /// Where the configuration wants the ttrpc services.
    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    /// Fills the files of the configuration's `credentials`.
    pub(crate) async fn fetch_credentials(&self) -> Result<(), Error> {
        for credential in &self.credentials {
            let secret = self.get_resource(&credential.uri()?).await?;
            credentials::write(&credential.path, &secret)
                .map_err(|cause| Error::CredentialFile { path: credential.path.clone(), cause })?;
        }
        Ok(())
    }

    async fn sign_in(&self, uri: &ResourceUri) -> Result<(), Error> {
        let failed = |cause: Error| Error::RegistryCredentials { uri: uri.to_string(), cause: Box::new(cause) };
        let accounts = self.get_resource(uri).await.map_err(failed)?;
        self.puller.set_credentials(&accounts).map_err(|e| failed(e.into()))
    }
}
