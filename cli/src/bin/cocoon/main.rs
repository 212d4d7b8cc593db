//! `cocoon`: runs confidential pods, and makes what they need: initdata, encrypted and signed images, sealed secrets, the
//! guest image. And it installs all that on a node and looks after it.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod direct_volume;
mod doctor;
mod exec;
mod guest_image;
mod image;
mod initdata;
mod key_provider;
mod logs;
mod metrics;
mod monitor;
mod node;
mod owner;
mod pods;
mod ps;
mod run;
mod secret;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Runs anybody's container on anybody's machine without trusting the machine.
#[derive(Parser)]
#[command(name = "cocoon", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a container in a confidential virtual machine of its own, until it ends or Ctrl-C.
    Run(run::Arguments),
    /// Run a command in a container of a running pod.
    Exec(exec::Arguments),
    /// Encrypt, sign and inspect container images.
    #[command(subcommand)]
    Image(image::Command),
    /// Wrap the layer keys of skopeo and other encrypters of images, and register keys with Trustee.
    KeyProvider(key_provider::Arguments),
    /// Seal secrets for guests.
    #[command(subcommand)]
    Secret(secret::Command),
    /// Write and read initdata, the owner's configuration and policy for a guest.
    #[command(subcommand)]
    Initdata(initdata::Command),
    /// Build the kernel and initramfs that guests boot.
    #[command(subcommand)]
    GuestImage(guest_image::Command),
    /// Install on this node what pods need, and find out what is wrong with it.
    #[command(subcommand)]
    Node(node::Command),
    /// Tell pods of this node which devices are behind their volumes, as storage drivers do.
    #[command(subcommand)]
    DirectVolume(direct_volume::Command),
    /// List the pods on this node.
    Ps(ps::Arguments),
    /// Print what a container of a pod said last.
    Logs(logs::Logs),
    /// Print what a pod's guest, its kernel and its services, said last.
    Console(logs::Console),
    /// Print or serve what pods cost and how long their answers take, in Prometheus' text form.
    Metrics(metrics::Arguments),
    /// Find out why pods don't start or don't run: looks at the node, at its pods, and at the last failures.
    Doctor(doctor::Arguments),
}

fn main() -> ExitCode {
    // Standard output belongs to the container.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn")))
        .init();
    match execute(Arguments::parse_from(words()).command) {
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
            Command::Image(command) => image::image(command),
            Command::KeyProvider(arguments) => key_provider::key_provider(arguments).await,
            Command::Secret(command) => secret::secret(command),
            Command::Initdata(command) => initdata::initdata(command),
            Command::GuestImage(command) => guest_image::guest_image(command),
            Command::Node(command) => node::node(command).await,
            Command::DirectVolume(command) => direct_volume::direct_volume(command).await,
            Command::Ps(arguments) => ps::ps(arguments),
            Command::Logs(arguments) => logs::logs(arguments).await,
            Command::Console(arguments) => logs::console(arguments).await,
            Command::Metrics(arguments) => metrics::metrics(arguments).await,
            Command::Doctor(arguments) => doctor::doctor(arguments).await,
        }
    });
    // A read of standard input can't be taken back, and is not to be waited for.
    runtime.shutdown_background();
    outcome
}

/// What was typed. Under the names of upstream's tools the program is the command that does the same.
fn words() -> Vec<OsString> {
    let mut words: Vec<_> = std::env::args_os().collect();
    let name = words.first().and_then(|program| Path::new(program).file_name()?.to_str());
    let command = UPSTREAM.iter().find(|(tool, _)| Some(*tool) == name).map(|(_, command)| *command);
    if let Some(command) = command {
        words.insert(1, command.into());
    }
    words
}

/// Tools of upstream, and the commands that take the same options.
const UPSTREAM: [(&str, &str); 2] = [("coco_keyprovider", "key-provider"), ("secret", "secret")];

/// What ends a command: the text is one paragraph with stage, cause and next step.
type Outcome = Result<ExitCode, Box<dyn std::error::Error>>;
