//! `trustee serve`: composes the broker from its configuration and runs it until a signal.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use key_broker::admin::{Admin, Authenticated};
use key_broker::server::{self, Identity, Tls};
use key_broker::{Broker, Settings};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::config::{self, AuthorizationMode, Config};

/// Serves as the configuration says. Prints `listening on URL` for each socket once requests are answered.
///
/// # Errors
/// [`Error`] names the part that could not start.
pub fn run(config: &Path) -> Result<(), Error> {
    let config = Config::read(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_stack_size(STACK)
        .build()
        .map_err(Error::Runtime)?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), Error> {
    // Installed first: a signal during the start must not end the process half way through a write.
    let mut terminated = signal(SignalKind::terminate()).map_err(Error::Runtime)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::Runtime)?;

    // What can be wrong without a trace comes first: a start that fails then leaves no file behind.
    let tls = identity(&config)?.map(|identity| Tls::new(&identity)).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let settings = settings(&config, tls.is_some())?;
    let mut listeners = Vec::new();
    for socket in &config.http_server.sockets {
        listeners.push(server::bind(socket).await.map_err(Error::Listen)?);
    }
    let broker = Arc::new(Broker::open(settings).await?);
    if config.attestation.sample_verifier {
        tracing::warn!("the sample verifier is on: anyone can make the evidence it accepts");
    }
    for listener in &listeners {
        // Whoever started us waits for this line; who doesn't read it may have closed the pipe.
        let _ = writeln!(io::stdout(), "listening on {scheme}://{}", listener.local_addr().map_err(Error::Listen)?);
    }

    let stop = async {
        tokio::select! { _ = terminated.recv() => {}, _ = interrupted.recv() => {} }
        tracing::info!("stopping");
    };
    server::serve(broker.clone(), listeners, tls, stop).await;
    broker.close().await;
    Ok(())
}

fn settings(config: &Config, tls: bool) -> Result<Settings, Error> {
    let admin = match (config.admin.authorization_mode, &config.admin.public_key) {
        (AuthorizationMode::AuthenticatedAuthorization, Some(path)) => {
            Admin::Authenticated(Box::new(Authenticated::new(&read(path)?, config.admin.roles.clone())?))
        }
        _ => Admin::DenyAll,
    };
    Ok(Settings {
        storage: config.storage.directory.clone(),
        audit: config.audit.path.clone(),
        admin,
        sample_verifier: config.attestation.sample_verifier,
        token_lifetime: Duration::from_secs(60 * u64::from(config.attestation.token_minutes)),
        tls,
    })
}

fn identity(config: &Config) -> Result<Option<Identity>, Error> {
    match (&config.http_server.certificate, &config.http_server.private_key) {
        (Some(certificate), Some(private_key)) => {
            let private_key = Zeroizing::new(read(private_key)?);
            Ok(Some(Identity { certificates: read(certificate)?, private_key }))
        }
        _ => Ok(None),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

/// Why the Trustee did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error("start: {} can't be read: {source}; next: check the path in the configuration", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("start: the system gives no threads or signals: {0}; next: check the limits on processes")]
    Runtime(io::Error),
    #[error(
        "start: can't listen on {0}; next: choose another address under [http_server] sockets, or end what uses it"
    )]
    Listen(io::Error),
    #[error("configuration: [admin]: {0}; next: correct [admin] in the configuration")]
    Admin(#[from] key_broker::admin::Error),
    #[error(transparent)]
    Broker(#[from] key_broker::Error),
    #[error(transparent)]
    Server(#[from] server::Error),
}

/// Policies are evaluated by recursion; pages that are not touched cost nothing.
const STACK: usize = 32 << 20;
