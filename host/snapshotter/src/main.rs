//! `cocoon-snapshotter`: serves containerd and guests until it is told to end.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use snapshotter::{Config, Daemon};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let config = match config_path() {
        Ok(Some(path)) => path,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cocoon-snapshotter: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the configuration is; nothing if there is nothing to do.
fn config_path() -> Result<Option<PathBuf>, lexopt::Error> {
    use lexopt::prelude::*;
    let mut path = PathBuf::from(Config::PATH);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Short('c') | Long("config") => path = arguments.value()?.into(),
            Short('h') | Long("help") => {
                println!("{USAGE}");
                return Ok(None);
            }
            Short('V') | Long("version") => {
                println!("cocoon-snapshotter {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some(path))
}

fn run(config: PathBuf) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::read(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()?;
    runtime.block_on(async {
        let daemon = Daemon::open(config)?;
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tracing::info!("ready");
        tokio::select! {
            error = daemon.serve() => Err(error.into()),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

const USAGE: &str = "\
Answers containerd's pulls for images that guests unpack, and keeps their blobs for all guests of this node.

Usage: cocoon-snapshotter [--config FILE]

  -c, --config FILE  default /etc/cocoon/snapshotter.toml; without that file, its defaults are used
  -V, --version
  -h, --help";
/// Hashing what is downloaded is all that takes time.
const WORKERS: usize = 2;
