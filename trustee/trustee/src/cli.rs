//! The command line: `trustee COMMAND`, and the names under which the roles are called alone.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::{admin_token, maintenance, setup};

/// Hands secrets to guests that prove what they are.
#[derive(Parser)]
#[command(name = "trustee", version, after_help = VARIABLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Reads a command line whose first word is the program's name. A program called `kbs`, `grpc-as`, `restful-as`,
    /// `rvps` or `rvps-tool` is that role of `trustee`.
    ///
    /// # Errors
    /// What is wrong, or the help that was asked for.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let name = arguments.first().and_then(|program| Path::new(program).file_name()?.to_str());
        if let Some(role) = ROLES.into_iter().find(|role| Some(*role) == name) {
            arguments.splice(..1, ["trustee".into(), role.into()]);
        }
        Self::try_parse_from(arguments)
    }
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serve all in one process until SIGTERM or Ctrl-C.
    #[command(after_help = VARIABLES)]
    Serve {
        /// The configuration file, as `trustee setup` writes it.
        #[arg(long, short)]
        config: PathBuf,
    },
    /// Make keys, certificates, an administrator's token and a configuration in a new directory.
    Setup(setup::Arguments),
    /// Issue a new administrator's token for a directory that `trustee setup` made.
    AdminToken(admin_token::Arguments),
    /// Write everything that is stored into one sealed file.
    Backup(maintenance::Backup),
    /// Read a backup into the storage.
    Restore(maintenance::Restore),
    /// Take the database back to an earlier layout, for an earlier release.
    Migrate(maintenance::Migrate),
    /// Seal everything that is stored under a new master key.
    RotateMasterKey(maintenance::RotateMasterKey),
    /// Make a new key for attestation tokens; those of the one before stay good until they expire.
    RotateSigningKey(maintenance::Configured),
    /// Print all keys of configuration files, in Markdown.
    ConfigReference,
    /// Print the description of the HTTP API, in the form of OpenAPI.
    Openapi,
    /// The key broker, as `trustee serve`.
    Kbs(Kbs),
    /// The attestation service alone, over gRPC.
    GrpcAs(GrpcAs),
    /// The attestation service alone, over REST.
    RestfulAs(RestfulAs),
    /// The provider of reference values alone, over gRPC.
    Rvps(Rvps),
    /// Register and query reference values over gRPC.
    RvpsTool(RvpsTool),
}

/// `kbs`
#[derive(Args)]
#[command(after_help = VARIABLES)]
pub struct Kbs {
    /// The configuration file. Without it, the one that KBS_CONFIG_FILE names.
    #[arg(long, short)]
    pub config_file: Option<PathBuf>,
}

/// `grpc-as`
#[derive(Args)]
#[command(after_help = VARIABLES)]
pub struct GrpcAs {
    /// Where to listen.
    #[arg(long, short, default_value = "127.0.0.1:3000")]
    pub socket: String,
    #[command(flatten)]
    pub service: AttestationService,
}

/// `restful-as`
#[derive(Args)]
#[command(after_help = VARIABLES)]
pub struct RestfulAs {
    /// Where to listen.
    #[arg(long, short)]
    pub socket: String,
    /// The origin whose pages may call this service from a browser.
    #[arg(long = "allowed_origin", alias = "allowed-origin", short = 'r')]
    pub allowed_origin: Option<String>,
    #[command(flatten)]
    pub service: AttestationService,
}

/// What both kinds of attestation service are told.
#[derive(Args)]
pub struct AttestationService {
    /// The configuration file. Without it, everything has its default and is lost at the end.
    #[arg(long, short)]
    pub config_file: Option<PathBuf>,
    #[command(flatten)]
    pub tls: Tls,
}

/// TLS of a role that has no section for it.
#[derive(Args, Default)]
pub struct Tls {
    /// Certificate chain in PEM. Without it, plain HTTP is served.
    #[arg(long, short = 't', requires = "https_prikey")]
    pub https_pubkey_cert: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, short = 'k', requires = "https_pubkey_cert")]
    pub https_prikey: Option<PathBuf>,
    /// Authorities in PEM; only clients with a certificate of theirs are served.
    #[arg(long, requires = "https_pubkey_cert")]
    pub client_ca: Option<PathBuf>,
}

/// `rvps`
#[derive(Args)]
pub struct Rvps {
    /// The configuration file.
    #[arg(long, short, default_value = "/etc/rvps.json")]
    pub config: PathBuf,
    /// Where to listen.
    #[arg(long, short, default_value = "127.0.0.1:50003")]
    pub address: String,
    #[command(flatten)]
    pub tls: Tls,
}

/// `rvps-tool`
#[derive(Args)]
pub struct RvpsTool {
    #[command(subcommand)]
    pub action: RvpsAction,
}

/// What to do with reference values.
#[derive(Subcommand)]
pub enum RvpsAction {
    /// Register the values of a message.
    Register {
        #[command(flatten)]
        provider: Provider,
        /// File with the message, in JSON.
        #[arg(long, short)]
        path: PathBuf,
    },
    /// Print the value of a name, in JSON.
    Query {
        #[command(flatten)]
        provider: Provider,
        /// The name.
        #[arg(long = "reference_value_id", alias = "reference-value-id", short = 'r')]
        reference_value_id: String,
    },
    /// Print the names of all values.
    List {
        #[command(flatten)]
        provider: Provider,
    },
}

/// A provider of reference values.
#[derive(Args)]
pub struct Provider {
    /// Its URL.
    #[arg(long, short, default_value = "http://127.0.0.1:50003")]
    pub addr: String,
    /// Authorities of its certificate in PEM. Without it, the system's ones.
    #[arg(long)]
    pub ca: Option<PathBuf>,
    /// Certificate chain to show it, in PEM.
    #[arg(long, requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// The private key of --client-cert, in PEM.
    #[arg(long, requires = "client_cert")]
    pub client_key: Option<PathBuf>,
}

const VARIABLES: &str = "Variables: TRUSTEE_SAMPLE_VERIFIER=1 accepts evidence of the sample TEE, which anyone can make: \
                         for tests only. KBS_CONFIG_FILE, POSTGRES_URL, RUST_LOG, LOG_FORMAT and OTEL_EXPORTER_OTLP_ENDPOINT \
                         are in the introduction of trustee config-reference.";
const ROLES: [&str; 5] = ["kbs", "grpc-as", "restful-as", "rvps", "rvps-tool"];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        Cli::read(line.split(' ').map(OsString::from)).map(|cli| cli.command).map_err(|e| e.to_string())
    }

    #[test]
    fn a_role_is_told_by_the_program_s_name_or_by_the_first_word() {
        for program in ["kbs", "./kbs", "/usr/local/bin/kbs", "trustee kbs", "/opt/trustee kbs"] {
            for flag in ["-c", "--config-file"] {
                let Ok(Command::Kbs(kbs)) = read(&format!("{program} {flag} /etc/kbs.toml")) else {
                    panic!("{program}")
                };
                assert_eq!(kbs.config_file.as_deref(), Some(Path::new("/etc/kbs.toml")));
            }
            assert!(matches!(read(program), Ok(Command::Kbs(Kbs { config_file: None }))));
        }
        assert!(read("kbs-other -c x").is_err());
    }

    #[test]
    fn roles_take_the_flags_they_always_had() {
        let line = "/usr/local/bin/grpc-as -c as.json -s 0.0.0.0:50004 -t cert.pem -k key.pem";
        let Ok(Command::GrpcAs(grpc)) = read(line) else { panic!() };
        assert_eq!((grpc.socket.as_str(), grpc.service.config_file), ("0.0.0.0:50004", Some("as.json".into())));
        assert_eq!(grpc.service.tls.https_prikey, Some("key.pem".into()));

        let line = "restful-as --socket 127.0.0.1:8080 --config-file as.json --https-pubkey-cert c --https-prikey k";
        assert!(matches!(read(line), Ok(Command::RestfulAs(_))));
        for origin in ["-r", "--allowed_origin", "--allowed-origin"] {
            let Ok(Command::RestfulAs(rest)) = read(&format!("restful-as -s a:1 {origin} https://o")) else { panic!() };
            assert_eq!(rest.allowed_origin.as_deref(), Some("https://o"));
        }
        let Ok(Command::GrpcAs(grpc)) = read("grpc-as") else { panic!() };
        assert_eq!(grpc.socket, "127.0.0.1:3000");
        assert!(read("restful-as").is_err(), "it has no socket of its own");
        for role in ["trustee", "kbs", "grpc-as", "restful-as", "trustee serve"] {
            let help = read(&format!("{role} --help")).map(|_| ()).unwrap_err();
            assert!(help.contains("TRUSTEE_SAMPLE_VERIFIER"), "{role}: {help}");
        }
        assert!(read("grpc-as -t cert.pem").is_err(), "a certificate needs its key");

        let Ok(Command::Rvps(rvps)) = read("rvps") else { panic!() };
        assert_eq!((rvps.config.as_path(), rvps.address.as_str()), (Path::new("/etc/rvps.json"), "127.0.0.1:50003"));
        let Ok(Command::Rvps(rvps)) = read("rvps -c r.json -a 0.0.0.0:1") else { panic!() };
        assert_eq!((rvps.config.as_path(), rvps.address.as_str()), (Path::new("r.json"), "0.0.0.0:1"));

        for line in ["rvps-tool register -p m.json", "rvps-tool register --addr http://h:1 --path m.json"] {
            let Ok(Command::RvpsTool(RvpsTool { action: RvpsAction::Register { .. } })) = read(line) else { panic!() };
        }
        for line in ["rvps-tool query -a http://h:1 -r svn", "rvps-tool query --reference_value_id svn"] {
            let Ok(Command::RvpsTool(RvpsTool { action: RvpsAction::Query { .. } })) = read(line) else { panic!() };
        }
        assert!(matches!(read("rvps-tool list"), Ok(Command::RvpsTool(RvpsTool { action: RvpsAction::List { .. } }))));
    }
}
