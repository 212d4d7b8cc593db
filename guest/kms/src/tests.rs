//! The services' clients against servers that check every signature anew.

mod aliyun;
mod aws;
mod double;

use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::{Config, Kms, Named};

/// A client key as Alibaba Cloud gives it out, made with
/// `openssl pkcs12 -export -legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40`.
pub(crate) const CLIENT_KEY: &str = include_str!("../../../wire/core/src/pkcs12/client-key.p12.base64");
pub(crate) const CLIENT_KEY_PASSWORD: &str = "f1e2d3c4";
/// Its public key, an RSAPublicKey.
const CLIENT_KEY_PUBLIC: &str = include_str!("../../../wire/core/src/pkcs12/client-key.public.base64");

/// Clients of one server, and the folder with their credentials.
struct Guest {
    folder: TempDir,
    kms: Kms,
}

impl Guest {
    fn new(endpoint: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { endpoint: Some(endpoint.to_owned()), ..Config::below(folder.path()) };
        for path in [&config.aliyun, &config.aws] {
            std::fs::create_dir_all(path).unwrap();
        }
        Self { kms: Kms::new(config).unwrap(), folder }
    }

    /// Writes a credential below `kms-credential`.
    fn credential(&self, path: &str, content: &str) {
        std::fs::write(self.folder.path().join("kms-credential").join(path), content).unwrap();
    }
}

fn named<'a>(name: &'a str, settings: &'a Value, annotations: &'a Value) -> Named<'a> {
    Named { name, settings: object(settings), annotations: object(annotations) }
}

fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap()
}
