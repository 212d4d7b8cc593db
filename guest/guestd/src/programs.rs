//! The roles that this program has outside of a virtual machine of its own, by the names that upstream's programs have.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use crate::alone;

/// A role to run, and its arguments with its name in front.
pub(crate) struct Program {
    run: fn(std::vec::IntoIter<OsString>) -> ExitCode,
    arguments: Vec<OsString>,
}

impl Program {
    /// The role that this process was started as, by the name of the program or by the first argument.
    pub(crate) fn find(mut arguments: Vec<OsString>) -> Option<Self> {
        let named = |argument: Option<&OsString>| {
            let name = Path::new(argument?).file_name()?.to_str()?;
            PROGRAMS.iter().find(|(names, _)| names.contains(&name)).map(|(_, run)| *run)
        };
        let run = match named(arguments.first()) {
            Some(run) => run,
            None => {
                let run = named(arguments.get(1))?;
                arguments.remove(0);
                run
            }
        };
        Some(Self { run, arguments })
    }

    /// Runs it until it ends.
    pub(crate) fn run(self) -> ExitCode {
        (self.run)(self.arguments.into_iter())
    }
}

type Entry = (&'static [&'static str], fn(std::vec::IntoIter<OsString>) -> ExitCode);

/// `ttrpc-` and `grpc-` fix the protocol, for which the roles look at their name.
const PROGRAMS: &[Entry] = &[
    (&["attestation-agent", "ttrpc-aa", "grpc-aa"], attestation_agent::program::run),
    (&["confidential-data-hub", "ttrpc-cdh", "grpc-cdh"], data_hub::program::run),
    (&["api-server-rest"], workload_api::program::run),
    (&["kata-agent"], alone::run),
];

/// For whoever starts this program by hand.
pub(crate) const USAGE: &str = "guestd is the first process of a guest, or one role by its name: attestation-agent, \
     confidential-data-hub, api-server-rest or kata-agent; next: start a pod with \"cocoon run\", or see \"guestd ROLE --help\"";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_found_by_either_name() {
        let find = |arguments: &[&str]| Program::find(arguments.iter().map(OsString::from).collect());
        for (arguments, rest) in [
            (&["/usr/local/bin/attestation-agent", "-c", "aa.toml"][..], &["-c", "aa.toml"][..]),
            (&["guestd", "attestation-agent", "-c", "aa.toml"], &["-c", "aa.toml"]),
            (&["grpc-aa"], &[]),
            (&["guestd", "confidential-data-hub"], &[]),
            (&["./guestd", "api-server-rest"], &[]),
            // What a role is called with is not looked at.
            (&["api-server-rest", "attestation-agent"], &["attestation-agent"]),
        ] {
            let program = find(arguments).unwrap();
            assert_eq!(program.arguments[1..], rest.iter().map(OsString::from).collect::<Vec<_>>());
        }
        for arguments in [&[][..], &["guestd"], &["guestd", "-c", "attestation-agent"], &["init", "quiet"]] {
            assert!(find(arguments).is_none(), "{arguments:?}");
        }
    }
}
