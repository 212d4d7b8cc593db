//! The agent as a process of its own, outside of a guest, with the environment that upstream's agent reads.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use agent::{Agent, AgentConfig, AgentEvent, Drivers, Policy};
use attestation_agent::{AaConfig, AttestationAgent, process};
use data_hub::{CdhConfig, DataHub};
use evidence::Attester;
use tokio::sync::watch;

use crate::images::HubImages;
use crate::roles;
use crate::secrets::HubSecrets;

/// Runs the agent until it is told to end. The first of `arguments` is the program's name, and there are no others.
pub(crate) fn run(mut arguments: std::vec::IntoIter<OsString>) -> ExitCode {
    match arguments.nth(1) {
        None => process::run(ROLE, process::until_told(serve())),
        Some(_) => process::failed(ROLE, &Error::Arguments),
    }
}

async fn serve() -> Result<(), Error> {
    let variable = |name| std::env::var(name).ok();
    process::log(variable("KATA_AGENT_LOG_LEVEL").as_deref())?;
    let policy = match variable("KATA_AGENT_POLICY_FILE") {
        Some(path) => {
            let text =
                std::fs::read_to_string(&path).map_err(|cause| Error::PolicyFile { path: path.into(), cause })?;
            Policy::parse(&text)?
        }
        None => Policy::default(),
    };
    // As in a guest without initdata: no key broker is known.
    let attester = Attester::detect(Path::new("/"))?;
    let attestation = Arc::new(AttestationAgent::new(AaConfig::default(), attester, None)?);
    let hub = Arc::new(DataHub::new(CdhConfig::default(), attestation)?);
    let agent = Arc::new(Agent::new(AgentConfig {
        policy,
        images: Arc::new(HubImages::new(Arc::clone(&hub))),
        secrets: Some(Arc::new(HubSecrets(hub))),
        // A machine that is no guest has disks of its own.
        disks: None,
        helper: std::env::current_exe().map_err(Error::Program)?,
        root: PathBuf::from("/run/kata-containers"),
        resolv_conf: None,
        drivers: watch::channel(Drivers::All).1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?);
    let address = variable("KATA_AGENT_SERVER_ADDR").unwrap_or_else(|| roles::AGENT.to_owned());
    let mut events = agent.events();
    let tell = async {
        roles::wait_for(&mut events, |event| *event == AgentEvent::Listening).await;
        tracing::info!(address, "listening");
        std::future::pending().await
    };
    tokio::select! {
        outcome = agent.serve(&address) => Ok(outcome?),
        outcome = tell => outcome,
        outcome = agent::reap_orphans() => outcome.map_err(Error::Orphans),
    }
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(
        "it takes no arguments; next: set KATA_AGENT_SERVER_ADDR, KATA_AGENT_POLICY_FILE and KATA_AGENT_LOG_LEVEL in its environment"
    )]
    Arguments,
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error("policy {}: {cause}; next: correct KATA_AGENT_POLICY_FILE", path.display())]
    PolicyFile { path: PathBuf, cause: io::Error },
    #[error(transparent)]
    Policy(#[from] agent::policy::Error),
    #[error(transparent)]
    Evidence(#[from] evidence::Error),
    #[error(transparent)]
    Attestation(#[from] attestation_agent::Error),
    #[error(transparent)]
    DataHub(#[from] data_hub::Error),
    #[error("its own program can't be found: {0}")]
    Program(#[source] io::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error("ended children can't be waited for: {0}")]
    Orphans(#[source] io::Error),
}

const ROLE: &str = "kata-agent";
