//! The host's side of the guest agent's API: one connection, one method a request, one error for all of them.

use std::io;
use std::time::Duration;

use protobuf::well_known_types::empty::Empty;
use tokio::time::timeout;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use wire_ttrpc::agent::{
    AddARPNeighborsRequest, CloseStdinRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest,
    ExecProcessRequest, GetMetricsRequest, ReadStreamRequest, RemoveContainerRequest, SignalProcessRequest,
    StartContainerRequest, TtyWinResizeRequest, UpdateInterfaceRequest, UpdateRoutesRequest, WaitProcessRequest,
    WriteStreamRequest,
};
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::health::CheckRequest;
use wire_ttrpc::health_ttrpc::HealthClient;

use crate::channel::Channel;
use crate::{Directory, Error, SandboxName};

/// A connection to the agent in a guest. Clones share it.
#[derive(Clone)]
pub struct Agent {
    agent: AgentServiceClient,
    health: HealthClient,
}

impl Agent {
    /// Connects to the agent's port.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub(crate) async fn connect(channel: &Channel) -> Result<Self, Error> {
        // A guest that hangs takes no connection and refuses none.
        let connected = timeout(SHORT, channel.connect(AGENT_PORT)).await;
        let connected =
            connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")));
        Ok(Self::over(connected.map_err(Error::Connect)?))
    }

    /// The agent at the other end of a connection.
    pub(crate) fn over(socket: Socket) -> Self {
        let client = Client::new(socket);
        Self { agent: AgentServiceClient::new(client.clone()), health: HealthClient::new(client) }
    }

    /// Connects to the agent of a sandbox that another process owns.
    ///
    /// # Errors
    /// [`Error::NotRunning`], [`Error::Connect`].
    pub async fn of_sandbox(name: &SandboxName) -> Result<Self, Error> {
        let running = Channel::of_folder(&Directory::path_of(name));
        let channel = running.ok_or_else(|| Error::NotRunning { name: name.to_string() })?;
        Self::connect(&channel).await
    }

    /// The generated client, for whoever speaks all of the agent's API.
    pub fn service(&self) -> &AgentServiceClient {
        &self.agent
    }

    /// The generated client for the agent's health.
    pub fn health(&self) -> &HealthClient {
        &self.health
    }

    /// Asks whether the agent serves.
    ///
    /// # Errors
    /// [`Error::Guest`] and the others of a request.
    pub async fn check(&self) -> Result<(), Error> {
        const REQUEST: &str = "Check";
        let answer = self.health.check(context(SHORT), &CheckRequest::new()).await;
        answer.map(drop).map_err(|error| Error::of_request(REQUEST, SHORT.as_secs(), error))
    }
}

impl Agent {
    /// The guest's metrics in Prometheus text.
    ///
    /// # Errors
    /// [`Error::Denied`] unless the guest's policy allows it.
    pub async fn metrics(&self) -> Result<String, Error> {
        Ok(self.get_metrics(GetMetricsRequest::new()).await?.metrics)
    }
}

/// One method a request: `name, client's method, request, answer, how long it may take`.
macro_rules! requests {
    ($($name:ident $method:ident $request:ty => $answer:ty, $limit:expr;)*) => {
        impl Agent {
            $(
                pub(crate) async fn $method(&self, request: $request) -> Result<$answer, Error> {
                    let answer = self.agent.$method(context($limit), &request).await;
                    answer.map_err(|error| Error::of_request(stringify!($name), $limit.as_secs(), error))
                }
            )*
        }
    };
}

requests! {
    CreateSandbox create_sandbox CreateSandboxRequest => Empty, SHORT;
    DestroySandbox destroy_sandbox DestroySandboxRequest => Empty, SHORT;
    UpdateInterface update_interface UpdateInterfaceRequest => wire_ttrpc::types::Interface, SHORT;
    AddARPNeighbors add_arp_neighbors AddARPNeighborsRequest => Empty, SHORT;
    UpdateRoutes update_routes UpdateRoutesRequest => wire_ttrpc::agent::Routes, SHORT;
    GetMetrics get_metrics GetMetricsRequest => wire_ttrpc::agent::Metrics, SHORT;
    CreateContainer create_container CreateContainerRequest => Empty, PULL;
    StartContainer start_container StartContainerRequest => Empty, SHORT;
    RemoveContainer remove_container RemoveContainerRequest => Empty, SHORT;
    ExecProcess exec_process ExecProcessRequest => Empty, SHORT;
    SignalProcess signal_process SignalProcessRequest => Empty, SHORT;
    WaitProcess wait_process WaitProcessRequest => wire_ttrpc::agent::WaitProcessResponse, FOREVER;
    WriteStdin write_stdin WriteStreamRequest => wire_ttrpc::agent::WriteStreamResponse, FOREVER;
    CloseStdin close_stdin CloseStdinRequest => Empty, SHORT;
    TtyWinResize tty_win_resize TtyWinResizeRequest => Empty, SHORT;
    ReadStdout read_stdout ReadStreamRequest => wire_ttrpc::agent::ReadStreamResponse, FOREVER;
    ReadStderr read_stderr ReadStreamRequest => wire_ttrpc::agent::ReadStreamResponse, FOREVER;
}

fn context(limit: Duration) -> ttrpc::context::Context {
    ttrpc::context::with_duration(limit)
}

/// The agent's port in every guest.
pub(crate) const AGENT_PORT: u32 = 1024;
const SHORT: Duration = Duration::from_secs(60);
/// A pull over a slow line; the guest bounds stalls itself.
const PULL: Duration = Duration::from_secs(1200);
/// ttrpc's word for "no limit".
const FOREVER: Duration = Duration::ZERO;
