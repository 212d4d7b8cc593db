//! How containerd starts a shim and how the shim answers, in the three forms that its versions speak.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message as _;

use crate::{Arguments, Error};

/// What `start` was told.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// The container.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's address.
    pub address: String,
    /// Where events go.
    pub events: String,
    /// The folder for the shim's socket.
    pub sockets: String,
    /// Whether to log more.
    pub debug: bool,
    form: Form,
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// containerd 2.3 and newer: protobuf both ways.
    Protobuf,
    /// containerd 1.7 to 2.2: JSON with a version that it takes.
    Json { version: u32 },
    /// containerd 1.6: the address alone.
    Plain,
}

impl Bootstrap {
    /// Reads what containerd gave: flags, environment, and its message on standard input if it is new enough.
    ///
    /// # Errors
    /// [`Error::Arguments`] where there is no container or namespace.
    pub fn read(
        arguments: &Arguments,
        input: &[u8],
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        let variable = |name| environment(name).unwrap_or_default();
        let mut bootstrap = Self {
            id: arguments.id.clone(),
            namespace: arguments.namespace.clone(),
            address: arguments.address.clone(),
            events: variable("TTRPC_ADDRESS"),
            sockets: SOCKETS.to_owned(),
            debug: arguments.debug,
            form: match variable("MAX_SHIM_VERSION").parse() {
                Ok(version) => Form::Json { version: u32::min(version, VERSION) },
                Err(_) => Form::Plain,
            },
        };
        // Older versions send the runtime's options there, which are no such message or name no container.
        if let Ok(params) = BootstrapParams::parse_from_bytes(input)
            && !params.instance_id.is_empty()
            && !params.namespace.is_empty()
            && (arguments.id.is_empty() || params.instance_id == arguments.id)
        {
            bootstrap.debug |= params.log_level.value() < 0;
            bootstrap.sockets = params.socket_dir.filter(|folder| !folder.is_empty()).unwrap_or(bootstrap.sockets);
            (bootstrap.id, bootstrap.namespace) = (params.instance_id, params.namespace);
            bootstrap.address = params.containerd_grpc_address;
            bootstrap.events = params.containerd_ttrpc_address;
            bootstrap.form = Form::Protobuf;
        }
        if bootstrap.id.is_empty() || bootstrap.namespace.is_empty() {
            return Err(Error::Arguments("start needs -id and -namespace".to_owned()));
        }
        Ok(bootstrap)
    }

    /// What `start` prints for a server at `address`.
    pub fn answer(&self, address: &str) -> Vec<u8> {
        match self.form {
            Form::Plain => address.as_bytes().to_vec(),
            Form::Json { .. } => self.answer_json(address).into_bytes(),
            Form::Protobuf => {
                let result = BootstrapResult {
                    version: i32::try_from(VERSION).unwrap_or(i32::MAX),
                    address: address.to_owned(),
                    protocol: PROTOCOL.to_owned(),
                    ..BootstrapResult::default()
                };
                // Writing to memory can't fail.
                result.write_to_bytes().unwrap_or_default()
            }
        }
    }

    /// The same as JSON, which containerd keeps beside the bundle.
    pub fn answer_json(&self, address: &str) -> String {
        let version = match self.form {
            Form::Protobuf => VERSION,
            Form::Json { version } => version,
            Form::Plain => 2,
        };
        serde_json::json!({"version": version, "address": address, "protocol": PROTOCOL}).to_string()
    }
}

/// The folder for shims' sockets where containerd names none.
pub const SOCKETS: &str = "/run/containerd/s";
/// The newest version of the task API that is served; version 2 is served beside it.
const VERSION: u32 = 3;
const PROTOCOL: &str = "ttrpc";

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Arguments {
        Arguments { id: "c1".into(), namespace: "k8s.io".into(), address: "/c.sock".into(), ..Arguments::default() }
    }

    fn environment(version: Option<&'static str>) -> impl Fn(&str) -> Option<String> {
        move |name| match name {
            "MAX_SHIM_VERSION" => version.map(str::to_owned),
            "TTRPC_ADDRESS" => Some("/c.sock.ttrpc".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn each_version_of_containerd_gets_its_own_form() {
        for (version, answer) in [
            (None, "unix:///s"),
            (Some("2"), r#"{"address":"unix:///s","protocol":"ttrpc","version":2}"#),
            (Some("3"), r#"{"address":"unix:///s","protocol":"ttrpc","version":3}"#),
            (Some("4"), r#"{"address":"unix:///s","protocol":"ttrpc","version":3}"#),
        ] {
            // Runtime options, as versions before 2.3 send them.
            let options = b"\x0a\x19runtimeoptions.v1.Options\x12\x04\x12\x02\xff\xfe";
            let bootstrap = Bootstrap::read(&arguments(), options, environment(version)).unwrap();
            assert_eq!(String::from_utf8(bootstrap.answer("unix:///s")).unwrap(), answer);
            assert_eq!((bootstrap.events.as_str(), bootstrap.sockets.as_str()), ("/c.sock.ttrpc", SOCKETS));
        }
    }

    #[test]
    fn the_newest_speaks_protobuf() {
        // Fields 1, 2, 3 (DEBUG), 5, 6 and 9, written by hand.
        let mut input = Vec::new();
        for (field, text) in
            [(1_u8, "c1"), (2, "moby"), (4, "2.3.0"), (5, "/t.sock"), (6, "/g.sock"), (9, "/run/sockets")]
        {
            input.extend([field << 3 | 2, text.len() as u8]);
            input.extend(text.as_bytes());
        }
        input.extend([3 << 3, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);

        let bootstrap = Bootstrap::read(&arguments(), &input, environment(Some("3"))).unwrap();

        assert_eq!((bootstrap.namespace.as_str(), bootstrap.address.as_str()), ("moby", "/g.sock"));
        assert_eq!((bootstrap.events.as_str(), bootstrap.sockets.as_str()), ("/t.sock", "/run/sockets"));
        assert!(bootstrap.debug);
        assert_eq!(bootstrap.answer("unix:///s"), b"\x08\x03\x12\x09unix:///s\x1a\x05ttrpc");
    }

    #[test]
    fn a_message_for_another_container_is_not_believed() {
        let input = b"\x0a\x02c2\x12\x04moby";
        let bootstrap = Bootstrap::read(&arguments(), input, environment(Some("2"))).unwrap();
        assert_eq!((bootstrap.id.as_str(), bootstrap.namespace.as_str()), ("c1", "k8s.io"));
        assert!(Bootstrap::read(&Arguments::default(), b"", environment(None)).is_err());
    }
}
