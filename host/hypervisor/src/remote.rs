//! A machine elsewhere ("peer pod"): made, started and ended by an adaptor that listens on a socket of the node.
//!
//! The protocol is upstream's `hypervisor.Hypervisor`, whose usual server is cloud-api-adaptor. It carries what a machine
//! shall be as annotations, all of them in each request, empty where nothing is said.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::with_duration;
use wire_ttrpc::remote_hypervisor::{CreateVMRequest, StartVMRequest, StopVMRequest, VersionRequest};
use wire_ttrpc::remote_hypervisor_ttrpc::HypervisorClient;

/// Where the adaptor is, and how long it may take.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Adaptor {
    /// Its socket.
    pub socket: PathBuf,
    /// For starting a machine, and for ending one.
    pub limit: Duration,
}

/// What a machine shall be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RemoteVmConfig {
    /// The pod's name in Kubernetes.
    pub pod_name: String,
    /// The pod's namespace in Kubernetes.
    pub pod_namespace: String,
    /// The cloud's name for a kind of machine; empty for one that fits.
    pub machine_type: String,
    /// Processors.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The cloud's name of the guest image; empty for the adaptor's own.
    pub image: String,
    /// The owner's initdata as it was written; empty if there is none.
    pub initdata: String,
    /// Graphics processors.
    pub gpus: u32,
    /// Which; empty for any.
    pub gpu_model: String,
    /// The network namespace on the node whose addresses the machine gets.
    pub network_namespace: PathBuf,
}

/// Why the adaptor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody serves its socket.
    #[error(
        "adaptor: {socket} can't be reached: {source}; next: start the adaptor that makes machines elsewhere, or correct remote_hypervisor_socket"
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It said no.
    #[error("adaptor: {request} was refused: {message}; next: look at the adaptor's log")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// Its words.
        message: String,
    },
    /// It said nothing.
    #[error(
        "adaptor: no answer to {request} within {seconds} s; next: look at the adaptor's log, or raise remote_hypervisor_timeout"
    )]
    Timeout {
        /// What was asked.
        request: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It ended.
    #[error("adaptor: it hung up on {request}; next: look at the adaptor's log for why it ended")]
    Closed {
        /// What was asked.
        request: &'static str,
    },
    /// It has made a machine that nobody can use.
    #[error(
        "adaptor: CreateVM was answered with {0:?} for the agent's socket, which is no path; next: use another adaptor"
    )]
    NoSocket(String),
}

impl Adaptor {
    /// What the adaptor says of its version, by which one also learns whether it answers at all.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Timeout`] and the others of a request.
    pub async fn version(&self) -> Result<String, Error> {
        let client = self.connect().await?;
        let request = VersionRequest::new();
        let answer = answered("Version", QUICK, client.version(with_duration(QUICK), &request)).await?;
        Ok(plain(&answer.version))
    }

    /// Has everything prepared for a machine, which costs nothing yet, and gives the socket of its agent-to-be.
    ///
    /// # Errors
    /// As [`Adaptor::version`]. Whatever the error, there may be something that [`Adaptor::stop`] has to take away.
    pub async fn create(&self, id: &str, config: &RemoteVmConfig) -> Result<PathBuf, Error> {
        let client = self.connect().await?;
        let request = config.request(id);
        let answer = answered("CreateVM", PREPARATION, client.create_vm(with_duration(PREPARATION), &request)).await?;
        let socket = PathBuf::from(&answer.agentSocketPath);
        if !socket.is_absolute() || answer.agentSocketPath.contains('\0') {
            return Err(Error::NoSocket(plain(&answer.agentSocketPath)));
        }
        Ok(socket)
    }

    /// Starts the machine. Its agent can be reached when this returns.
    ///
    /// # Errors
    /// As [`Adaptor::create`].
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        let client = self.connect().await?;
        let request = StartVMRequest { id: id.to_owned(), ..StartVMRequest::default() };
        answered("StartVM", self.limit, client.start_vm(with_duration(self.limit), &request)).await.map(drop)
    }

    /// Ends the machine and all that belongs to it. An adaptor that is just being restarted is waited for.
    ///
    /// One that answers knows of it, whatever the answer: after its restart it may not know the machine any more, and what
    /// it can't end now is for its own controller to end.
    ///
    /// # Errors
    /// As [`Adaptor::version`], but for [`Error::Refused`]: nobody has heard it, and it has to be said again.
    pub async fn stop(&self, id: &str) -> Result<(), Error> {
        let deadline = Instant::now() + RESTART;
        let client = loop {
            match self.connect().await {
                // There is no event that would tell of its return.
                Err(Error::Unreachable { .. }) if Instant::now() < deadline => sleep(PAUSE).await,
                connected => break connected?,
            }
        };
        let request = StopVMRequest { id: id.to_owned(), ..StopVMRequest::default() };
        match answered("StopVM", self.limit, client.stop_vm(with_duration(self.limit), &request)).await {
            Err(Error::Refused { message, .. }) => {
                tracing::warn!(id, message, "the adaptor did not end a machine, or has none of this name");
                Ok(())
            }
            answer => answer.map(drop),
        }
    }

    /// A connection for one request. Whoever drops it before the answer takes the request back.
    async fn connect(&self) -> Result<HypervisorClient, Error> {
        let unreachable = |source| Error::Unreachable { socket: self.socket.clone(), source };
        let connected = timeout(QUICK, UnixStream::connect(&self.socket)).await;
        let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
        Ok(HypervisorClient::new(Client::new(Socket::from(stream))))
    }
}

impl RemoteVmConfig {
    fn request(&self, id: &str) -> CreateVMRequest {
        let annotations = [
            ("io.kubernetes.cri.sandbox-name", self.pod_name.clone()),
            ("io.kubernetes.cri.sandbox-namespace", self.pod_namespace.clone()),
            ("io.katacontainers.config.hypervisor.machine_type", self.machine_type.clone()),
            ("io.katacontainers.config.hypervisor.default_vcpus", self.vcpus.to_string()),
            ("io.katacontainers.config.hypervisor.default_memory", self.memory_mib.to_string()),
            ("io.katacontainers.config.hypervisor.image", self.image.clone()),
            // The document itself: its bytes are what the digest is of.
            ("io.katacontainers.config.hypervisor.cc_init_data", self.initdata.clone()),
            ("io.katacontainers.config.hypervisor.default_gpus", self.gpus.to_string()),
            ("io.katacontainers.config.hypervisor.default_gpu_model", self.gpu_model.clone()),
        ];
        CreateVMRequest {
            id: id.to_owned(),
            annotations: annotations.map(|(name, value)| (name.to_owned(), value)).into(),
            networkNamespacePath: path_text(&self.network_namespace),
            ..CreateVMRequest::default()
        }
    }
}

/// Waits for an answer. The limit is in the request, too, for the other side.
async fn answered<T>(
    request: &'static str,
    limit: Duration,
    answer: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, Error> {
    let begun = Instant::now();
    let late = || Error::Timeout { request, seconds: limit.as_secs() };
    answer.await.map_err(|error| match error {
        ttrpc::Error::RpcStatus(status) if status.code() == ttrpc::Code::DEADLINE_EXCEEDED => late(),
        ttrpc::Error::RpcStatus(status) => Error::Refused { request, message: plain(status.message()) },
        // The library has no code for its own clock.
        ttrpc::Error::Others(_) if begun.elapsed() >= limit => late(),
        _ => Error::Closed { request },
    })
}

/// What somebody else says, fit for a log and a terminal.
fn plain(words: &str) -> String {
    words.chars().take(MAX_WORDS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// For what the adaptor does without any cloud.
const QUICK: Duration = Duration::from_secs(10);
/// Upstream's adaptor looks at the pod's network and asks Kubernetes for secrets.
const PREPARATION: Duration = Duration::from_secs(60);
/// For an adaptor to be restarted.
const RESTART: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);
const MAX_WORDS: usize = 1000;

#[cfg(test)]
mod tests;
