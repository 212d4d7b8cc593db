//! The Trustee's binary: key broker, attestation service and reference values, in one process or one role a process.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod admin_token;
mod allocator;
mod attestation_role;
mod cli;
mod compose;
mod config;
mod maintenance;
mod process;
mod provider_role;
mod reference;
mod routed;
mod serve;
mod setup;
mod storage;
mod telemetry;

use std::error::Error;
use std::io::{self, Write as _};
use std::process::ExitCode;

use cli::{Cli, Command};

fn main() -> ExitCode {
    allocator::share();
    let command = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli.command,
        // Prints help and versions too.
        Err(e) => e.exit(),
    };
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("trustee: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Serve { config } => serve::run(&config)?,
        Command::Kbs(arguments) => serve::run_kbs(arguments)?,
        Command::GrpcAs(arguments) => attestation_role::run_grpc(arguments)?,
        Command::RestfulAs(arguments) => attestation_role::run_rest(arguments)?,
        Command::Rvps(arguments) => provider_role::run(arguments)?,
        Command::RvpsTool(arguments) => provider_role::run_tool(arguments)?,
        Command::Setup(arguments) => setup::run(&arguments)?,
        Command::AdminToken(arguments) => admin_token::run(&arguments)?,
        Command::Backup(arguments) => maintenance::backup(arguments)?,
        Command::Restore(arguments) => maintenance::restore(arguments)?,
        Command::Migrate(arguments) => maintenance::migrate(arguments)?,
        Command::RotateMasterKey(arguments) => maintenance::rotate_master_key(arguments)?,
        Command::RotateSigningKey(arguments) => maintenance::rotate_signing_key(arguments)?,
        Command::ConfigReference => print(&config::reference::markdown())?,
        Command::Openapi => print(&format!("{:#}\n", key_broker::openapi()))?,
    }
    Ok(())
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}
