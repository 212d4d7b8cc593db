//! Key management services as sealed secrets and image keys use them: Alibaba Cloud and AWS.
//!
//! Requests are made and signed here rather than by the vendors' kits, which are larger than all of the guest.
//!
//! ```text
//! Kms ─┬─> aliyun ─┬─> instance (an instance's own gateway: protobuf, signed with an RSA key)
//!      │           └─> public (the public interface, signed with an access key)
//!      └─> aws ──────> signature
//! ```
//!
//! Credentials lie in files of the guest, which the data hub's configuration has filled with resources of the key broker.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod aliyun;
mod aws;
mod credentials;
mod error;
mod http;
mod time;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde_json::{Map, Value};
use wire::sealed_secret::Provider;
use zeroize::Zeroizing;

pub use error::Error;

use credentials::Credentials;
use http::Http;

/// Clients of all services. Each call reads its credentials anew, so that renewed ones count at once.
pub struct Kms {
    credentials: Credentials,
    http: Http,
    endpoint: Option<String>,
}

/// Where credentials and services are.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of all credentials, which none that a sealed secret names may be outside of.
    pub root: PathBuf,
    /// The folder of those for Alibaba Cloud.
    pub aliyun: PathBuf,
    /// The folder of those for AWS.
    pub aws: PathBuf,
    /// Base URL of one server that stands for all services. None, but in tests, means the vendors'.
    pub endpoint: Option<String>,
}

impl Config {
    /// The folders as upstream has them, below `root`.
    pub fn below(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let all = root.join("kms-credential");
        Self { aliyun: all.join("aliyun"), aws: all.join("aws"), root, endpoint: None }
    }
}

/// A key or a secret as a sealed secret names it.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    /// The service's name of it.
    pub name: &'a str,
    /// `provider_settings`: which client is to be used.
    pub settings: &'a Map<String, Value>,
    /// `annotations`: what else the service needs to know.
    pub annotations: &'a Map<String, Value>,
}

impl Kms {
    /// Clients that have asked for nothing yet.
    ///
    /// # Errors
    /// [`Error::Client`], which is not expected.
    pub fn new(config: Config) -> Result<Self, Error> {
        let Config { root, aliyun, aws, endpoint } = config;
        Ok(Self { credentials: Credentials { root, aliyun, aws }, http: Http::new(None)?, endpoint })
    }

    /// Decrypts `ciphertext` with a key of a service.
    ///
    /// # Errors
    /// [`Error::Provider`] for a service that is not known; [`Error::Settings`], [`Error::Credentials`]; or what the
    /// service said.
    pub async fn decrypt(
        &self,
        provider: &Provider,
        key: Named<'_>,
        ciphertext: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        match provider {
            Provider::Aliyun => aliyun::decrypt(self, key, ciphertext).await,
            Provider::Aws => aws::decrypt(self, key, ciphertext).await,
            other => Err(Error::Provider(other.to_string())),
        }
    }

    /// Fetches a secret that a service keeps.
    ///
    /// # Errors
    /// As [`Kms::decrypt`].
    pub async fn secret(&self, provider: &Provider, secret: Named<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
        match provider {
            Provider::Aliyun => aliyun::secret(self, secret).await,
            Provider::Aws => aws::secret(self, secret).await,
            other => Err(Error::Provider(other.to_string())),
        }
    }

    /// The base URL of the service at `host`.
    fn url(&self, host: &str) -> String {
        self.endpoint.clone().unwrap_or_else(|| format!("https://{host}"))
    }
}
