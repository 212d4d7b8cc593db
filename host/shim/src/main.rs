//! containerd's program for pods in confidential virtual machines: `start`, `delete`, `-info`, `-v`, and the server itself.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use shim::{Action, Arguments, Error};

fn main() -> ExitCode {
    match Arguments::parse(std::env::args_os().skip(1)).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows what `start` and `delete` print there.
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Error> {
    match arguments.action {
        Action::Start => shim::start(&arguments),
        Action::Delete => shim::delete(&arguments),
        Action::CleanUp => shim::clean_up(&arguments),
        Action::Serve => shim::serve(&arguments),
        Action::Info => shim::info(),
        Action::Version => {
            println!("{}:\n  Version: {}", shim::PROGRAM, env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Action::Help => {
            println!("{}", shim::USAGE);
            Ok(())
        }
    }
}
