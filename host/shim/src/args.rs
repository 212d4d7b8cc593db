//! The command line, as containerd writes it: Go's flags with one dash or two, then an action.

use std::ffi::OsString;

use crate::Error;

/// What the shim is called with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments {
    /// What it is to do.
    pub action: Action,
    /// containerd's address; part of the name of the shim's socket.
    pub address: String,
    /// The bundle's folder, where it is not the working directory.
    pub bundle: String,
    /// The container.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Whether to log more.
    pub debug: bool,
}

/// What the shim is to do.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Action {
    /// Serve a pod on the socket that standard input is.
    #[default]
    Serve,
    /// Start a server, or name the pod's.
    Start,
    /// Clean up after a server that is gone.
    Delete,
    /// End a machine elsewhere that a server has left.
    CleanUp,
    /// Say what this runtime can.
    Info,
    /// Say the version.
    Version,
    /// Say how it is used.
    Help,
}

impl Arguments {
    /// Reads a command line without the program's name.
    ///
    /// # Errors
    /// [`Error::Arguments`] for a flag or an action that containerd doesn't use.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Error> {
        let mut parsed = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let argument = text(argument)?;
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                parsed.action = match argument.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    "clean-up" => Action::CleanUp,
                    other => return Err(Error::Arguments(format!("{other:?} is no action"))),
                };
                continue;
            };
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => parsed.debug = given.is_none_or(|value| value == "true"),
                "v" | "version" => parsed.action = Action::Version,
                "info" => parsed.action = Action::Info,
                "h" | "help" => parsed.action = Action::Help,
                "address" | "bundle" | "id" | "namespace" | "publish-binary" | "socket" => {
                    let missing = || Error::Arguments(format!("-{name} has no value"));
                    let value = match given {
                        Some(value) => value,
                        None => text(arguments.next().ok_or_else(missing)?)?,
                    };
                    match name {
                        "address" => parsed.address = value,
                        "bundle" => parsed.bundle = value,
                        "id" => parsed.id = value,
                        "namespace" => parsed.namespace = value,
                        // Events go through ttrpc, and the socket is named by the shim.
                        _ => {}
                    }
                }
                other => return Err(Error::Arguments(format!("-{other} is no flag"))),
            }
        }
        Ok(parsed)
    }
}

fn text(argument: OsString) -> Result<String, Error> {
    argument.into_string().map_err(|argument| Error::Arguments(format!("{argument:?} is no text")))
}

/// How the program is used.
pub const USAGE: &str = "\
Usage: containerd-shim-cocoon-v2 [FLAGS] [start|delete|clean-up]

containerd starts this program for each pod of the runtime io.containerd.cocoon.v2. With clean-up it ends what the pod -id
has left, and waits up to an hour for the adaptor of a machine elsewhere.

Flags:
  -address ADDRESS       containerd's address
  -bundle DIRECTORY      the bundle, if it is not the working directory
  -debug                 log more
  -id ID                 the container
  -info                  print what the runtime can, as protobuf
  -namespace NAMESPACE   containerd's namespace
  -publish-binary FILE   ignored: events go through ttrpc
  -v, -version           print the version";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, Error> {
        Arguments::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerd_s_command_lines_are_understood() {
        let expected = Arguments {
            action: Action::Start,
            address: "/run/containerd/containerd.sock".into(),
            id: "c1".into(),
            namespace: "k8s.io".into(),
            debug: true,
            ..Arguments::default()
        };
        for line in [
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /bin/containerd -id c1 -debug start",
            "--namespace=k8s.io --address=/run/containerd/containerd.sock --id=c1 --debug=true start",
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
        assert_eq!(parse("-id c -bundle /b delete").unwrap().action, Action::Delete);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-id c").unwrap().action, Action::Serve);
    }

    #[test]
    fn what_is_unknown_is_refused() {
        for (line, reason) in [("stop", "no action"), ("-x start", "no flag"), ("start -id", "no value")] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(reason), "{line:?} gave {error:?}");
        }
    }
}
