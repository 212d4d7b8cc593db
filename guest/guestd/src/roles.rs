//! Composes the guest's roles: attestation agent, data hub, workload API and agent, as tasks of one process.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{Agent, AgentConfig, AgentEvent, Drivers, Policy};
use attestation_agent::{AaConfig, AttestationAgent, process};
use data_hub::{CdhConfig, DataHub, NodeAddress};
use evidence::Attester;
use tokio::runtime::Builder;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use wire::initdata::InitData;
use wire::milestone::Milestone;
use workload_api::{Api, Caller, Features, WorkloadApi};

use crate::attestation::AgentAttestation;
use crate::disks::GuestDisks;
use crate::images::HubImages;
use crate::kernel_modules::Group;
use crate::resources::HubResources;
use crate::secrets::HubSecrets;
use crate::{binding, init, kernel_modules};

/// Configures every role from the initdata and serves until one of them fails.
///
/// # Errors
/// The first role that can't be set up, or that ends.
pub(crate) fn serve(attester: Attester, initdata: Option<InitData>) -> Result<(), Error> {
    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build().map_err(Error::Runtime)?;
    runtime.block_on(run(attester, initdata))
}

async fn run(attester: Attester, initdata: Option<InitData>) -> Result<(), Error> {
    let file = |name| initdata.as_ref().and_then(|initdata: &InitData| initdata.get(name));
    let policy = match file("policy.rego") {
        Some(text) => Policy::parse(text)?,
        None => Policy::default(),
    };
    let aa = file("aa.toml").map(AaConfig::parse).transpose()?.unwrap_or_default();
    let mut cdh = file("cdh.toml").map(CdhConfig::parse).transpose()?.unwrap_or_default();
    cdh.image.get_or_insert_default().node_cache = Some(NodeAddress::Host);

    let images = cdh.image.clone().unwrap_or_default().work_dir;
    // As upstream's agent reads it from the kernel's command line.
    let integrity = process::kernel_parameter(&process::command_line(), INTEGRITY) != Some("false");

    let attestation = Arc::new(AttestationAgent::new(aa, attester, initdata.clone())?);
    let hub = Arc::new(DataHub::new(cdh, Arc::clone(&attestation))?);
    let (drivers, loaded) = watch::channel(Drivers::Channel);
    let agent = Arc::new(Agent::new(AgentConfig {
        policy,
        images: Arc::new(HubImages::new(Arc::clone(&hub))),
        secrets: Some(Arc::new(HubSecrets(Arc::clone(&hub)))),
        disks: Some(Arc::new(GuestDisks::new(Arc::clone(&hub), integrity, images))),
        helper: PathBuf::from(init::PROGRAM),
        root: PathBuf::from("/run/kata-containers"),
        resolv_conf: Some(PathBuf::from(init::RESOLV_CONF)),
        drivers: loaded,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })?);
    let mut events = agent.events();
    let ready = async {
        // The channel keeps what was said before this is polled.
        wait_for(&mut events, |event| *event == AgentEvent::Listening).await;
        println!("{}", Milestone::Ready);
        std::future::pending().await
    };
    tokio::select! {
        outcome = Arc::clone(&agent).serve(AGENT) => Ok(outcome?),
        outcome = Arc::clone(&agent).serve_ports(PORTS, &[WORKLOADS]) => Ok(outcome?),
        outcome = ready => outcome,
        // All that the first answer need not wait for.
        outcome = serve_pod(attestation, hub, drivers, &agent) => outcome,
        outcome = agent::reap_orphans() => outcome.map_err(Error::Runtime),
    }
}

/// Loads the drivers for network and containers, then serves what containers and other programs in the guest ask for.
async fn serve_pod(
    attestation: Arc<AttestationAgent>,
    hub: Arc<DataHub>,
    drivers: watch::Sender<Drivers>,
    agent: &Agent,
) -> Result<(), Error> {
    let (mut events, mut sandbox_events) = (agent.events(), agent.events());
    // On one processor, loading before that would delay the first answer.
    wait_for(&mut events, |event| *event == AgentEvent::FirstRequest).await;
    blocking(|| kernel_modules::load(Group::Network)).await?;
    drivers.send_replace(Drivers::Network);
    agent::bring_up_loopback().await?;

    // A pod's own container needs none of the rest, and with it the host has for a moment all that it waits for.
    let rest = |event: &_| matches!(event, AgentEvent::DriversWanted | AgentEvent::ContainerStarted { .. });
    wait_for(&mut events, rest).await;
    let command_line = process::command_line();
    let features = process::kernel_parameter(&command_line, FEATURES).map_or(Ok(Features::default()), str::parse)?;
    let resources = Arc::new(HubResources(Arc::clone(&hub)));
    let api = Api::new(features, resources, Arc::new(AgentAttestation(Arc::clone(&attestation))));
    let by_process = process::kernel_parameter(&command_line, SOCKET)
        // Only containers that the owner's policy gives this socket to can reach it.
        .map(|path| WorkloadApi::bind_unix(Path::new(path), Arc::new(|_: &Caller, _: &str| true), api.clone()))
        .transpose()?;
    let by_process = async {
        match by_process {
            Some(api) => api.serve().await,
            None => std::future::pending().await,
        }
    };
    let workload_api = WorkloadApi::bind((Ipv4Addr::LOCALHOST, WORKLOADS).into(), api).await?;
    let _attestation_api = attestation_agent::serve(Arc::clone(&attestation), attestation_agent::ADDRESS).await?;
    let mut attested = attestation.attested();
    let announce = async {
        if attested.wait_for(|attested| *attested).await.is_ok() {
            println!("{}", Milestone::Attested);
        }
        std::future::pending().await
    };
    // Credentials of the configuration need network and resolver, which a guest has from its sandbox on.
    let hub_api = async {
        wait_for(&mut sandbox_events, |event| *event == AgentEvent::SandboxCreated).await;
        let _hub_api = data_hub::serve(hub).await?;
        std::future::pending().await
    };
    // What waits for drivers finds the rest as well.
    blocking(load_and_seal).await?;
    drivers.send_replace(Drivers::All);
    tokio::select! {
        outcome = workload_api.serve() => Ok(outcome?),
        outcome = by_process => Ok(outcome?),
        outcome = hub_api => outcome,
        outcome = announce => outcome,
    }
}

/// The last modules that this kernel takes.
fn load_and_seal() -> Result<(), kernel_modules::Error> {
    kernel_modules::load(Group::Container)?;
    kernel_modules::seal()
}

/// Does on a thread of its own what keeps it busy.
async fn blocking(work: impl FnOnce() -> Result<(), kernel_modules::Error> + Send + 'static) -> Result<(), Error> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Error::Task)??)
}

/// Waits until the agent has come to an event like this.
pub(crate) async fn wait_for(events: &mut broadcast::Receiver<AgentEvent>, wanted: impl Fn(&AgentEvent) -> bool) {
    loop {
        match events.recv().await {
            Ok(event) if wanted(&event) => break,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            // The agent is gone, and so is the guest in a moment.
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// Why the guest gives up: the text names the stage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Init(#[from] init::Error),
    #[error(transparent)]
    Modules(#[from] kernel_modules::Error),
    #[error(transparent)]
    InitData(#[from] binding::Error),
    #[error("guestd: no threads: {0}; next: give the guest more memory")]
    Runtime(std::io::Error),
    #[error("guestd: loading drivers was interrupted")]
    Task,
    #[error("policy.rego: {0}")]
    Policy(#[from] agent::policy::Error),
    #[error(transparent)]
    AaConfig(#[from] attestation_agent::ConfigError),
    #[error(transparent)]
    CdhConfig(#[from] data_hub::ConfigError),
    #[error("evidence: {0}")]
    Evidence(#[from] evidence::Error),
    #[error("attestation agent: {0}")]
    Attestation(#[from] attestation_agent::Error),
    #[error("attestation agent: {0}")]
    AttestationApi(#[from] attestation_agent::endpoint::Error),
    #[error("data hub: {0}")]
    DataHub(#[from] data_hub::Error),
    #[error("agent: {0}")]
    Agent(#[from] agent::Error),
    #[error("network: {0}")]
    Network(#[from] agent::NetworkError),
    #[error("workload API: {0}")]
    WorkloadApi(#[from] workload_api::Error),
    #[error("workload API: {FEATURES} on the kernel's command line: {0}")]
    Features(#[from] workload_api::UnknownFeatures),
}

/// Any context id, the agent's port.
pub(crate) const AGENT: &str = "vsock://-1:1024";
/// Any context id, [`wire::port_forward::PORT`].
const PORTS: &str = "vsock://-1:1031";
/// As upstream's agent reads it from the kernel's command line.
const FEATURES: &str = "agent.guest_components_rest_api";
/// Whether changes to encrypted disks are noticed; `true` by default.
const INTEGRITY: &str = "agent.secure_storage_integrity";
/// A unix socket for the workload API, beside its address; none by default.
const SOCKET: &str = "cocoon.workload_socket";
/// The port of the workload API on the loopback interface.
const WORKLOADS: u16 = 8006;
/// One guest processor is the rule; a second thread keeps requests going beside a blocking policy.
const WORKERS: usize = 2;
