//! guestd, the guest's only program: PID 1 of the virtual machine, with every role as a task; or one role by its name.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod alone;
mod attestation;
mod binding;
mod disks;
mod images;
mod init;
mod kernel_modules;
mod programs;
mod resources;
mod roles;
mod secrets;

use std::path::Path;
use std::process::ExitCode;

use evidence::Attester;
use kernel_modules::Group;
use programs::Program;
use wire::milestone::Milestone;

fn main() -> ExitCode {
    // Processes of containers are made by this program again, before it has any thread.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == agent::HELPER_ARG) {
        return agent::run_helper().into();
    }
    // The kernel hands words of its command line to the first process: the host would choose its role.
    if std::process::id() != 1 {
        return match Program::find(std::env::args_os().collect()) {
            Some(program) => program.run(),
            None => {
                eprintln!("{}", programs::USAGE);
                ExitCode::FAILURE
            }
        };
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
    init::allow_open_files()?;
    kernel_modules::load(Group::FirstAnswer)?;
    if kernel_modules::in_a_tee() {
        kernel_modules::load(Group::Tee)?;
        init::mount_config_fs()?;
    }
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false).without_time().init();
    let attester = Attester::detect(Path::new("/"))?;
    // Before anything of it is used: is this the initdata that the owner meant?
    let initdata = binding::initdata(&attester)?;
    roles::serve(attester, initdata)
}
