//! Where reference values come from: this process, or a provider elsewhere.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use attestation_api::{ClientSettings, ReferenceValueClient};
use reference_values::{ReferenceValues, Settings, Source};
use store::Store;
use store::clock::Clock;

use crate::config::attestation::{RvpsConfig, RvpsType};
use crate::config::storage::StorageBackend;
use crate::{process, storage};

/// Reference values, here or elsewhere.
pub enum Values {
    Here(ReferenceValues),
    Elsewhere(ClientSettings),
}

impl Values {
    /// Loads them as a configuration says, with `store` for those that have no storage of their own. `unsigned` tells
    /// whether messages that nobody signed are taken where the configuration doesn't.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(
        config: &RvpsConfig,
        backend: &StorageBackend,
        store: &Store,
        unsigned: bool,
    ) -> Result<Self, Error> {
        if config.r#type == RvpsType::GrpcRemote {
            let time = Duration::from_secs(10);
            return Ok(Self::Elsewhere(client(&config.address, 10, time, config.identity(), &config.ca_cert)));
        }
        let store = match config.storage_type {
            Some(kind) if kind != backend.storage_type => storage::open(backend, kind).await?,
            _ => store.clone(),
        };
        let allow_unsigned = config.allow_unsigned.unwrap_or(unsigned && config.trusted_signers.is_empty());
        Ok(Self::Here(load(store, &config.trusted_signers, allow_unsigned).await?))
    }

    /// What policies ask.
    ///
    /// # Errors
    /// [`Error::Client`].
    pub fn source(&self) -> Result<Arc<dyn Source>, Error> {
        Ok(match self {
            Self::Here(values) => Arc::new(values.clone()),
            Self::Elsewhere(settings) => Arc::new(ReferenceValueClient::connect(settings.clone())?),
        })
    }
}

impl RvpsConfig {
    fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        self.client_certificate.clone().zip(self.client_private_key.clone())
    }
}

/// Reference values in this process.
///
/// # Errors
/// [`Error`].
pub async fn load(store: Store, signers: &[PathBuf], allow_unsigned: bool) -> Result<ReferenceValues, Error> {
    let trusted_signers = signers.iter().map(|path| process::read(path)).collect::<Result<_, _>>()?;
    let settings = Settings { trusted_signers, allow_unsigned };
    Ok(ReferenceValues::load(store, Clock::system(), settings).await?)
}

/// How a service over gRPC is reached. An address without a scheme means plain HTTP.
pub fn client(
    address: &str,
    pool_size: u16,
    timeout: Duration,
    identity: Option<(PathBuf, PathBuf)>,
    ca: &Option<PathBuf>,
) -> ClientSettings {
    let address = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let ca = ca.as_deref().map(Path::to_owned);
    // Each connection carries many calls at once.
    ClientSettings { address, pool_size: usize::from(pool_size).min(100), ca, identity, timeout }
}

/// Why there are no reference values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error("reference values: {0}")]
    Values(#[from] reference_values::Error),
    #[error("reference values: {0}")]
    Client(#[from] attestation_api::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
}
