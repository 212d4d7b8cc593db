//! The Trustee's binary: key broker, attestation service and reference values in one process.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin_token;
mod config;
mod serve;
mod setup;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Hands secrets to guests that prove what they are.
#[derive(Parser)]
#[command(name = "trustee", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    Serve {
        /// The configuration file, as `trustee setup` writes it.
        #[arg(long, short)]
        config: PathBuf,
    },
    /// Make keys, certificates, an administrator's token and a configuration in a new directory.
    Setup(setup::Arguments),
    /// Issue a new administrator's token for a directory that `trustee setup` made.
    AdminToken(admin_token::Arguments),
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    let done = match Cli::parse().command {
        Command::Serve { config } => serve::run(&config).map_err(|e| e.to_string()),
        Command::Setup(arguments) => setup::run(&arguments).map_err(|e| e.to_string()),
        Command::AdminToken(arguments) => admin_token::run(&arguments).map_err(|e| e.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("trustee: {e}");
            ExitCode::FAILURE
        }
    }
}
