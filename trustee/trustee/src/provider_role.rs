//! The provider of reference values as a process of its own, and the tool that talks to it.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use attestation_api::{ReferenceValueClient, reference_value_provider};
use wire::reference_value::Message;

use crate::attestation_role::tls;
use crate::cli::{self, RvpsAction};
use crate::config::{self, File as _, ProviderConfig, Read};
use crate::process::{self, Process};
use crate::reference;
use crate::routed::Routed;
use crate::storage;

/// `rvps`
///
/// # Errors
/// [`Error`] names the part that could not start.
pub fn run(arguments: cli::Rvps) -> Result<(), Error> {
    let Read { config, warnings } = ProviderConfig::read(&arguments.config)?;
    process::run("rvps", None, warnings, async {
        let tls = tls(&arguments.tls).map_err(process::Error::from)?;
        let process = Process::start(&[arguments.address], tls).await?;
        let store = storage::open(&config.storage, config.storage.storage_type).await?;
        let values = reference::load(store.clone(), &config.trusted_signers, config.allow_unsigned).await?;
        let health = store.clone();
        let router = reference_value_provider(values, Arc::new(move || health.healthy()));
        let (handler, metrics) = Routed::new("rvps", router, store.clone());
        process.serve(handler, metrics).await?;
        store.close().await;
        Ok(())
    })
}

/// `rvps-tool`
///
/// # Errors
/// [`Error`] with what the provider says.
pub fn run_tool(arguments: cli::RvpsTool) -> Result<(), Error> {
    process::run("rvps-tool", Some(1), Vec::new(), async {
        match arguments.action {
            RvpsAction::Register { provider, path } => {
                let text = std::fs::read(&path).map_err(|source| Error::File { path: path.clone(), source })?;
                let message: Message =
                    serde_json::from_slice(&text).map_err(|source| Error::Message { path, source })?;
                client(provider)?.register(&message).await?;
                print("registered")
            }
            RvpsAction::Query { provider, reference_value_id } => {
                match client(provider)?.query(&reference_value_id).await? {
                    Some(value) => print(&value.to_string()),
                    None => Err(Error::NoValue(reference_value_id)),
                }
            }
            RvpsAction::List { provider } => {
                for name in client(provider)?.list().await? {
                    print(&name)?;
                }
                Ok(())
            }
        }
    })
}

/// Why a provider did not start, or its tool not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error("reference values: {0}")]
    Client(#[from] attestation_api::Error),
    #[error("reference values: {}: {source}; next: give a file that may be read", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("reference values: {} is no message: {source}; next: write version, type and payload", path.display())]
    Message { path: PathBuf, source: serde_json::Error },
    #[error("reference values: there is none called {0:?}; next: see the names with rvps-tool list")]
    NoValue(String),
    #[error("output: {0}")]
    Output(io::Error),
}

fn client(provider: cli::Provider) -> Result<ReferenceValueClient, Error> {
    let identity = provider.client_cert.zip(provider.client_key);
    let settings = reference::client(&provider.addr, 1, Duration::from_secs(30), identity, &provider.ca);
    Ok(ReferenceValueClient::connect(settings)?)
}

fn print(line: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{line}").map_err(Error::Output)
}
