//! Builds the programs and the guest image.

use std::path::PathBuf;
use std::process::Command;

use crate::{Error, cargo, root, run, step};

/// Builds every program of the project.
pub fn programs() -> Result<(), Error> {
    step("building the programs");
    run(&mut cargo(&["build", "--release", "--workspace", "--bins"]))
}

/// Builds the guest image with the guestd that was built last.
pub fn guest_image() -> Result<(), Error> {
    step("building the guest image");
    let mut command = Command::new(program("cocoon"));
    command.args(["guest-image", "build", "--guestd"]).arg(program("guestd"));
    command.arg("--cache").arg(state().join("cache")).arg("--output").arg(state().join("guest-image"));
    command.stdout(std::process::Stdio::null());
    run(&mut command)
}

/// The path of a program that has been built.
pub fn program(name: &str) -> PathBuf {
    // This program lies beside the others.
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name(name)
}

/// Where the guest image and what it is made of are kept.
fn state() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // target/<triple>/release/xtask
    own.ancestors().nth(3).map_or_else(|| root().join("target"), PathBuf::from).join("cocoon")
}
