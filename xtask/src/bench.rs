//! Benchmarks of whole programs.

use std::process::Command;

use crate::{Error, build, cargo, output, packages, release, run, step};

/// Boot time and memory, in one run with a bare boot of the same kernel.
pub fn boot() -> Result<(), Error> {
    packages::install()?;
    build::programs()?;
    build::bare_init()?;
    build::guest_image()?;
    step("measuring");
    run(&mut Command::new(build::program("bench-boot")))
}

/// What a key broker serves: one of ours, or any that `arguments` name by its URL.
pub fn trustee(arguments: &[&str]) -> Result<(), Error> {
    packages::install()?;
    build::programs()?;
    step("measuring");
    run(Command::new(build::program("bench-trustee")).args(arguments))
}

/// How images are pulled, against `skopeo` and `umoci` in the same run.
pub fn image(arguments: &[&str]) -> Result<(), Error> {
    packages::install()?;
    build::programs()?;
    step("measuring");
    run(Command::new(build::program("bench-image")).args(arguments))
}

/// How fast containers get secrets, against what a key broker alone serves in the same run.
pub fn secrets(arguments: &[&str]) -> Result<(), Error> {
    packages::install()?;
    build::programs()?;
    build::guest_image()?;
    step("measuring");
    run(Command::new(build::program("bench-secrets")).arg("--guestd").arg(build::guestd()).args(arguments))
}

/// What confidential pods cost under containerd, against bare boots and ordinary pods, and what their policy costs them.
pub fn pod(arguments: &[&str]) -> Result<(), Error> {
    packages::install()?;
    build::programs()?;
    build::bare_init()?;
    // What a node has, and not what tests are faster built with.
    let release = release::make()?;
    step("measuring the policy");
    let policy = output(cargo(&["bench", "--bench", "policy"]).args(build::STATIC))?;
    step("measuring pods");
    let mut bench = Command::new(build::program("bench-pod"));
    bench.arg("--programs").arg(release.join("bin")).arg("--policy").arg(policy.trim());
    run(bench.args(arguments))
}
