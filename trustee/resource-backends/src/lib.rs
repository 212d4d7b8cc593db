//! Where resources lie: the own store, or a secret manager that the data owner already runs.

#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod aliyun;
mod aws;
mod azure;
mod bearer;
mod canonical;
mod config;
mod error;
mod gcp;
mod http;
mod lease;
mod naming;
mod own_store;
#[cfg(test)]
mod tests;
mod vault;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use store::Store;
use store::clock::Clock;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

pub use aliyun::Config as AliyunConfig;
pub use aws::Config as AwsConfig;
pub use azure::Config as AzureConfig;
pub use config::Config;
pub use error::{Error, Kind};
pub use gcp::Config as GcpConfig;
pub use naming::Naming;
pub use own_store::Config as OwnStoreConfig;
pub use vault::{Config as VaultConfig, Login as VaultLogin};

/// A place that holds resources.
///
/// Every call ends within 30 seconds and a little, whatever the service does: a call that failed for a passing
/// reason (429, 5xx, no connection) is repeated until then.
#[async_trait]
pub trait Backend: Send + Sync {
    /// The resource at `path`, or nothing.
    ///
    /// # Errors
    /// [`Error`]; never for a resource that is merely absent.
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error>;

    /// Writes a resource if `condition` holds, and returns its new version where the place has versions.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the condition does not hold, [`Error::ConditionUnsupported`] if the place can't check
    /// it in one step with the write.
    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error>;

    /// Removes a resource if `condition` holds; false if there was none.
    ///
    /// # Errors
    /// As [`Backend::put`].
    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error>;

    /// The paths of all resources, or of those in one repository, sorted.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where names in the place don't tell paths, [`Error::TooMany`] beyond 100,000.
    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error>;
}

/// A resource and the version it was read at.
pub struct Resource {
    /// The secret's bytes.
    pub value: Zeroizing<Vec<u8>>,
    /// What to name in [`Condition::Version`]; opaque, made of visible ASCII characters.
    pub version: Option<String>,
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource").field("version", &self.version).finish_non_exhaustive()
    }
}

/// What must hold for a write to happen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Condition {
    /// Nothing.
    Any,
    /// There is no resource at the path.
    Absent,
    /// The resource is at this version.
    Version(String),
}

/// Opens the place that `config` names.
///
/// Nothing secret is fetched yet; a service that is down now is reported by the calls that need it.
///
/// # Errors
/// [`Error::Config`] for values that can't be right, [`Error::File`] for a file that can't be read.
pub async fn open(config: Config, store: Store, clock: Clock) -> Result<Arc<dyn Backend>, Error> {
    let environment = Environment::process();
    Ok(match config {
        Config::KvStorage(own_store::Config {}) => Arc::new(own_store::OwnStore::new(store)),
        Config::Vault(config) => Arc::new(vault::Vault::new(config, &clock, http::Limits::default()).await?),
        Config::Aws(config) => Arc::new(aws::Aws::new(config, &environment, &clock, http::Limits::default()).await?),
        Config::Gcp(config) => Arc::new(gcp::Gcp::new(config, &environment, &clock, http::Limits::default()).await?),
        Config::Azure(config) => {
            Arc::new(azure::Azure::new(config, &environment, &clock, http::Limits::default()).await?)
        }
        Config::Aliyun(config) => aliyun::open(config, &clock, http::Limits::default()).await?,
    })
}

/// Where environment variables are read from: the process, or a test.
struct Environment(Box<Lookup>);

type Lookup = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Environment {
    fn process() -> Self {
        Self(Box::new(|name| std::env::var(name).ok()))
    }

    /// The value of a variable that is set to more than nothing.
    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }
}

/// Most paths in one answer of [`Backend::list`].
const MAX_LISTED: usize = 100_000;
/// Most pages that a list is read in: a page of the smallest size has 25 names, whosever they are.
const MAX_PAGES: usize = 10_000;
