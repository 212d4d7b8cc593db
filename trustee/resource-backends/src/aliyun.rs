//! Resources in Alibaba Cloud KMS: through a KMS instance's own gateway as upstream, or through the public interface.

mod instance;
mod protobuf;
mod public;
mod signature;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use store::clock::Clock;
use zeroize::Zeroizing;

use crate::Backend;
use crate::error::Error;
use crate::http::Limits;
use crate::naming::Naming;

/// Either `client_key`, `password`, `cert_pem` and `kms_instance_id` for an instance's gateway, which can only read;
/// or `region_id`, `access_key_id` and `access_key_secret_file` for the public interface, which can write too.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The content of an instance's client key file: JSON with `KeyId` and `PrivateKeyData`.
    client_key: Option<Zeroizing<String>>,
    /// The instance. With the public interface: where new secrets are kept, together with `encryption_key_id`.
    kms_instance_id: Option<String>,
    /// What `PrivateKeyData` is encrypted with.
    password: Option<Zeroizing<String>>,
    /// The content of the file with the instance's certificate authority.
    cert_pem: Option<String>,
    region_id: Option<String>,
    access_key_id: Option<String>,
    access_key_secret_file: Option<PathBuf>,
    /// The key that new secrets of an instance are encrypted with.
    encryption_key_id: Option<String>,
    /// Without it, the instance's or the region's public endpoint.
    endpoint_url: Option<String>,
    #[serde(default)]
    pub(crate) naming: Naming,
}

/// Opens the way that the configuration is for.
pub(crate) async fn open(config: Config, clock: &Clock, limits: Limits) -> Result<Arc<dyn Backend>, Error> {
    let absent = |key| Error::Config { key, cause: "it is absent".to_owned() };
    let endpoint = config.endpoint_url;
    match (config.client_key, config.access_key_id) {
        (Some(client_key), None) => {
            let settings = instance::Settings {
                client_key,
                password: config.password.ok_or_else(|| absent("password"))?,
                instance: config.kms_instance_id.ok_or_else(|| absent("kms_instance_id"))?,
                certificate: config.cert_pem.ok_or_else(|| absent("cert_pem"))?,
                endpoint,
                naming: config.naming,
            };
            Ok(Arc::new(instance::Instance::new(settings, clock, limits)?))
        }
        (None, Some(access_key)) => {
            let settings = public::Settings {
                access_key,
                secret_file: config.access_key_secret_file.ok_or_else(|| absent("access_key_secret_file"))?,
                region: config.region_id.ok_or_else(|| absent("region_id"))?,
                instance: config.kms_instance_id.zip(config.encryption_key_id),
                endpoint,
                naming: config.naming,
            };
            Ok(Arc::new(public::Public::new(settings, clock, limits)?))
        }
        _ => {
            let cause = "give either this or access_key_id".to_owned();
            Err(Error::Config { key: "client_key", cause })
        }
    }
}

const MAX_NAME: usize = 192;
