//! Connections to a gRPC service: made when needed, made again when lost, and with new certificates when those change.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};
use zeroize::Zeroizing;

use crate::error::Error;
use crate::grpc::chain;

/// How a service is reached.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// `http://host:port` or `https://host:port`.
    pub address: String,
    /// Connections to spread calls over, 1 to 100. Each carries many calls at once.
    pub pool_size: usize,
    /// PEM file of the authorities that vouch for the service, instead of the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of the certificate chain and the private key that this client presents.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// How long a call may take.
    pub timeout: Duration,
}

/// Connections to one service.
pub(crate) struct Connections {
    address: String,
    timeout: Duration,
    channels: Arc<RwLock<Arc<[Channel]>>>,
    next: AtomicUsize,
    /// Ends with this.
    _reloading: JoinSet<()>,
}

impl Connections {
    /// Prepares connections; none is made yet, so the service need not run. Certificates are read again when their
    /// files change. Must be called on a runtime of tokio.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::File`], [`Error::Tls`], [`Error::Watch`].
    pub fn open(settings: ClientSettings) -> Result<Self, Error> {
        let mut files: Vec<PathBuf> = settings.ca.iter().cloned().collect();
        files.extend(settings.identity.iter().flat_map(|(certificate, key)| [certificate.clone(), key.clone()]));
        let watched = if files.is_empty() { None } else { Some(file_watch::watch(&files)?) };
        let channels = Arc::new(RwLock::new(channels(&settings)?));
        let (address, timeout) = (settings.address.clone(), settings.timeout);
        let mut reloading = JoinSet::new();
        if let Some(changes) = watched {
            reloading.spawn(reload(settings, changes, channels.clone()));
        }
        Ok(Self { address, timeout, channels, next: AtomicUsize::new(0), _reloading: reloading })
    }

    /// Makes a call. A connection that turns out to be lost is replaced once, so a service that was restarted answers;
    /// it may then see the same call twice.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Timeout`], [`Error::Refused`].
    pub async fn call<T, F>(&self, send: impl Fn(Channel) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let calling = async {
            match send(self.channel()).await {
                Err(status) if is_lost(&status) => send(self.channel()).await,
                outcome => outcome,
            }
        };
        let timeout = self.timeout;
        let outcome = tokio::time::timeout(timeout, calling).await;
        let outcome = outcome.map_err(|_| Error::Timeout { address: self.address.clone(), timeout })?;
        outcome.map(Response::into_inner).map_err(|status| self.failure(&status))
    }

    /// The answer of the service is not what it should be.
    pub fn misunderstood(&self, cause: impl ToString) -> Error {
        Error::Answer { address: self.address.clone(), cause: cause.to_string() }
    }

    fn channel(&self) -> Channel {
        let channels = self.channels.read().unwrap_or_else(PoisonError::into_inner);
        // There is at least one.
        channels[self.next.fetch_add(1, Ordering::Relaxed) % channels.len()].clone()
    }

    fn failure(&self, status: &Status) -> Error {
        let address = self.address.clone();
        match status.code() {
            _ if is_lost(status) => Error::Unreachable { address, cause: chain(status) },
            Code::Ok => Error::Answer { address, cause: "it ended too early".to_owned() },
            // What upstream's services and ours refuse with; the message says it all.
            Code::Aborted => Error::Refused { address, message: status.message().to_owned() },
            code => Error::Refused { address, message: format!("{code}: {}", status.message()) },
        }
    }
}

/// Whether a call failed on its way: then its status is not from the service and has a cause here, or some proxy says
/// that there is no way to the service.
fn is_lost(status: &Status) -> bool {
    status.source().is_some() || status.code() == Code::Unavailable
}

async fn reload(settings: ClientSettings, mut changes: file_watch::Changes, current: Arc<RwLock<Arc<[Channel]>>>) {
    loop {
        changes.changed().await;
        match channels(&settings) {
            Ok(new) => *current.write().unwrap_or_else(PoisonError::into_inner) = new,
            Err(e) => tracing::warn!("the certificates for {} stay as they were: {e}", settings.address),
        }
    }
}

fn channels(settings: &ClientSettings) -> Result<Arc<[Channel]>, Error> {
    let address = |cause: String| Error::Address { address: settings.address.clone(), cause };
    let endpoint = Endpoint::from_shared(settings.address.clone()).map_err(|e| address(chain(&e)))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT.min(settings.timeout))
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let endpoint = match endpoint.uri().scheme_str() {
        Some("https") => {
            let refused = |e| Error::Tls { address: settings.address.clone(), cause: chain(&e) };
            endpoint.tls_config(tls(settings)?).map_err(refused)?
        }
        Some("http") if settings.ca.is_none() && settings.identity.is_none() => endpoint,
        Some("http") => return Err(address("certificates are of no use with http".to_owned())),
        _ => return Err(address("it begins neither with http:// nor with https://".to_owned())),
    };
    let count = settings.pool_size.clamp(1, MAX_CONNECTIONS);
    Ok((0..count).map(|_| endpoint.connect_lazy()).collect())
}

fn tls(settings: &ClientSettings) -> Result<ClientTlsConfig, Error> {
    let config = match &settings.ca {
        Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(ca)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    Ok(match &settings.identity {
        Some((certificate, key)) => config.identity(Identity::from_pem(read(certificate)?, read(key)?)),
        None => config,
    })
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let content = std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    Ok(Zeroizing::new(content))
}

const CONNECT: Duration = Duration::from_secs(10);
/// Finds out that a service's machine is gone within twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const MAX_CONNECTIONS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: &str) -> ClientSettings {
        let timeout = Duration::from_secs(1);
        ClientSettings { address: address.to_owned(), pool_size: 0, ca: None, identity: None, timeout }
    }

    #[tokio::test]
    async fn an_address_is_a_url_of_http() {
        for address in ["", "127.0.0.1:3000", "ftp://as:1", "https://", "http://a b"] {
            assert!(matches!(Connections::open(settings(address)), Err(Error::Address { .. })), "{address}");
        }
        assert!(Connections::open(settings("http://127.0.0.1:3000")).is_ok());
    }

    #[tokio::test]
    async fn certificates_must_be_readable_and_of_use() {
        let ca = Some(PathBuf::from("/nonexistent/ca.pem"));
        let plain = ClientSettings { ca: ca.clone(), ..settings("http://127.0.0.1:3000") };
        assert!(matches!(Connections::open(plain), Err(Error::Address { .. })));
        let tls = ClientSettings { ca, ..settings("https://127.0.0.1:3000") };
        assert!(matches!(Connections::open(tls), Err(Error::File { .. })));
    }
}
