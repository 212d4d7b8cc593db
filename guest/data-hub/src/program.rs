//! The data hub as a process of its own, with upstream's flags, configuration and environment.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use attestation_agent::endpoint::Protocol;
use attestation_agent::process::{self, ConfigFile};
use serde_json::json;

use crate::config::{CdhConfig, ConfigError};
use crate::hub::DataHub;
use crate::service::serve;
use crate::surroundings::Surroundings;
use crate::{Error as HubError, credentials};

/// Runs the data hub until it is told to end. The first of `arguments` is the program's name; `ttrpc-cdh` and `grpc-cdh`
/// fix the protocol, any other leaves it to the address.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Options::parse(arguments) {
        Ok(Some(options)) => process::run(ROLE, options.run()),
        Ok(None) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => process::failed(ROLE, &error),
    }
}

/// What the command line says.
#[derive(Debug, Default, PartialEq)]
struct Options {
    config: Option<PathBuf>,
    protocol: Option<Protocol>,
}

impl Options {
    /// `None` if help was asked for.
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Self>, Error> {
        let protocol = Protocol::of_program(&arguments.next().unwrap_or_default());
        let mut options = Self { protocol, ..Self::default() };
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            use lexopt::prelude::*;
            match argument {
                Short('c') | Long("config") => options.config = Some(parser.value()?.into()),
                Short('h') | Long("help") => return Ok(None),
                argument => return Err(argument.unexpected().into()),
            }
        }
        Ok(Some(options))
    }

    async fn run(self) -> Result<(), Error> {
        let config = self.config()?;
        process::log(config.log.level.as_deref())?;
        if std::env::var_os("OCICRYPT_KEYPROVIDER_CONFIG").is_none() {
            write_ocicrypt_config(&config)?;
        }
        let hub = Arc::new(DataHub::standalone(config)?);
        let served = process::until_told(async {
            let _endpoint = serve(Arc::clone(&hub)).await?;
            std::future::pending().await
        });
        let served = served.await;
        // The kernel would keep the volumes, and their keys, without this process.
        let closed = hub.close().await;
        served.and(closed.map_err(Error::from))
    }

    fn config(&self) -> Result<CdhConfig, Error> {
        let file = self.config.as_deref().map(|path| ConfigFile::read(path)?.parse()).transpose()?;
        let command_line = process::command_line();
        let surroundings = Surroundings {
            environment: &|name| std::env::var(name).ok(),
            kernel: &|name| process::kernel_parameter(&command_line, name).map(str::to_owned),
        };
        let mut config = surroundings.complete(file)?;
        let default = CdhConfig::default();
        let (socket, _) = Protocol::address(self.protocol, config.socket.as_deref(), default.socket(), GRPC_ADDRESS)?;
        config.socket = Some(socket);
        Ok(config)
    }
}

/// Tells programs in the guest that speak ocicrypt where their key provider is.
fn write_ocicrypt_config(config: &CdhConfig) -> Result<(), Error> {
    let socket = config.socket();
    let provider = match socket.starts_with("unix://") {
        true => json!({ "ttrpc": socket }),
        false => json!({ "grpc": socket }),
    };
    let document = json!({ "key-providers": { "attestation-agent": provider } }).to_string();
    let path = config.places.folder.join(OCICRYPT_CONFIG);
    let written = credentials::write(&path, document.as_bytes());
    written.map_err(|cause| HubError::CredentialFile { path, cause }.into())
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}; next: see --help")]
    Arguments(#[from] lexopt::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Endpoint(#[from] attestation_agent::endpoint::Error),
}

const ROLE: &str = "confidential-data-hub";
/// Where upstream's tools look for this service when they speak gRPC.
const GRPC_ADDRESS: &str = "127.0.0.1:50000";
const OCICRYPT_CONFIG: &str = "ocicrypt_config.json";
const HELP: &str = "\
The data hub of a guest: resources, sealed secrets, layer keys, encrypted volumes and images.

Options:
  -c, --config PATH  configuration, .toml or .json

Environment: AA_KBC_PARAMS (cc_kbc::URL, without a configuration), KBS_CERT, AA_SOCKET, SKIP_SEALED_SECRET_VERIFICATION,
CDH_DEFAULT_IMAGE_AUTHENTICATED_REGISTRY_CREDENTIALS, OCICRYPT_KEYPROVIDER_CONFIG, OFFLINE_FS_KBC_EXTRA_FILE_PATH,
ALIYUN_IN_GUEST_KEY_PATH, AWS_IN_GUEST_KEY_PATH, RUST_LOG";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_flags_are_read() {
        let options = parse(&["confidential-data-hub", "-c", "/x/cdh.toml"]).unwrap().unwrap();
        assert_eq!(options, Options { config: Some("/x/cdh.toml".into()), protocol: None });
        assert!(parse(&["cdh", "--help"]).unwrap().is_none());
        let error = parse(&["cdh", "--socket", "x"]).unwrap_err().to_string();
        assert!(error.contains("--socket") && error.contains("; next: "), "{error}");
    }

    #[test]
    fn a_name_fixes_the_protocol() {
        let folder = tempfile::tempdir().unwrap();
        let written = |socket: &str| {
            let path = folder.path().join("cdh.json");
            std::fs::write(&path, json!({ "socket": socket, "kbc": { "name": "offline_fs_kbc" } }).to_string())
                .unwrap();
            path.display().to_string()
        };
        let socket = |name: &str, config: Option<&str>| {
            let mut arguments = vec![name.to_owned()];
            arguments.extend(config.into_iter().flat_map(|socket| ["-c".to_owned(), written(socket)]));
            let options = Options::parse(arguments.into_iter().map(OsString::from)).unwrap().unwrap();
            options.config().ok().map(|config| config.socket().to_owned())
        };
        let (unix, port) = ("unix:///run/x.sock", "127.0.0.1:1");
        assert_eq!(socket("/usr/local/bin/grpc-cdh", None).as_deref(), Some(GRPC_ADDRESS));
        assert!(socket("ttrpc-cdh", None).unwrap().starts_with("unix://"));
        assert_eq!(socket("confidential-data-hub", Some(port)).as_deref(), Some(port));
        assert_eq!(socket("confidential-data-hub", Some(unix)).as_deref(), Some(unix));
        assert_eq!(socket("grpc-cdh", Some(unix)), None);
        assert_eq!(socket("ttrpc-cdh", Some(port)), None);
    }

    #[test]
    fn ocicrypt_is_told_its_key_provider() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = CdhConfig::default();
        config.places.folder = folder.path().to_owned();
        write_ocicrypt_config(&config).unwrap();
        let written: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("ocicrypt_config.json")).unwrap()).unwrap();
        let socket = "unix:///run/confidential-containers/cdh.sock";
        assert_eq!(written, json!({ "key-providers": { "attestation-agent": { "ttrpc": socket } } }));
    }

    fn parse(arguments: &[&str]) -> Result<Option<Options>, Error> {
        Options::parse(arguments.iter().map(OsString::from))
    }
}
