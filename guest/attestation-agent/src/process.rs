//! What every role owes as a process of its own: configuration file, kernel parameters, log, signals, exit status.

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Runs a role until it ends. A failure is told on stderr.
pub fn run<E: fmt::Display>(role: &str, main: impl Future<Output = Result<(), E>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(role, &error),
    };
    let outcome = runtime.block_on(main).map_err(|error| failed(role, &error));
    // What still runs, such as a handshake that nobody waits for, does not keep the process.
    runtime.shutdown_background();
    outcome.err().unwrap_or(ExitCode::SUCCESS)
}

/// Runs `main` until it fails, or until SIGINT, SIGTERM or SIGHUP, which is a success.
///
/// # Errors
/// That of `main`, or [`Error::Signals`].
pub async fn until_told<E: From<Error>>(main: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tokio::select! {
        outcome = main => outcome,
        outcome = told_to_end() => outcome.map_err(|error| Error::Signals(error.to_string()).into()),
    }
}

/// Says on stderr why `role` failed.
pub fn failed(role: &str, error: &dyn fmt::Display) -> ExitCode {
    eprintln!("{role}: {error}");
    ExitCode::FAILURE
}

/// Starts the log on stderr: what the environment's `RUST_LOG` says, else `level`, else `info`.
///
/// # Errors
/// [`Error::Level`] if `level` is not one (`error`, `warn`, `info`, `debug`, `trace`, `off`), or `RUST_LOG` neither one
/// nor a list of `target=level`.
pub fn log(level: Option<&str>) -> Result<(), Error> {
    let filter = filter(std::env::var("RUST_LOG").ok().as_deref(), level)?;
    let output = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(io::stderr);
    // A second role in one process keeps the first one's log.
    let _ = tracing_subscriber::registry().with(output).with(filter).try_init();
    Ok(())
}

/// A configuration file as it was read: TOML, or JSON if its name ends in `.json`.
pub struct ConfigFile {
    path: PathBuf,
    text: String,
}

impl ConfigFile {
    /// Reads at most 1 MiB.
    ///
    /// # Errors
    /// [`Error::File`], or [`Error::Extension`] for a name that ends in neither `.toml` nor `.json`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |cause: &dyn fmt::Display| Error::File { path: path.to_owned(), cause: cause.to_string() };
        if !matches!(path.extension().and_then(|extension| extension.to_str()), Some("toml" | "json")) {
            return Err(Error::Extension(path.to_owned()));
        }
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|e| failed(&e))?;
        file.take(MAX_CONFIG + 1).read_to_string(&mut text).map_err(|e| failed(&e))?;
        if text.len() as u64 > MAX_CONFIG {
            return Err(failed(&format_args!("longer than {MAX_CONFIG} bytes")));
        }
        Ok(Self { path: path.to_owned(), text })
    }

    /// The document in it.
    ///
    /// # Errors
    /// [`Error::File`] with what is wrong and where.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let is_json = self.path.extension().is_some_and(|extension| extension == "json");
        let parsed = if is_json {
            serde_json::from_str(&self.text).map_err(|e| e.to_string())
        } else {
            toml::from_str(&self.text).map_err(|e| e.message().to_owned())
        };
        parsed.map_err(|cause| Error::File { path: self.path.clone(), cause })
    }
}

/// The value of `name=value` on the kernel's command line `command_line`.
pub fn kernel_parameter<'a>(command_line: &'a str, name: &str) -> Option<&'a str> {
    let value = |word: &'a str| word.strip_prefix(name)?.strip_prefix('=');
    command_line.split_ascii_whitespace().find_map(value)
}

/// The kernel's command line, empty where it can't be read.
pub fn command_line() -> String {
    std::fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// Why a role's process can't start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A file that can't be read or is not what it should be.
    #[error("{}: {cause}; next: correct the file", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// A file of an unknown format.
    #[error("{}: the format is told by the name's end; next: name it .toml or .json", .0.display())]
    Extension(PathBuf),
    /// The system gives no signals.
    #[error("signals can't be received: {0}; next: check the limits of this process")]
    Signals(String),
    /// Not a level of logging.
    #[error("log level {0:?}; next: use error, warn, info, debug or trace")]
    Level(String),
}

fn filter(environment: Option<&str>, level: Option<&str>) -> Result<Targets, Error> {
    let level = level.unwrap_or("info");
    // A word that is no level would be taken for a target, and everything else be silent.
    let filter = Targets::new().with_default(level.parse::<LevelFilter>().map_err(|_| Error::Level(level.to_owned()))?);
    match environment {
        Some(text) if !text.is_empty() => text.parse().map_err(|_| Error::Level(text.to_owned())),
        _ => Ok(filter),
    }
}

/// Waits for a signal that asks for the end.
async fn told_to_end() -> io::Result<()> {
    let (mut interrupt, mut terminate, mut hang_up) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    tracing::info!("told to end");
    Ok(())
}

/// One guest processor is the rule; a second thread keeps requests going beside a blocking one.
const WORKERS: usize = 2;
const MAX_CONFIG: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn the_extension_tells_the_format() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        for (name, text) in [("a.toml", "[log]\nlevel = \"info\"\n"), ("a.json", "{\"log\":{\"level\":\"info\"}}")] {
            let document: Value = ConfigFile::read(&write(name, text)).unwrap().parse().unwrap();
            assert_eq!(document, json!({ "log": { "level": "info" } }));
        }
        let error = ConfigFile::read(&write("b.json", "[log]")).unwrap().parse::<Value>().unwrap_err().to_string();
        assert!(error.contains("b.json: ") && error.ends_with("; next: correct the file"), "{error}");
        assert!(matches!(ConfigFile::read(&write("a.yaml", "")), Err(Error::Extension(_))));
        assert!(matches!(ConfigFile::read(&folder.path().join("none.toml")), Err(Error::File { .. })));
        let long = write("long.toml", &"#".repeat((1 << 20) + 1));
        assert!(matches!(ConfigFile::read(&long), Err(Error::File { .. })));
    }

    #[test]
    fn the_environment_s_level_comes_before_the_configuration_s() {
        use tracing::Level;
        for (environment, level, expected) in [
            (None, None, Level::INFO),
            (Some(""), Some("warn"), Level::WARN),
            (Some("debug"), Some("warn"), Level::DEBUG),
            (Some("warn,attestation_agent=trace"), None, Level::TRACE),
        ] {
            let filter = filter(environment, level).unwrap();
            assert!(filter.would_enable("attestation_agent::agent", &expected), "{environment:?} {level:?}");
            let more = (expected != Level::TRACE).then_some(Level::TRACE);
            assert!(more.is_none_or(|more| !filter.would_enable("attestation_agent::agent", &more)));
        }
        for (environment, level) in [(None, Some("verbose")), (Some("agent=verbose"), None)] {
            let error = filter(environment, level).err().unwrap().to_string();
            assert!(error.contains("verbose") && error.contains("; next: "), "{error}");
        }
    }

    #[test]
    fn a_kernel_parameter_is_a_whole_word() {
        let line = "console=ttyS0 xagent.a=0 agent.a=1=2 agent.ab=3\n";
        assert_eq!(kernel_parameter(line, "agent.a"), Some("1=2"));
        assert_eq!(kernel_parameter(line, "agent"), None);
    }
}
