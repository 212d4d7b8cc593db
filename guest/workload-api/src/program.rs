//! The workload API as a process of its own, with upstream's flags; attestation agent and data hub are asked over ttrpc.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use attestation_agent::process;

use crate::clients::{Agent, Hub};
use crate::{Api, Caller, Features, WorkloadApi, openapi};

/// Runs the API until it is told to end. The first of `arguments` is the program's name.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match Options::parse(arguments) {
        Ok(Wanted::Serve(options)) => process::run(ROLE, process::until_told(options.run())),
        Ok(Wanted::OpenApi) => {
            println!("{:#}", openapi());
            ExitCode::SUCCESS
        }
        Ok(Wanted::Help) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(error) => process::failed(ROLE, &error),
    }
}

#[derive(Debug, PartialEq)]
enum Wanted {
    Serve(Options),
    OpenApi,
    Help,
}

/// What the command line says.
#[derive(Debug, PartialEq)]
struct Options {
    bind: SocketAddr,
    unix: Option<PathBuf>,
    features: Features,
    hub: String,
    agent: String,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Wanted, Error> {
        let _name = arguments.next();
        let mut options = Self {
            bind: SocketAddr::from(([127, 0, 0, 1], 8006)),
            unix: None,
            features: Features::default(),
            hub: HUB.to_owned(),
            agent: attestation_agent::ADDRESS.to_owned(),
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            use lexopt::prelude::*;
            match argument {
                Short('b') | Long("bind") => options.bind = parser.value()?.parse()?,
                Short('f') | Long("features") => options.features = parser.value()?.parse()?,
                // Clap, which upstream uses, would write the second forms.
                Short('c') | Long("cdh_addr" | "cdh-addr") => options.hub = parser.value()?.string()?,
                Short('a') | Long("aa_addr" | "aa-addr") => options.agent = parser.value()?.string()?,
                Long("unix") => options.unix = Some(parser.value()?.into()),
                Long("openapi") => return Ok(Wanted::OpenApi),
                Short('h') | Long("help") => return Ok(Wanted::Help),
                argument => return Err(argument.unexpected().into()),
            }
        }
        Ok(Wanted::Serve(options))
    }

    async fn run(self) -> Result<(), Error> {
        process::log(None)?;
        let api = Api::new(self.features, Arc::new(Hub::at(&self.hub)), Arc::new(Agent::at(&self.agent)));
        // Whoever reaches the socket is of this pod, as with the loopback address.
        let unix = self
            .unix
            .map(|path| WorkloadApi::bind_unix(&path, Arc::new(|_: &Caller, _: &str| true), api.clone()))
            .transpose()?;
        let network = WorkloadApi::bind(self.bind, api).await?;
        tracing::info!(address = ?network.local_addr(), features = %self.features, "serving the workload API");
        let unix = async {
            match unix {
                Some(unix) => unix.serve().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = network.serve() => Ok(outcome?),
            outcome = unix => Ok(outcome?),
        }
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
    Api(#[from] crate::Error),
}

const ROLE: &str = "api-server-rest";
const HUB: &str = "unix:///run/confidential-containers/cdh.sock";
const HELP: &str = "\
The workload API: secrets and attestation for the containers of a pod.

Options:
  -b, --bind ADDRESS       where to listen, 127.0.0.1:8006 by default
  -f, --features FEATURES  resource (default), attestation or all
  -c, --cdh_addr ADDRESS   the data hub, unix:///run/confidential-containers/cdh.sock by default
  -a, --aa_addr ADDRESS    the attestation agent, unix:///run/confidential-containers/attestation-agent/attestation-agent.sock
                           by default
      --unix PATH          listen at this socket as well, and log which process asks
      --openapi            print the API's OpenAPI document and end

Environment: RUST_LOG";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_flags_are_read() {
        let parse = |arguments: &[&str]| Options::parse(arguments.iter().map(OsString::from));
        let Ok(Wanted::Serve(options)) =
            parse(&["asr", "-b", "127.0.0.1:1", "--features=all", "-c", "unix:///c", "--aa_addr", "unix:///a"])
        else {
            panic!("not read")
        };
        assert_eq!((options.bind.port(), options.features), (1, Features::All));
        assert_eq!((options.hub.as_str(), options.agent.as_str()), ("unix:///c", "unix:///a"));
        assert_eq!(parse(&["asr", "--openapi"]).unwrap(), Wanted::OpenApi);
        for bad in [&["asr", "-f", "some"][..], &["asr", "-b", "8006"], &["asr", "extra"]] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.ends_with("; next: see --help"), "{error}");
        }
    }
}
