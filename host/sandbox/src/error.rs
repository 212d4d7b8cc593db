//! Why a sandbox could not do what it was asked: stage, cause, next step.

use std::io;
use std::path::PathBuf;

use crate::End;
use crate::config::MAX_COMMAND_LINE;

/// Why a sandbox could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "sandbox: \"{0}\" is not a name; next: use 1 to 76 of a-z, A-Z, 0-9, '_', '.' and '-', starting with a letter or digit"
    )]
    Name(String),
    #[error("sandbox: {name} is already running; next: choose another name or stop it first")]
    Running { name: String },
    #[error("sandbox: {name} is not running; next: start it with \"cocoon run --name {name}\"")]
    NotRunning { name: String },
    #[error("sandbox: {path} can't be used: {source}; next: check the folder's permissions and free space")]
    Directory { path: PathBuf, source: io::Error },
    #[error("sandbox: {what} can't be taken away: {source}; next: end it by hand")]
    CleanUp { what: String, source: io::Error },
    #[error(
        "sandbox: \"{0}\" is no kernel parameter for a guest; next: write one a string, in ASCII without spaces, and none that starts with \"cocoon\""
    )]
    KernelParameter(String),
    #[error(
        "sandbox: the kernel's command line has {length} bytes, and it reads {MAX_COMMAND_LINE}; next: leave out some kernel parameters"
    )]
    CommandLine { length: usize },
    #[error("sandbox: a TEE needs firmware made for it; next: name the file in the configuration")]
    Firmware,
    #[error("sandbox: the cgroup {path} can't be used: {source}; next: check the path and that the owner is root")]
    Cgroup { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Network(#[from] pod_network::Error),
    #[error(transparent)]
    Disk(#[from] hypervisor::hotplug::Error),
    #[error("channel: {0}")]
    Vsock(#[from] vsock_backend::Error),
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    #[error(transparent)]
    Remote(#[from] hypervisor::remote::Error),
    #[error("channel: the agent's socket {path} can't be reached: {source}; next: look at the adaptor's log")]
    AgentSocket { path: PathBuf, source: io::Error },
    #[error(
        "adaptor: a machine elsewhere gets a network namespace's addresses, and there is none; next: run it as a pod"
    )]
    NetworkElsewhere,
    #[error(
        "disk: the machine is elsewhere and gets no disk of this node, such as {0}; next: use a volume of files, or one that the adaptor attaches itself"
    )]
    DiskElsewhere(PathBuf),
    #[error("run: the pod's machine ended: {0}; next: {next}", next = .0.next())]
    Exited(End),
    #[error("boot: the guest refused to start: {0}")]
    Refused(String),
    #[error(
        "channel: the guest's agent can't be reached: {0}; next: see the end of the guest's console with \"cocoon doctor\""
    )]
    Connect(io::Error),
    #[error(
        "channel: the guest's agent closed the connection; next: see the end of the guest's console with \"cocoon doctor\""
    )]
    Closed,
    #[error("port forwarding: port {port}: {answer}; next: see docs/shim.md, \"Forwarded ports\"")]
    Port { port: u16, answer: wire::port_forward::Answer },
    #[error("{request}: {message}")]
    Denied { request: &'static str, message: String },
    #[error("{request}: the guest does not know this request; next: use a newer guest image")]
    Unimplemented { request: &'static str },
    #[error("{request}: the guest failed: {message}")]
    Guest { request: &'static str, message: String },
    #[error(
        "{request}: the guest did not answer within {seconds} s; next: see the end of its console with \"cocoon doctor\""
    )]
    Timeout { request: &'static str, seconds: u64 },
    #[error("output: the container's output can't be written: {0}; next: check where it goes")]
    Output(io::Error),
    #[error("input: the container's input can't be read: {0}; next: check where it comes from")]
    Input(io::Error),
}

impl Error {
    /// The error of an agent's answer.
    pub(crate) fn of_request(request: &'static str, seconds: u64, error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => {
                let message = status.message().to_owned();
                match status.code() {
                    ttrpc::Code::PERMISSION_DENIED => Self::Denied { request, message },
                    ttrpc::Code::UNIMPLEMENTED => Self::Unimplemented { request },
                    ttrpc::Code::DEADLINE_EXCEEDED => Self::Timeout { request, seconds },
                    _ => Self::Guest { request, message },
                }
            }
            // Our own clock was first, for which the library has no code.
            ttrpc::Error::Others(text) if text == DEADLINE => Self::Timeout { request, seconds },
            ttrpc::Error::Socket(_) | ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed => Self::Closed,
            other => Self::Guest { request, message: other.to_string() },
        }
    }
}

/// In ttrpc's words.
const DEADLINE: &str = "Request deadline elapsed";

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use ttrpc::asynchronous::Client;
    use ttrpc::asynchronous::transport::Socket;
    use wire_ttrpc::health::CheckRequest;
    use wire_ttrpc::health_ttrpc::HealthClient;

    #[tokio::test]
    async fn a_guest_that_does_not_answer_is_late_and_one_that_hangs_up_is_gone() {
        let (own, guest) = tokio::net::UnixStream::pair().unwrap();
        let client = HealthClient::new(Client::new(Socket::from(own)));
        let check = async || {
            let limit = ttrpc::context::with_duration(Duration::from_millis(20));
            let error = client.check(limit, &CheckRequest::new()).await.unwrap_err();
            Error::of_request("Check", 7, error)
        };
        assert!(matches!(check().await, Error::Timeout { request: "Check", seconds: 7 }));
        drop(guest);
        assert!(matches!(check().await, Error::Closed));
    }
}
