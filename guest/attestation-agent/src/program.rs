//! The attestation agent as a process of its own, with upstream's flags, configuration and environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use evidence::{Attester, InitDataDigest};
use wire::initdata::InitData;

use crate::endpoint::{self, Address, Endpoint, Protocol};
use crate::process::{self, ConfigFile};
use crate::{ADDRESS, AaConfig, AttestationAgent, ConfigError, GRPC_ADDRESS, serve, serve_grpc};

/// Runs the agent until it is told to end. The first of `arguments` is the program's name; `ttrpc-aa` and `grpc-aa` fix
/// the protocol, any other leaves it to the address.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Options::parse(arguments) {
        Ok(Some(options)) => process::run(ROLE, process::until_told(options.run())),
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
    address: Option<String>,
    config: Option<PathBuf>,
    initdata: Option<PathBuf>,
    digest: Option<String>,
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
                // Clap, which upstream uses, would write the second form.
                Short('a') | Long("attestation_sock" | "attestation-sock") => {
                    options.address = Some(parser.value()?.string()?);
                }
                Short('c') | Long("config-file") => options.config = Some(parser.value()?.into()),
                Short('i') | Long("initdata-digest") => options.digest = Some(parser.value()?.string()?),
                Short('t') | Long("initdata-toml") => options.initdata = Some(parser.value()?.into()),
                Short('h') | Long("help") => return Ok(None),
                argument => return Err(argument.unexpected().into()),
            }
        }
        Ok(Some(options))
    }

    async fn run(self) -> Result<(), Error> {
        let config = self.config()?;
        process::log(config.log.level.as_deref())?;
        let (address, kind) = Protocol::address(self.protocol, self.address.as_deref(), ADDRESS, GRPC_ADDRESS)?;
        let (initdata, digest) = self.initdata()?;

        let agent = tokio::task::spawn_blocking(move || {
            let attester = Attester::detect(Path::new("/"))?;
            tracing::info!(tee = %attester.tee(), "found the TEE");
            AttestationAgent::new(config, attester, initdata)
        });
        let agent = Arc::new(agent.await.map_err(|_| Error::Task)??);
        if let Some(digest) = digest {
            agent.bind_initdata(digest).await?;
        }
        let _endpoint: Endpoint = match kind {
            Address::Ttrpc(_) => serve(agent, &address).await?,
            Address::Grpc(_) => serve_grpc(agent, &address).await?,
        };
        std::future::pending().await
    }

    fn config(&self) -> Result<AaConfig, Error> {
        let mut config = match &self.config {
            Some(path) => ConfigFile::read(path)?.parse()?,
            None => without_file(std::env::var("AA_KBC_PARAMS").ok(), &process::command_line())?,
        };
        if let Some(path) = std::env::var_os("AAEL_PATH") {
            config.eventlog_config.path = path.into();
        }
        Ok(config)
    }

    /// The document of `-t`, or the digest of `-i`.
    fn initdata(&self) -> Result<(Option<InitData>, Option<InitDataDigest>), Error> {
        if let Some(path) = &self.initdata {
            let unusable =
                |cause: &dyn std::fmt::Display| Error::InitData { path: path.clone(), cause: cause.to_string() };
            let text = std::fs::read_to_string(path).map_err(|e| unusable(&e))?;
            return Ok((Some(InitData::parse(text).map_err(|e| unusable(&e))?), None));
        }
        let Some(text) = &self.digest else { return Ok((None, None)) };
        let digest = STANDARD.decode(text).ok().and_then(|digest| InitDataDigest::new(&digest).ok());
        digest.map(|digest| (None, Some(digest))).ok_or(Error::Digest)
    }
}

/// The configuration where no file is given: the key broker of the environment, or of the kernel's command line.
fn without_file(environment: Option<String>, command_line: &str) -> Result<AaConfig, ConfigError> {
    let params = environment.as_deref().or_else(|| process::kernel_parameter(command_line, "agent.aa_kbc_params"));
    match params {
        // Somebody else holds the resources then, and there is no broker to get a token from.
        None => Ok(AaConfig::default()),
        Some(params) if params.starts_with("offline_fs_kbc::") => Ok(AaConfig::default()),
        Some(params) => AaConfig::from_kbc_params(params),
    }
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
    #[error("initdata {}: {cause}; next: give the document that the guest was started with", path.display())]
    InitData { path: PathBuf, cause: String },
    #[error("the initdata digest is not standard base64 of 32, 48 or 64 bytes; next: correct --initdata-digest")]
    Digest,
    #[error(transparent)]
    Agent(#[from] crate::Error),
    #[error(transparent)]
    Endpoint(#[from] endpoint::Error),
    #[error("it was interrupted while it looked for the TEE")]
    Task,
}

const ROLE: &str = "attestation-agent";
const HELP: &str = "\
The attestation agent of a guest: evidence, tokens and runtime measurements.

Options:
  -a, --attestation_sock ADDRESS  unix:///path for ttrpc, 127.0.0.1:port for gRPC
  -c, --config-file PATH          configuration, .toml or .json
  -t, --initdata-toml PATH        the initdata, whose digest the hardware must hold
  -i, --initdata-digest DIGEST    that digest in base64, if there is no --initdata-toml

Environment: AA_KBC_PARAMS (cc_kbc::URL, without a configuration), AAEL_PATH (the event log), RUST_LOG";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_flags_are_read() {
        let options = parse(&[
            "attestation-agent",
            "--attestation_sock",
            "unix:///run/aa.sock",
            "-c",
            "aa.toml",
            "--initdata-toml=i.toml",
            "-iAA==",
        ])
        .unwrap()
        .unwrap();
        let expected = Options {
            address: Some("unix:///run/aa.sock".to_owned()),
            config: Some("aa.toml".into()),
            initdata: Some("i.toml".into()),
            digest: Some("AA==".to_owned()),
            protocol: None,
        };
        assert_eq!(options, expected);
        assert!(parse(&["aa", "--help"]).unwrap().is_none());
        let error = parse(&["aa", "--unknown"]).unwrap_err().to_string();
        assert!(error.contains("--unknown") && error.contains("; next: "), "{error}");
    }

    #[test]
    fn without_a_file_the_environment_comes_before_the_kernel() {
        let url = |environment: Option<&str>, line: &str| {
            let config = without_file(environment.map(str::to_owned), line).unwrap();
            config.token_configs.kbs.map(|kbs| kbs.url)
        };
        let line = "quiet agent.aa_kbc_params=cc_kbc::http://kernel:1";
        assert_eq!(url(Some("cc_kbc::http://environment:1"), line).as_deref(), Some("http://environment:1"));
        assert_eq!(url(None, line).as_deref(), Some("http://kernel:1"));
        assert_eq!(url(None, ""), None);
        assert_eq!(url(Some("offline_fs_kbc::null"), line), None);
        assert!(without_file(Some("eaa_kbc::http://x".to_owned()), "").is_err());
    }

    #[test]
    fn a_digest_is_base64_of_a_known_length() {
        let digest = |text: &str| parse(&["aa", "-i", text]).unwrap().unwrap().initdata();
        assert_eq!(digest(&STANDARD.encode([7; 48])).unwrap().1.unwrap().as_bytes(), [7; 48]);
        for bad in ["", "AA==", "not base64"] {
            assert!(matches!(digest(bad), Err(Error::Digest)), "{bad:?} passed");
        }
    }

    fn parse(arguments: &[&str]) -> Result<Option<Options>, Error> {
        Options::parse(arguments.iter().map(OsString::from))
    }
}
