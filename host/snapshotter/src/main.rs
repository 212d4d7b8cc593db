//! `cocoon-snapshotter`: serves containerd and guests until it is told to end.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use snapshotter::{Config, Daemon};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = match Arguments::parse() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cocoon-snapshotter: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    config: PathBuf,
    /// In the place of the configuration's.
    containerd: Option<PathBuf>,
}

impl Arguments {
    /// Nothing if there is nothing to do.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut this = Self { config: Config::PATH.into(), containerd: None };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Short('c') | Long("config") => this.config = arguments.value()?.into(),
                Long("containerd") => this.containerd = Some(arguments.value()?.into()),
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
        Ok(Some(this))
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::read(&arguments.config)?;
    if let Some(containerd) = arguments.containerd {
        config.containerd = containerd;
    }
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

Usage: cocoon-snapshotter [--config FILE] [--containerd SOCKET]

  -c, --config FILE    default /etc/cocoon/snapshotter.toml; without that file, its defaults are used
  --containerd SOCKET  containerd's own socket, in the place of the configuration's
  -V, --version
  -h, --help";
/// Hashing what is downloaded is all that takes time.
const WORKERS: usize = 2;
