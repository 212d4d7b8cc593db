//! `external`: plugins that are programs of their own, asked over gRPC (`kbs.plugin.v1`).
//!
//! The first segment of a path names the backend, the others are its own. A backend need not run when the broker
//! starts, and is reconnected to when it comes back.

mod backend;

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;
use wire_grpc::plugin::PluginRequest;

use crate::{Access, Error, Output, Plugin, Request};
use backend::{Backend, MAX_MESSAGE};

/// Settings of the plugin `external`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The backends, at least one.
    pub backends: Vec<BackendConfig>,
}

/// Where one backend is.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Its name in paths: letters, digits, `-`, `_`.
    pub name: String,
    /// `https://host:port`, or `http://host:port` in plain text.
    pub endpoint: String,
    /// PEM file of the authorities that vouch for an `https` backend.
    pub ca_cert_path: Option<PathBuf>,
    /// PEM file of the certificate chain that the broker shows the backend.
    pub client_cert_path: Option<PathBuf>,
    /// PEM file of that certificate's key.
    pub client_key_path: Option<PathBuf>,
    /// How long a call may take, in milliseconds: 10000 if not set.
    pub timeout_ms: Option<u64>,
}

pub(crate) struct External {
    backends: BTreeMap<String, Backend>,
}

impl External {
    /// Must be called on a runtime of tokio.
    pub fn open(config: Config) -> Result<Self, Error> {
        let mut backends = BTreeMap::new();
        for config in config.backends {
            let name = config.name.clone();
            if !is_name(&name) {
                return Err(refused(format!("\"{}\" can't name a backend", name.escape_default())));
            }
            if backends.insert(name.clone(), Backend::open(config)?).is_some() {
                return Err(refused(format!("there are two backends \"{name}\"")));
            }
        }
        if backends.is_empty() {
            return Err(refused("needs backends".to_owned()));
        }
        Ok(Self { backends })
    }

    /// The backend that a path names, and what to tell it.
    fn route(&self, request: &Request<'_>) -> Result<(&Backend, PluginRequest), Error> {
        let [name, path @ ..] = request.path else { return Err(Error::Route(NAME)) };
        let backend = self.backends.get(*name).ok_or(Error::Missing { plugin: NAME, what: "backend" })?;
        if request.body.len() > MAX_BODY {
            return Err(Error::TooLarge { plugin: NAME, limit: MAX_BODY });
        }
        let message = PluginRequest {
            body: request.body.clone(),
            query: request.query.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            path: path.iter().map(|segment| (*segment).to_owned()).collect(),
            method: request.method.to_owned(),
        };
        Ok((backend, message))
    }
}

#[async_trait]
impl Plugin for External {
    fn name(&self) -> &str {
        NAME
    }

    fn label(&self, request: &Request<'_>) -> &str {
        let asked = request.path.first().copied().unwrap_or_default();
        self.backends.keys().find(|name| *name == asked).map_or(NAME, String::as_str)
    }

    async fn access(&self, request: &Request<'_>) -> Result<Access, Error> {
        let (backend, message) = self.route(request)?;
        backend.access(message).await
    }

    async fn handle(&self, request: &Request<'_>, _init_data_claims: Option<&Value>) -> Result<Output, Error> {
        let (backend, message) = self.route(request)?;
        backend.handle(message).await
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn refused(reason: String) -> Error {
    Error::Config { plugin: NAME, reason }
}

const NAME: &str = "external";
/// Largest body, which leaves room for the rest of the message.
const MAX_BODY: usize = MAX_MESSAGE - (256 << 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_configuration_that_contradicts_itself_is_refused() {
        let plain = BackendConfig {
            name: "a".to_owned(),
            endpoint: "http://127.0.0.1:1".to_owned(),
            ca_cert_path: None,
            client_cert_path: None,
            client_key_path: None,
            timeout_ms: None,
        };
        let open = |backends: &[BackendConfig]| External::open(Config { backends: backends.to_vec() });
        assert!(open(std::slice::from_ref(&plain)).is_ok());

        let file = Some(PathBuf::from("/nowhere.pem"));
        let https = || BackendConfig { endpoint: "https://127.0.0.1:1".to_owned(), ..plain.clone() };
        for (bad, reason) in [
            (vec![], "needs backends"),
            (vec![plain.clone(), plain.clone()], "two backends"),
            (vec![BackendConfig { name: "a/b".to_owned(), ..plain.clone() }], "can't name"),
            (vec![BackendConfig { name: String::new(), ..plain.clone() }], "can't name"),
            (vec![BackendConfig { endpoint: "127.0.0.1:1".to_owned(), ..plain.clone() }], "http://"),
            (vec![BackendConfig { endpoint: "http://[".to_owned(), ..plain.clone() }], "http://"),
            (vec![BackendConfig { ca_cert_path: file.clone(), ..plain.clone() }], "https"),
            (vec![BackendConfig { timeout_ms: Some(0), ..plain.clone() }], "timeout_ms"),
            (vec![https()], "ca_cert_path"),
            (vec![BackendConfig { client_cert_path: file.clone(), ca_cert_path: file.clone(), ..https() }], "both"),
            (vec![BackendConfig { ca_cert_path: file.clone(), ..https() }], "/nowhere.pem"),
        ] {
            let error = open(&bad).err().unwrap().to_string();
            assert!(error.contains(reason), "{error} lacks {reason}");
        }
    }
}
