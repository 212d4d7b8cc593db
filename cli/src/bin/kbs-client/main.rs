//! `kbs-client`: administers a Trustee, and asks it for secrets as a guest would. Flags as upstream's tool has them.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod audit;
mod backup;
mod config;
mod explain;
mod guest;
mod handshake;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use cli::trustee::Trustee;

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
    /// Print one JSON document instead of lines for people.
    #[arg(long, global = true)]
    json: bool,
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
    /// Check audit logs, or fetch the Trustee's.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Fetch a backup of the Trustee's store, encrypted under its master key; trustee restore takes it.
    Backup(backup::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error")))
        .init();
    // Fails only if there is a provider already, and then that one will do.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();

    let arguments = Arguments::parse();
    let outcome = run(arguments).await;
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kbs-client: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Outcome {
    let Arguments { url, cert_file, json, command } = arguments;
    let cert_file = cert_file.as_deref();
    let trustee = |token: Option<PathBuf>| Trustee::new(&url, cert_file, token.as_deref());
    match command {
        Command::Attest(arguments) => guest::attest(&url, cert_file, arguments, json).await,
        Command::GetResource(arguments) => guest::get_resource(&url, cert_file, arguments, json).await,
        Command::Config(config::Arguments { admin_token_file, if_match, command }) => {
            config::run(&trustee(admin_token_file)?, command, if_match.as_deref()).await?.print(json);
            Ok(())
        }
        Command::Explain(explain::Arguments { reference, admin_token_file }) => {
            explain::run(&trustee(admin_token_file)?, &reference, json).await
        }
        Command::Audit(audit::Command::Verify { files }) => audit::verify(&files, json),
        Command::Audit(audit::Command::Fetch { from, limit, admin_token_file }) => {
            audit::fetch(&trustee(admin_token_file)?, from, limit).await
        }
        Command::Backup(backup::Arguments { output, admin_token_file }) => {
            backup::run(&trustee(admin_token_file)?, &output, json).await
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
