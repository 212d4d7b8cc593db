//! One backend: its connection, made when it is needed, and the calls over it.

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};
use wire_grpc::plugin::PluginRequest;
use wire_grpc::plugin::kbs_plugin_client::KbsPluginClient;
use zeroize::Zeroizing;

use super::{BackendConfig, NAME, refused};
use crate::error::excerpt;
use crate::{Access, Error, Output};

pub(super) struct Backend {
    name: String,
    timeout: Duration,
    channel: Arc<RwLock<Channel>>,
    /// Ends with this.
    _reloading: JoinSet<()>,
}

impl Backend {
    /// Prepares the connection. Certificates are read again when their files change.
    pub fn open(config: BackendConfig) -> Result<Self, Error> {
        let files: Vec<PathBuf> = [&config.ca_cert_path, &config.client_cert_path, &config.client_key_path]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let timeout = match config.timeout_ms {
            Some(0) => return Err(refused(format!("backend \"{}\": timeout_ms must be more than 0", config.name))),
            Some(milliseconds) => Duration::from_millis(milliseconds),
            None => TIMEOUT,
        };
        let changes = if files.is_empty() { None } else { Some(file_watch::watch(&files)) };
        let changes = changes.transpose().map_err(|e| refused(e.to_string()))?;
        let channel = Arc::new(RwLock::new(channel(&config)?));
        if files.is_empty() {
            tracing::warn!("plugin external: backend \"{}\" is asked in plain text", config.name);
        }
        let name = config.name.clone();
        let mut reloading = JoinSet::new();
        if let Some(changes) = changes {
            reloading.spawn(reload(config, changes, channel.clone()));
        }
        Ok(Self { name, timeout, channel, _reloading: reloading })
    }

    /// Asks who may send a request.
    pub async fn access(&self, request: PluginRequest) -> Result<Access, Error> {
        let asking = self.ask(|mut client| {
            let request = request.clone();
            async move { client.validate_auth(request).await }
        });
        let administrator = self.bounded(asking).await?.requires_admin_auth;
        Ok(if administrator { Access::Administrator } else { Access::Guest })
    }

    /// Has a request answered.
    pub async fn handle(&self, request: PluginRequest) -> Result<Output, Error> {
        self.bounded(async {
            // First, so that a secret is not asked for before it is known how it travels.
            let asking = self.ask(|mut client| {
                let request = request.clone();
                async move { client.needs_encryption(request).await }
            });
            let encrypted = asking.await?.requires_payload_encryption;
            Ok((encrypted, self.client().handle(request.clone()).await?.into_inner()))
        })
        .await
        .and_then(|(encrypted, answer)| {
            let status = match answer.status_code {
                0 => 200,
                code => u16::try_from(code).unwrap_or_default(),
            };
            match status {
                200..=299 => Ok(Output { body: Zeroizing::new(answer.body.to_vec()), encrypted, status }),
                400..=599 => {
                    let text = excerpt(&String::from_utf8_lossy(&answer.body));
                    Err(Error::Answered { backend: self.name.clone(), status, text })
                }
                _ => {
                    let reason = format!("{} is no status of an answer", answer.status_code);
                    Err(Error::Protocol { backend: self.name.clone(), reason })
                }
            }
        })
    }

    /// Asks something that changes nothing, again if the backend can't be reached: it may just be starting.
    async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        for pause in PAUSES {
            match call(self.client()).await {
                Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(pause).await,
                answer => return answer.map(Response::into_inner),
            }
        }
        call(self.client()).await.map(Response::into_inner)
    }

    async fn bounded<T>(&self, calls: impl Future<Output = Result<T, Status>>) -> Result<T, Error> {
        match tokio::time::timeout(self.timeout, calls).await {
            Ok(answer) => answer.map_err(|status| self.failure(&status)),
            Err(_) => {
                let reason = format!("no answer within {} ms", self.timeout.as_millis());
                Err(Error::Unreachable { backend: self.name.clone(), reason })
            }
        }
    }

    fn client(&self) -> Client {
        let channel = self.channel.read().unwrap_or_else(PoisonError::into_inner).clone();
        KbsPluginClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    fn failure(&self, status: &Status) -> Error {
        let (backend, text) = (self.name.clone(), excerpt(status.message()));
        let answered = |status| Error::Answered { backend: backend.clone(), status, text: text.clone() };
        match status.code() {
            Code::NotFound => answered(404),
            Code::InvalidArgument => answered(400),
            Code::PermissionDenied => answered(403),
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => answered(409),
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Cancelled => {
                Error::Unreachable { backend, reason: with_causes(status, text) }
            }
            // Such as a certificate that the backend refused. What a backend itself answers has no cause.
            Code::Unknown if status.source().is_some() => {
                Error::Unreachable { backend, reason: with_causes(status, text) }
            }
            code => Error::Protocol { backend, reason: format!("{code:?}: {text}") },
        }
    }
}

type Client = KbsPluginClient<Channel>;

async fn reload(config: BackendConfig, mut changes: file_watch::Changes, current: Arc<RwLock<Channel>>) {
    loop {
        changes.changed().await;
        match channel(&config) {
            Ok(channel) => *current.write().unwrap_or_else(PoisonError::into_inner) = channel,
            Err(e) => tracing::warn!("{e}; going on with the certificates of before"),
        }
    }
}

fn channel(config: &BackendConfig) -> Result<Channel, Error> {
    let wrong = |reason: &str| refused(format!("backend \"{}\": {reason}", config.name));
    let form = "endpoint must be http://host:port or https://host:port";
    let tls = config.endpoint.starts_with("https://");
    if !tls && !config.endpoint.starts_with("http://") {
        return Err(wrong(form));
    }
    let mut endpoint = Endpoint::from_shared(config.endpoint.clone()).map_err(|_| wrong(form))?;
    endpoint = endpoint
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(CONNECT);

    let BackendConfig { ca_cert_path, client_cert_path, client_key_path, .. } = config;
    let endpoint = match (tls, ca_cert_path, client_cert_path, client_key_path) {
        (false, None, None, None) => endpoint,
        (false, ..) => return Err(wrong("certificates are for https only")),
        (true, None, ..) => return Err(wrong("https needs ca_cert_path")),
        (true, Some(_), Some(_), None) | (true, Some(_), None, Some(_)) => {
            return Err(wrong("needs both client_cert_path and client_key_path, or none"));
        }
        (true, Some(ca), certificate, key) => {
            let mut settings = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?));
            if let (Some(certificate), Some(key)) = (certificate, key) {
                settings = settings.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            endpoint.tls_config(settings).map_err(|e| wrong(&with_causes(&e, e.to_string())))?
        }
    };
    Ok(endpoint.connect_lazy())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::File { plugin: NAME, path: path.to_owned(), source };
    fs::read(path).map(Zeroizing::new).map_err(failed)
}

/// A text with that of the last cause, which says most.
fn with_causes(error: &dyn std::error::Error, text: String) -> String {
    let last = std::iter::successors(error.source(), |&cause| cause.source()).last();
    match last.map(|cause| excerpt(&cause.to_string())) {
        Some(cause) if !text.contains(&cause) => format!("{text}: {cause}"),
        _ => text,
    }
}

/// How long a call may take if the configuration doesn't say.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Before a backend that can't be reached is asked again.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// Largest message, either way.
pub(super) const MAX_MESSAGE: usize = 8 << 20;
