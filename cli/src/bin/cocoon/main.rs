//! `cocoon`: runs confidential pods, and makes what they need: initdata, encrypted images, the guest image.

#![forbid(unsafe_code)]

mod encrypt;
mod exec;
mod guest_image;
mod initdata;
mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Runs anybody's container on anybody's machine without trusting the machine.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a container in a confidential virtual machine of its own, until it ends or Ctrl-C.
    Run(run::Arguments),
    /// Run a command in the container of a running pod.
    Exec(exec::Arguments),
    /// Work on container images.
    #[command(subcommand)]
    Image(Image),
    /// Write and read initdata, the owner's configuration and policy for a guest.
    #[command(subcommand)]
    Initdata(initdata::Command),
    /// Build the kernel and initramfs that guests boot.
    #[command(subcommand)]
    GuestImage(guest_image::Command),
}

#[derive(Subcommand)]
enum Image {
    /// Encrypt the layers of an image in an OCI layout.
    Encrypt(encrypt::Arguments),
}

fn main() -> ExitCode {
    // Standard output belongs to the container.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")))
        .init();
    match execute(Arguments::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("cocoon: {error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Run(arguments) => run::run(arguments).await,
            Command::Exec(arguments) => exec::exec(arguments).await,
            Command::Image(Image::Encrypt(arguments)) => encrypt::encrypt(arguments),
            Command::Initdata(command) => initdata::initdata(command),
            Command::GuestImage(command) => guest_image::guest_image(command),
        }
    });
    // A read of standard input can't be taken back, and is not to be waited for.
    runtime.shutdown_background();
    outcome
}

/// What ends a command: the text is one paragraph with stage, cause and next step.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;
