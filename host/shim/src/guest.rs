//! The guest's agent as the shim speaks to it: every request bounded in time, counted, and its error named.

use std::future::Future;
use std::time::{Duration, Instant};

use protobuf::well_known_types::empty::Empty;
use tokio::sync::oneshot;
use tokio::time::timeout;
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
        let (agent, begun) = (self.agent.clone(), Instant::now());
        let answer = whole(async move { agent.create_container(with_duration(limit), &request).await }).await;
        self.metrics.guest_answered("grpc.CreateContainerRequest", begun.elapsed());
        answer.map_err(|error| Error::of_request("CreateContainer", limit, begun, error))
    }

    /// Asks whether it is there.
    pub(crate) async fn check(&self, limit: Duration) -> Result<(), Error> {
        let (health, begun) = (self.health.clone(), Instant::now());
        let answer = whole(async move { health.check(with_duration(limit), &CheckRequest::new()).await }).await;
        self.metrics.guest_answered("grpc.CheckRequest", begun.elapsed());
        answer.map(drop).map_err(|error| Error::of_request("Check", limit, begun, error))
    }

    /// Whether a request that is said to have ended with the connection may be sent anew, since the guest answers another.
    /// ttrpc numbers the requests of a connection, begins again some day, and then gives the place of one that still waits
    /// to a newer one.
    pub(crate) async fn outlives(&self, error: &Error) -> bool {
        if !matches!(error, Error::Closed { .. }) || self.check(PRESENCE).await.is_err() {
            return false;
        }
        tracing::warn!(%error, "the guest is there all the same, and is asked again");
        tokio::time::sleep(BETWEEN).await;
        true
    }
}

/// Carries a request through although its caller may be gone: ttrpc closes the connection, which ends the pod, when a request
/// is dropped while it is written.
async fn whole<T: Send + 'static>(
    request: impl Future<Output = ttrpc::Result<T>> + Send + 'static,
) -> ttrpc::Result<T> {
    let (mut tell, told) = oneshot::channel();
    tokio::spawn(async move {
        tokio::pin!(request);
        let answer = tokio::select! {
            answer = &mut request => Some(answer),
            // It was written long before that passes, and a guest that never answers can't gather them.
            () = tell.closed() => timeout(SHORT, request).await.ok(),
        };
        if let Some(answer) = answer {
            let _ = tell.send(answer);
        }
    });
    told.await.unwrap_or(Err(ttrpc::Error::LocalClosed))
}

/// One method a request: `name method request => answer, how long it may take`.
macro_rules! requests {
    ($($name:ident $method:ident $request:ty => $answer:ty, $limit:expr;)*) => {
        impl Guest {
            $(
                pub(crate) async fn $method(&self, request: $request) -> Result<$answer, Error> {
                    let (agent, begun) = (self.agent.clone(), Instant::now());
                    let answer = whole(async move { agent.$method(with_duration($limit), &request).await }).await;
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
/// For a guest to show that it is there.
const PRESENCE: Duration = Duration::from_secs(5);
/// Before a request is sent anew.
const BETWEEN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;
    use ttrpc::asynchronous::Client;
    use ttrpc::asynchronous::transport::Socket;

    #[tokio::test]
    async fn a_request_whose_caller_goes_while_it_is_written_is_written_to_its_end() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let client = Client::new(Socket::from(near));
        let guest = Guest::new(AgentServiceClient::new(client.clone()), HealthClient::new(client), Counted::new());
        // More than the socket takes.
        let request = CopyFileRequest { data: vec![7; 2 << 20], ..Default::default() };
        let mut header = [0; 10];
        tokio::select! {
            _ = guest.copy_file(request) => panic!("nobody answers"),
            read = far.read_exact(&mut header) => drop(read.unwrap()),
        }

        let length = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        assert!(length > 2 << 20);
        let mut rest = vec![0; length];
        timeout(SHORT, far.read_exact(&mut rest)).await.unwrap().unwrap();

        // And the connection is there for the next.
        tokio::select! {
            _ = guest.check(SHORT) => panic!("nobody answers"),
            read = far.read_exact(&mut header) => drop(read.unwrap()),
        }
    }
}
