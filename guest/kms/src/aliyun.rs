//! Alibaba Cloud KMS, through the client that a secret's `provider_settings` name in `client_type`.

mod instance;
mod public;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::credentials::typed;
use crate::error::Error;
use crate::{Kms, Named};
use instance::Instance;
use public::AccessKey;

/// Decrypts with a key of a KMS instance.
pub(crate) async fn decrypt(kms: &Kms, key: Named<'_>, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    #[derive(Deserialize)]
    struct Annotations {
        iv: String,
    }
    let refused = |client| Err(Error::CannotDecrypt { service: SERVICE, client });
    match typed(SERVICE, SETTINGS, key.settings)? {
        Access::ClientKey { client_key_id, kms_instance_id } => {
            let annotations: Annotations = typed(SERVICE, ANNOTATIONS, key.annotations)?;
            let iv = STANDARD.decode(annotations.iv).map_err(|_| {
                let cause = "iv is not base64".to_owned();
                Error::Settings { service: SERVICE, what: ANNOTATIONS, cause }
            })?;
            Instance::open(kms, &client_key_id, &kms_instance_id).await?.decrypt(key.name, ciphertext, iv).await
        }
        Access::EcsRamRole {} => refused("ecs_ram_role"),
        Access::StsToken { .. } => refused("sts_token"),
    }
}

/// Fetches a secret, the current version unless the annotations name another.
pub(crate) async fn secret(kms: &Kms, secret: Named<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
    let version: Version = typed(SERVICE, ANNOTATIONS, secret.annotations)?;
    match typed(SERVICE, SETTINGS, secret.settings)? {
        Access::ClientKey { client_key_id, kms_instance_id } => {
            Instance::open(kms, &client_key_id, &kms_instance_id).await?.secret(secret.name, version).await
        }
        Access::EcsRamRole {} => AccessKey::of_role(kms).await?.secret(kms, secret.name, &version).await,
        Access::StsToken { token_path, region_id } => {
            AccessKey::in_file(kms, &token_path, region_id).await?.secret(kms, secret.name, &version).await
        }
    }
}

#[derive(Deserialize)]
#[serde(tag = "client_type", rename_all = "snake_case")]
enum Access {
    /// A client key of a KMS instance.
    ClientKey { client_key_id: String, kms_instance_id: String },
    /// The role of the virtual machine, which its host's metadata service gives out.
    EcsRamRole {},
    /// A token in a file.
    StsToken { token_path: String, region_id: String },
}

/// Which version of a secret. Empty means the current one.
#[derive(Default, Deserialize)]
struct Version {
    #[serde(default)]
    version_stage: String,
    #[serde(default)]
    version_id: String,
}

/// A secret's bytes from its data and type.
fn value(data: Zeroizing<String>, kind: &str) -> Option<Zeroizing<Vec<u8>>> {
    match kind {
        "binary" => STANDARD.decode(data.as_bytes()).ok().map(Zeroizing::new),
        _ => Some(Zeroizing::new(data.as_bytes().to_vec())),
    }
}

const SERVICE: &str = "Alibaba Cloud KMS";
const SETTINGS: &str = "provider_settings";
const ANNOTATIONS: &str = "annotations";
