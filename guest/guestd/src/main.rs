//! guestd, the guest's only program: PID 1 of the virtual machine, with every role as a task.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod binding;
mod images;
mod init;
mod kernel_modules;
mod resources;
mod roles;

use std::process::ExitCode;

use kernel_modules::Group;
use wire::milestone::Milestone;

fn main() -> ExitCode {
    // A container is made by this program again, before it has any thread.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == agent::HELPER_ARG) {
        return agent::run_helper(arguments).into();
    }
    if std::process::id() != 1 {
        eprintln!("guestd is the first process of a guest; next: start a pod with \"cocoon run\"");
        return ExitCode::FAILURE;
    }

    println!("{}", Milestone::Init);
    let reason = match run() {
        Ok(()) => "guestd: it ended".to_owned(),
        Err(error) => error.to_string(),
    };
    println!("{}", Milestone::Refused(reason));
    init::power_off()
}

/// Brings the guest up and serves until it fails.
fn run() -> Result<(), roles::Error> {
    init::mount_file_systems()?;
    kernel_modules::load(Group::FirstAnswer)?;
    if kernel_modules::in_a_tee() {
        kernel_modules::load(Group::Tee)?;
    }
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false).without_time().init();
    // Before anything of it is used: is this the initdata that the owner meant?
    let initdata = binding::initdata()?;
    roles::serve(initdata)
}
