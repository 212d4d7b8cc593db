//! Builds the programs and the guest image.

use std::path::PathBuf;
use std::process::Command;

use crate::{Error, cargo, root, run, step};

/// Builds every program of the project but the guest's.
pub fn programs() -> Result<(), Error> {
    step("building the programs");
    run(&mut cargo(&[
        "build",
        "--release",
        "--workspace",
        "--exclude",
        "guestd",
        "--exclude",
        "volume-guest",
        "--bins",
    ]))
}

/// Builds the init of the boot benchmark's bare machine, which has no libraries to link to.
pub fn bare_init() -> Result<(), Error> {
    let of_init = ["rustc", "--release", "--package", "tests", "--bin", "bare-init"];
    run(cargo(&of_init).args(["--", "-C", "target-feature=+crt-static"]))
}

/// Builds what runs where no libraries are: the init of the guest in which volumes are tested, and [`STATIC`]'s tests.
pub fn volume_guest() -> Result<(), Error> {
    step("building the volumes' test guest");
    // The tests with it, so that what both are made of is compiled once.
    run(cargo(&["build", "--release", "--bins", "--tests"]).args(STATIC))
}

/// Builds guestd in its own profile and linked statically, since its initramfs holds no libraries, and the guest image with it.
pub fn guest_image() -> Result<(), Error> {
    step("building the guest's program");
    let mut build = cargo(&["build", "--profile", "guest", "--package", "guestd", "--config"]);
    run(build.arg(format!(
        "target.x86_64-unknown-linux-gnu.rustflags=['-Ctarget-feature=+crt-static', {SMALL}, {}]",
        remapped_paths()
    )))?;
    step("building the guest image");
    let mut command = Command::new(program("cocoon"));
    command.args(["guest-image", "build", "--guestd"]).arg(guestd());
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

/// Compiler flags that keep this machine's folders out of guestd, so that everybody's is the same, byte for byte.
fn remapped_paths() -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let folders = [(root().canonicalize().unwrap_or_else(|_| root()), "/cocoon"), (cargo_home, "/cargo")];
    let flag = |(folder, name): (PathBuf, &str)| format!("'--remap-path-prefix={}={name}'", folder.display());
    folders.map(flag).join(", ")
}

/// guestd, in the folder of its profile beside the others'.
pub fn guestd() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).map_or_else(|| root().join("target"), PathBuf::from).join("guest/guestd")
}

/// Where the guest image and what it is made of are kept.
fn state() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // target/<triple>/release/xtask
    own.ancestors().nth(3).map_or_else(|| root().join("target"), PathBuf::from).join("cocoon")
}

/// What is linked statically in cargo's words, beside guestd.
pub const STATIC: [&str; 8] = [
    "--config",
    "target.x86_64-unknown-linux-gnu.rustflags=['-Ctarget-feature=+crt-static']",
    "--package",
    "agent",
    "--package",
    "guest-image",
    "--package",
    "volume-guest",
];
/// Flags for less to unpack at each boot: nothing unwinds, equal functions are one, and relocations are a bitmap.
/// The linker runs in the project's folder.
const SMALL: &str = "'-Cforce-unwind-tables=no', '-Clink-arg=-Wl,-T,guest/guestd/no-unwinding.ld', \
    '-Clink-arg=-Wl,--no-eh-frame-hdr', '-Clink-arg=-Wl,--icf=all', '-Clink-arg=-Wl,--pack-dyn-relocs=relr'";
