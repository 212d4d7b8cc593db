//! `cocoon guest-image`: builds what guests boot, byte for byte the same from the same inputs.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use guest_image::{BuildOptions, KernelSource};

use crate::Outcome;

#[derive(Subcommand)]
pub enum Command {
    /// Build kernel and initramfs, and print their digests.
    Build(Build),
}

#[derive(Args)]
pub struct Build {
    /// The static guestd binary.
    #[arg(long, value_name = "FILE")]
    guestd: PathBuf,
    /// Folder for the result.
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Folder in which the downloaded kernel is kept.
    #[arg(long, value_name = "DIR", default_value = "/var/cache/cocoon")]
    cache: PathBuf,
    /// A kernel image (bzImage), instead of Debian's cloud kernel.
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// The modules of that kernel: its /lib/modules/VERSION.
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// A program of this machine for the guest, with its libraries: /usr/sbin/mke2fs makes the file systems of new volumes.
    #[arg(long, value_name = "FILE")]
    program: Vec<PathBuf>,
}

/// Runs one of the commands.
pub fn guest_image(command: Command) -> Outcome {
    let Command::Build(arguments) = command;
    let kernel = match (arguments.kernel, arguments.modules) {
        (Some(kernel), Some(modules)) => KernelSource::Files { kernel, modules },
        _ => KernelSource::Debian,
    };
    let options = BuildOptions { guestd: arguments.guestd, kernel, cache: arguments.cache, output: arguments.output };
    let image = guest_image::build_with_programs(&options, &arguments.program)?;
    println!("{}", serde_json::to_string_pretty(&image.manifest)?);
    Ok(ExitCode::SUCCESS)
}
