//! `kbs-client`: administers a Trustee, and asks it for secrets as a guest would. Flags as upstream's tool has them.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod audit;
mod config;
mod explain;
mod guest;
mod trustee;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use trustee::Trustee;

/// Administers a Trustee, and asks it for secrets as a guest would.
#[derive(Parser)]
#[command(name = "kbs-client", version)]
struct Arguments {
    /// The Trustee's URL.
    #[arg(long, default_value = "http://127.0.0.1:8080", global = true)]
    url: String,
    /// PEM file with the certificates to trust instead of the system's.
    #[arg(long, global = true)]
    cert_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Attest this machine and print the attestation token.
    Attest(guest::Attest),
    /// Attest this machine, fetch a resource and print it in base64.
    GetResource(guest::GetResource),
    /// Administer the Trustee.
    Config(config::Arguments),
    /// Say why a guest was refused.
    Explain(explain::Arguments),
    /// Work on an audit log.
    #[command(subcommand)]
    Audit(audit::Command),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error")))
        .init();
    // Fails only if there is a provider already, and then that one will do.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let Arguments { url, cert_file, command } = Arguments::parse();
    let cert_file = cert_file.as_deref();
    let outcome = match command {
        Command::Attest(arguments) => guest::attest(&url, cert_file, arguments).await,
        Command::GetResource(arguments) => guest::get_resource(&url, cert_file, arguments).await,
        Command::Config(arguments) => match Trustee::new(&url, cert_file, arguments.admin_token_file.as_deref()) {
            Ok(trustee) => config::run(&trustee, arguments.command).await,
            Err(e) => Err(e.into()),
        },
        Command::Explain(arguments) => match Trustee::new(&url, cert_file, arguments.admin_token_file.as_deref()) {
            Ok(trustee) => explain::run(&trustee, &arguments.reference).await,
            Err(e) => Err(e.into()),
        },
        Command::Audit(audit::Command::Verify { file }) => audit::verify(&file),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kbs-client: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a command ends with; an error is one paragraph with stage, cause and next step.
type Outcome = Result<(), Box<dyn std::error::Error>>;

/// A file that an option names.
fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path)
        .map_err(|e| format!("{} can't be read: {e}; next: check the path and its permissions", path.display()))
}
