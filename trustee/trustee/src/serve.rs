//! `trustee serve` and `kbs`: all of a Trustee in one process, or a key broker beside services elsewhere.

use std::path::{Path, PathBuf};

use crate::config::{self, Config, File as _, Read};
use crate::process::{self, Process};
use crate::{cli, compose, storage};

/// Serves as the configuration says. Prints `listening on URL` for each socket once requests are answered.
///
/// # Errors
/// [`Error`] names the part that could not start.
pub fn run(path: &Path) -> Result<(), Error> {
    let Read { config, warnings } = Config::read(path)?;
    process::run("trustee", config.http_server.worker_count, warnings, serve(config))
}

/// The same, with the file that a flag or `KBS_CONFIG_FILE` names.
///
/// # Errors
/// [`Error`].
pub fn run_kbs(arguments: cli::Kbs) -> Result<(), Error> {
    let named = || std::env::var_os("KBS_CONFIG_FILE").map(PathBuf::from);
    let path = arguments.config_file.or_else(named).ok_or(Error::NoFile)?;
    run(&path)
}

async fn serve(config: Config) -> Result<(), Error> {
    let server = &config.http_server;
    let tls = server.tls_files().map(|files| http_server::Tls::new(files, server.tls_profile())).transpose();
    let process = Process::start(&server.sockets, tls.map_err(process::Error::from)?).await?;
    let backend = &config.storage_backend;
    let store = storage::open(backend, backend.storage_type).await?;
    let (broker, metrics) = compose::broker(&config, store.clone(), process.has_tls()).await?;
    process.serve(broker, metrics).await?;
    store.close().await;
    Ok(())
}

/// Why a Trustee did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: no file is named; next: give --config-file FILE, or set KBS_CONFIG_FILE")]
    NoFile,
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Compose(#[from] compose::Error),
}
