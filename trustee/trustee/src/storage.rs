//! Opens the storage that a configuration names, with its master key.

use hsm::{Hsm, HsmSettings, Pin, Token};
use store::{Location, MasterKey, Store};

use crate::config::storage::{Pkcs11, StorageBackend, StorageType};

/// Opens a kind of storage.
///
/// # Errors
/// [`Error`] with what is wrong about key or place.
pub async fn open(config: &StorageBackend, kind: StorageType) -> Result<Store, Error> {
    let location = config.location(kind);
    let key = master_key(config, &location).await?;
    Ok(Store::open(&location, key).await?)
}

/// The master key that is configured; none means that of the storage itself, or that it has none.
///
/// # Errors
/// [`Error`].
pub async fn master_key(config: &StorageBackend, location: &Location) -> Result<Option<MasterKey>, Error> {
    if matches!(location, Location::LocalFs { .. } | Location::LocalJson { .. }) {
        return Ok(None);
    }
    let source = &config.master_key;
    Ok(match (&source.file, &source.env, &source.pkcs11) {
        (Some(path), ..) => Some(MasterKey::from_file(path).map_err(store::Error::from)?),
        (None, Some(variable), _) => Some(MasterKey::from_env(variable).map_err(store::Error::from)?),
        (None, None, Some(pkcs11)) => Some(from_module(pkcs11.clone()).await?),
        (None, None, None) => None,
    })
}

/// Why there is no storage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("storage: {0}")]
    Store(#[from] store::Error),
    #[error("storage: the master key's module: {0}")]
    Hsm(#[from] hsm::Error),
    #[error("storage: the master key's module broke off: {0}; next: check the module")]
    Aborted(#[from] tokio::task::JoinError),
}

async fn from_module(pkcs11: Pkcs11) -> Result<MasterKey, Error> {
    let Pkcs11 { module, token_label, pin, pin_file, key_label, wrapped_key_file } = pkcs11;
    // They are there: the configuration was checked.
    let (module, label, file) =
        (module.unwrap_or_default(), token_label.unwrap_or_default(), wrapped_key_file.unwrap_or_default());
    let pin = match (pin, pin_file) {
        (Some(pin), _) => Pin::Value(pin),
        (None, path) => Pin::File(path.unwrap_or_default()),
    };
    let settings = HsmSettings { module, token: Token::Label(label), pin };
    let key = tokio::task::spawn_blocking(move || Hsm::open(settings)?.master_key(&key_label, &file)).await??;
    Ok(MasterKey::from_bytes(key.as_slice()).map_err(store::Error::from)?)
}
