//! The project's automation: `cargo xtask demo`, `release`, `test` and `bench` install what they need, build and run.

#![forbid(unsafe_code)]

mod bench;
mod build;
mod packages;
mod release;
mod test;

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["demo"] => demo(),
        ["release"] => release::make().map(|folder| println!("{}", folder.display())),
        ["test"] => test::run(false),
        ["test", "--full"] => test::run(true),
        ["bench", "boot"] => bench::boot(),
        ["bench", "trustee", ..] => bench::trustee(&words[2..]),
        ["bench", "image", ..] => bench::image(&words[2..]),
        ["bench", "secrets", ..] => bench::secrets(&words[2..]),
        ["bench", "pod", ..] => bench::pod(&words[2..]),
        ["setup"] => packages::install(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The demonstration: everything from a bare machine to a released secret.
fn demo() -> Result<(), Error> {
    packages::install()?;
    build::programs()?;
    build::guest_image()?;
    step("running the demonstration");
    run(&mut Command::new(build::program("demo")))
}

/// Why the automation stopped.
#[derive(Debug)]
struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what comes next.
fn step(what: &str) {
    println!("==> {what}");
}

/// Runs a program that must succeed, with its output shown.
fn run(command: &mut Command) -> Result<(), Error> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Error(format!("{command:?} ended with {status}"))),
        Err(error) => Err(Error(format!("{command:?} can't be started: {error}"))),
    }
}

/// Runs a program that must succeed, and returns what it printed.
fn output(command: &mut Command) -> Result<String, Error> {
    match command.stderr(Stdio::inherit()).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(Error(format!("{command:?} ended with {}", output.status))),
        Err(error) => Err(Error(format!("{command:?} can't be started: {error}"))),
    }
}

/// cargo, in the project's folder.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// The project's folder.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo          install, build, and run one confidential pod from real files to a released secret
  release       build what `cocoon node install` puts on a node: programs and guest image, in one folder
  test          install, build, and run everything that CI runs
  test --full   the same with the slow cases
  bench boot    measure boot time and memory, as ratios of a bare boot
  bench trustee [--url URL --ca FILE --resource PATH]
                measure handshakes, resources and memory of a Trustee, or of any server at a URL
  bench image [--rounds N] [--case NAME] [--layout DIR]
                measure image pulls: time, processor time and memory, as ratios of skopeo and umoci
  bench secrets [--seconds N] [--connections N] [--tee-key-algorithm NAME]
                measure secrets through the guest's services, as a ratio of what their Trustee serves
  bench pod [--rounds N]
                measure pods under containerd: start, containers, commands, memory, as ratios of bare boots and runc
  setup         install the distribution packages that the others need";
