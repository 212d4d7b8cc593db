//! The guest's agent as the shim speaks to it: every request bounded in time, counted, and its error named.

use std::time::{Duration, Instant};

use protobuf::well_known_types::empty::Empty;
use ttrpc::context::with_duration;
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::health::CheckRequest;
use wire_ttrpc::health_ttrpc::HealthClient;

use crate::Error;
use crate::metrics::Metrics as Counted;

/// The agent in a pod's guest. Clones share the connection, and no request waits for another.
#[derive(Clone)]
pub(crate) struct Guest {
    agent: AgentServiceClient,
    health: HealthClient,
    metrics: Counted,
}

impl Guest {
    pub(crate) fn new(agent: AgentServiceClient, health: HealthClient, metrics: Counted) -> Self {
        Self { agent, health, metrics }
    }
}

impl Guest {
    /// Creates a container: as long as its image may take to be pulled.
    pub(crate) async fn create_container(
        &self,
        request: CreateContainerRequest,
        limit: Duration,
    ) -> Result<Empty, Error> {
        let begun = Instant::now();
        let answer = self.agent.create_container(with_duration(limit), &request).await;
        self.metrics.guest_answered("grpc.CreateContainerRequest", begun.elapsed());
        answer.map_err(|error| Error::of_request("CreateContainer", limit, begun, error))
    }

    /// Asks whether it is there.
    pub(crate) async fn check(&self, limit: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        let answer = self.health.check(with_duration(limit), &CheckRequest::new()).await;
        self.metrics.guest_answered("grpc.CheckRequest", begun.elapsed());
        answer.map(drop).map_err(|error| Error::of_request("Check", limit, begun, error))
    }
}

/// One method a request: `name method request => answer, how long it may take`.
macro_rules! requests {
    ($($name:ident $method:ident $request:ty => $answer:ty, $limit:expr;)*) => {
        impl Guest {
            $(
                pub(crate) async fn $method(&self, request: $request) -> Result<$answer, Error> {
                    let begun = Instant::now();
                    let answer = self.agent.$method(with_duration($limit), &request).await;
                    self.metrics.guest_answered(concat!("grpc.", stringify!($request)), begun.elapsed());
                    answer.map_err(|error| Error::of_request(stringify!($name), $limit, begun, error))
                }
            )*
        }
    };
}

requests! {
    StartContainer start_container StartContainerRequest => Empty, SHORT;
    RemoveContainer remove_container RemoveContainerRequest => Empty, SHORT;
    ExecProcess exec_process ExecProcessRequest => Empty, SHORT;
    SignalProcess signal_process SignalProcessRequest => Empty, SIGNAL;
    WaitProcess wait_process WaitProcessRequest => WaitProcessResponse, FOREVER;
    UpdateContainer update_container UpdateContainerRequest => Empty, SHORT;
    StatsContainer stats_container StatsContainerRequest => StatsContainerResponse, SHORT;
    PauseContainer pause_container PauseContainerRequest => Empty, SHORT;
    ResumeContainer resume_container ResumeContainerRequest => Empty, SHORT;
    WriteStdin write_stdin WriteStreamRequest => WriteStreamResponse, FOREVER;
    CloseStdin close_stdin CloseStdinRequest => Empty, SHORT;
    ReadStdout read_stdout ReadStreamRequest => ReadStreamResponse, FOREVER;
    ReadStderr read_stderr ReadStreamRequest => ReadStreamResponse, FOREVER;
    TtyWinResize tty_win_resize TtyWinResizeRequest => Empty, SHORT;
    CopyFile copy_file CopyFileRequest => Empty, SHORT;
    GetDiagnosticData get_diagnostic_data GetDiagnosticDataRequest => GetDiagnosticDataResponse, SHORT;
    GetOOMEvent get_oom_event GetOOMEventRequest => OOMEvent, FOREVER;
    GetVolumeStats get_volume_stats VolumeStatsRequest => VolumeStatsResponse, SHORT;
    GetMetrics get_metrics GetMetricsRequest => Metrics, SHORT;
}

const SHORT: Duration = Duration::from_secs(60);
/// A guest that takes no signal in this time takes none: its machine can still be ended.
const SIGNAL: Duration = Duration::from_secs(10);
/// ttrpc's word for "no limit".
const FOREVER: Duration = Duration::ZERO;
