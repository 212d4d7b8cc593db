//! `pkcs11`: secrets that lie in a hardware security module, and keys that it wraps and unwraps.
//!
//! | Request | Who | What |
//! |---|---|---|
//! | `GET resource/repository/type/tag` | guest | the secret with this label, encrypted |
//! | `POST resource/repository/type/tag` | administrator | stores the body as this secret |
//! | `POST wrap-key` | administrator | the body, wrapped by the public key `lookup_label` |
//! | `GET wrap-key` | guest | the body, unwrapped by the private key, encrypted |

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hsm::{Hsm, HsmSettings, MAX_SESSIONS, Pin, RsaMechanism, Token};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::{Access, Error, Output, Plugin, Request};

/// Settings of the plugin `pkcs11`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The module's shared library.
    pub module: PathBuf,
    /// The token's place among the slots that have one, from 0.
    #[serde(default)]
    pub slot_index: u8,
    /// The user's PIN. It, or better its file.
    pub pin: Option<Zeroizing<String>>,
    /// File with the user's PIN.
    pub pin_file: Option<PathBuf>,
    /// Label of the RSA key that wraps. Without it the plugin has no `wrap-key`.
    #[serde(default)]
    pub lookup_label: String,
    /// `RsaPkcsOaep` is OAEP with SHA-256; `RsaPkcsTest` is OAEP with SHA-1, for modules that have no other.
    #[serde(default)]
    pub rsa_mechanism: RsaMechanism,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pkcs11 {} slot {}", self.module.display(), self.slot_index)
    }
}

pub(crate) struct Pkcs11 {
    hsm: Arc<Hsm>,
    key_label: String,
    mechanism: RsaMechanism,
    /// Keeps a module that hangs from taking all threads that may block.
    turns: Arc<Semaphore>,
}

impl Pkcs11 {
    pub async fn open(config: Config) -> Result<Self, Error> {
        let Config { module, slot_index, pin, pin_file, lookup_label: key_label, rsa_mechanism: mechanism } = config;
        let pin = match (pin, pin_file) {
            (Some(pin), None) => Pin::Value(pin),
            (None, Some(path)) => Pin::File(path),
            _ => return Err(Error::Config { plugin: NAME, reason: "needs one of pin and pin_file".to_owned() }),
        };
        let settings = HsmSettings { module, token: Token::Index(slot_index.into()), pin };
        let turns = Arc::new(Semaphore::new(MAX_SESSIONS));
        let hsm = Arc::new(blocking(&turns, move || Hsm::open(settings)).await?);
        Ok(Self { hsm, key_label, mechanism, turns })
    }

    /// Does something with the module on a thread that may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Hsm) -> Result<T, hsm::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let hsm = self.hsm.clone();
        blocking(&self.turns, move || work(&hsm)).await
    }
}

#[async_trait]
impl Plugin for Pkcs11 {
    fn name(&self) -> &str {
        NAME
    }

    async fn access(&self, request: &Request<'_>) -> Result<Access, Error> {
        match request.method {
            "GET" => Ok(Access::Guest),
            "POST" => Ok(Access::Administrator),
            _ => Err(Error::Route(NAME)),
        }
    }

    async fn handle(&self, request: &Request<'_>, _init_data_claims: Option<&Value>) -> Result<Output, Error> {
        let (label, mechanism) = (self.key_label.clone(), self.mechanism);
        match (request.method, request.path) {
            ("GET", ["resource", path @ ..]) => {
                let label = resource(path)?;
                let value = self.with(move |hsm| hsm.read(&label)).await?;
                Ok(Output::secret(value.ok_or(Error::Missing { plugin: NAME, what: "secret" })?))
            }
            ("POST", ["resource", path @ ..]) => {
                let (label, value) = (resource(path)?, Zeroizing::new(request.body.to_vec()));
                self.with(move |hsm| hsm.write(&label, &value)).await?;
                Ok(Output::plain(Vec::new()))
            }
            ("POST", ["wrap-key"]) if !label.is_empty() => {
                let value = Zeroizing::new(request.body.to_vec());
                self.with(move |hsm| hsm.wrap_key(&label, mechanism, &value)).await.map(Output::plain)
            }
            ("GET", ["wrap-key"]) if !label.is_empty() => {
                let wrapped = request.body.clone();
                self.with(move |hsm| hsm.unwrap_key(&label, mechanism, &wrapped)).await.map(Output::secret)
            }
            _ => Err(Error::Route(NAME)),
        }
    }
}

/// The label of a secret: its path.
fn resource(segments: &[&str]) -> Result<String, Error> {
    let path = ResourcePath::parse(&segments.join("/"));
    let path = path.map_err(|e| Error::Member { plugin: NAME, member: "path", reason: e.to_string() })?;
    Ok(path.to_string())
}

async fn blocking<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, hsm::Error> + Send + 'static,
) -> Result<T, Error> {
    let turn = tokio::time::timeout(PATIENCE, turns.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else { return Err(Error::Busy(NAME)) };
    let done = tokio::task::spawn_blocking(move || {
        // Not given back before the thread is free, even if nobody waits for the answer any more.
        let _turn = turn;
        work()
    });
    match done.await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Error::Busy(NAME)),
    }
}

const NAME: &str = "pkcs11";
const PATIENCE: Duration = Duration::from_secs(10);
