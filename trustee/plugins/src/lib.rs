//! What a key broker serves beside its resources: each plugin under its own name, `/kbs/v0/<name>/…`.
//!
//! The broker asks a plugin who may send a request, checks that, and has the plugin answer it. For a guest the broker's
//! resource policy has already allowed plugin, path and query.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod external;
mod nebula_ca;
mod pkcs11;
mod provisioner;
mod sample;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use store::Store;
use store::clock::Clock;
use zeroize::Zeroizing;

pub use error::{Error, Kind};

/// A request for a plugin.
pub struct Request<'a> {
    /// The HTTP method, in capitals.
    pub method: &'a str,
    /// The path's segments behind the plugin's name.
    pub path: &'a [&'a str],
    /// The query.
    pub query: &'a BTreeMap<String, String>,
    /// The body.
    pub body: &'a Bytes,
}

/// Who may send a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Only an administrator.
    Administrator,
    /// A guest with an attestation token that the resource policy allows.
    Guest,
}

/// A plugin's answer.
pub struct Output {
    /// The body.
    pub body: Zeroizing<Vec<u8>>,
    /// Whether a guest gets it encrypted to its key. It says nothing about administrators, who have none.
    pub encrypted: bool,
    /// The HTTP status, 200 to 299.
    pub status: u16,
}

/// A part of the broker under a name of its own.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// The first segment of the paths that it serves.
    fn name(&self) -> &str;

    /// What its requests are counted under: one of a few names that the configuration fixes.
    fn label(&self, _: &Request<'_>) -> &str {
        self.name()
    }

    /// Who may send this request.
    async fn access(&self, request: &Request<'_>) -> Result<Access, Error>;

    /// Answers a request of someone who may send it. `init_data_claims` is what the attestation service says about a
    /// guest's initdata.
    async fn handle(&self, request: &Request<'_>, init_data_claims: Option<&Value>) -> Result<Output, Error>;
}

/// One `[[plugins]]` table of the configuration, told apart by `name`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "name")]
pub enum Config {
    /// Certificates for nodes of a Nebula overlay network.
    #[serde(rename = "nebula-ca")]
    NebulaCa(nebula_ca::Config),
    /// Secrets and keys in a hardware security module.
    #[serde(rename = "pkcs11")]
    Pkcs11(pkcs11::Config),
    /// Plugins that are programs of their own, over gRPC.
    #[serde(rename = "external")]
    External(external::Config),
    /// Disk keys for confidential virtual machines.
    #[serde(rename = "provisioner")]
    Provisioner(provisioner::Config),
    /// An example to start a plugin from.
    #[serde(rename = "sample")]
    Sample(sample::Config),
}

/// Makes a plugin ready. It keeps what it must remember in `store`; none of them depends on the time so far.
///
/// # Errors
/// [`Error::Config`] with what is wrong, [`Error::Hsm`], [`Error::File`], [`Error::Program`].
pub async fn open(config: Config, store: Store, _clock: Clock) -> Result<Arc<dyn Plugin>, Error> {
    Ok(match config {
        Config::NebulaCa(config) => Arc::new(nebula_ca::NebulaCa::open(config).await?),
        Config::Pkcs11(config) => Arc::new(pkcs11::Pkcs11::open(config).await?),
        Config::External(config) => Arc::new(external::External::open(config)?),
        Config::Provisioner(config) => Arc::new(provisioner::Provisioner::open(config, store)?),
        Config::Sample(config) => Arc::new(sample::Sample::open(config)),
    })
}

impl Output {
    /// Whatever anyone may see.
    fn plain(body: Vec<u8>) -> Self {
        Self { body: Zeroizing::new(body), encrypted: false, status: 200 }
    }

    /// A secret for one guest.
    fn secret(body: Zeroizing<Vec<u8>>) -> Self {
        Self { body, encrypted: true, status: 200 }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Output {{ {} bytes, encrypted: {}, status: {} }}", self.body.len(), self.encrypted, self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_told_apart_by_its_name_and_has_no_unknown_keys() {
        for good in [
            "name = 'nebula-ca'",
            "name = 'nebula-ca'\nwork_dir = '/w'\nnebula_cert_bin_path = '/b'\n[ca_config]\nname = 'n'\nargon_memory = 8",
            "name = 'nebula-ca'\n[self_signed_ca]\nduration = '1h'",
            "name = 'pkcs11'\nmodule = '/m.so'\nslot_index = 1\npin = '1234'\nlookup_label = 'l'\nrsa_mechanism = 'RsaPkcsTest'",
            "name = 'pkcs11'\nmodule = '/m.so'\npin_file = '/pin'",
            "name = 'external'\nbackends = [{ name = 'a', endpoint = 'http://127.0.0.1:1', timeout_ms = 5 }]",
            "name = 'provisioner'",
            "name = 'provisioner'\nkey_length = 64",
            "name = 'sample'\nitem = 'x'",
        ] {
            let read: Result<Config, _> = toml::from_str(good);
            assert!(read.is_ok(), "{good}: {:?}", read.err());
        }
        for bad in [
            "item = 'x'",
            "name = 'other'",
            "name = 'sample'",
            "name = 'sample'\nitem = 'x'\nextra = 1",
            "name = 'nebula-ca'\nextra = 1",
            "name = 'nebula-ca'\n[ca_config]\nextra = 1",
            "name = 'pkcs11'\nmodule = '/m.so'\nextra = 1",
            "name = 'pkcs11'\nmodule = '/m.so'\nrsa_mechanism = 'RsaPkcs'",
            "name = 'external'\nbackends = [{ name = 'a', endpoint = 'http://127.0.0.1:1', tls_mode = 'tls' }]",
            "name = 'provisioner'\nkey_length = -1",
        ] {
            assert!(toml::from_str::<Config>(bad).is_err(), "{bad} passed");
        }
    }

    #[test]
    fn a_pin_or_an_answer_is_never_printed() {
        let config: Config = toml::from_str("name = 'pkcs11'\nmodule = '/m.so'\npin = 'my-pin'").unwrap();
        assert!(!format!("{config:?}").contains("my-pin"));
        let output = Output::secret(Zeroizing::new(b"my-secret".to_vec()));
        assert!(!format!("{output:?}").contains("my-secret"));
    }
}
