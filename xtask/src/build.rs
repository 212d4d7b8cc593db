//! Builds the programs and the guest image.

use std::path::{Path, PathBuf};
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
    guest_image_by(&program("cocoon")).map(drop)
}

/// The same with this `cocoon`; gives the image's folder.
pub fn guest_image_by(cocoon: &Path) -> Result<PathBuf, Error> {
    step("building the guest's program");
    let mut build = cargo(&["build", "--profile", "guest", "--package", "guestd", "--config"]);
    run(build.arg(format!("{FLAGS}=[{STATICALLY}, {SMALL}, {}]", remapped_paths())))?;
    step("building the guest image");
    let image = state().join("guest-image");
    let mut command = Command::new(cocoon);
    command.args(["guest-image", "build", "--guestd"]).arg(guestd());
    command.arg("--cache").arg(state().join("cache")).arg("--output").arg(&image);
    command.stdout(std::process::Stdio::null());
    run(&mut command)?;
    Ok(image)
}

/// Builds [`NODE_PROGRAMS`] in their own profile, linked statically so that they run on any distribution.
pub fn node_programs() -> Result<(), Error> {
    step("building the node's programs");
    let mut build = cargo(&["build", "--profile", "node"]);
    for package in ["cli", "shim", "snapshotter"] {
        build.args(["--package", package]);
    }
    for program in NODE_PROGRAMS {
        build.args(["--bin", program]);
    }
    run(build.arg("--config").arg(format!("{FLAGS}=[{STATICALLY}, {}]", remapped_paths())))
}

/// The path of one of them.
pub fn node_program(name: &str) -> PathBuf {
    profile("node").join(name)
}

/// The path of a program that has been built.
pub fn program(name: &str) -> PathBuf {
    // This program lies beside the others.
    let own = std::env::current_exe().unwrap_or_default();
    own.with_file_name(name)
}

/// Compiler flags that keep this machine's folders out of programs, so that everybody's are the same, byte for byte.
fn remapped_paths() -> String {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let folders = [(root().canonicalize().unwrap_or_else(|_| root()), "/cocoon"), (cargo_home, "/cargo")];
    let flag = |(folder, name): (PathBuf, &str)| format!("'--remap-path-prefix={}={name}'", folder.display());
    folders.map(flag).join(", ")
}

/// guestd.
pub fn guestd() -> PathBuf {
    profile("guest").join("guestd")
}

/// The folder of a profile, beside this program's.
fn profile(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    own.ancestors().nth(2).map_or_else(|| root().join("target"), PathBuf::from).join(name)
}

/// Where the guest image, what it is made of, and a release are kept.
pub fn state() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    // target/<triple>/release/xtask
    own.ancestors().nth(3).map_or_else(|| root().join("target"), PathBuf::from).join("cocoon")
}

/// What a node has of ours.
pub const NODE_PROGRAMS: [&str; 3] = ["cocoon", "containerd-shim-cocoon-v2", "cocoon-snapshotter"];
/// What is linked statically in cargo's words, beside guestd and the node's programs.
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
/// The compiler's flags in cargo's configuration.
const FLAGS: &str = "target.x86_64-unknown-linux-gnu.rustflags";
const STATICALLY: &str = "'-Ctarget-feature=+crt-static'";
/// Flags for less to unpack at each boot: nothing unwinds, equal functions are one, and relocations are a bitmap.
/// The linker runs in the project's folder.
const SMALL: &str = "'-Cforce-unwind-tables=no', '-Clink-arg=-Wl,-T,guest/guestd/no-unwinding.ld', \
    '-Clink-arg=-Wl,--no-eh-frame-hdr', '-Clink-arg=-Wl,--icf=all', '-Clink-arg=-Wl,--pack-dyn-relocs=relr'";
