//! The channel between the host and a pod's guest, for the time that one round trip takes on it.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;
use wire_ttrpc::health::CheckRequest;
use wire_ttrpc::health_ttrpc::HealthClient;

/// A connection to a guest's agent of its own, beside the shim's.
pub struct Channel(HealthClient);

impl Channel {
    /// The channel of the sandbox with this folder: the host kernel's, or through the shim.
    pub async fn open(folder: &Path) -> Self {
        let client = match std::fs::read_to_string(folder.join("cid")) {
            Ok(cid) => Client::connect(&format!("vsock://{}:{AGENT_PORT}", cid.trim())).await.unwrap(),
            Err(_) => Client::new(Socket::from(through_shim(folder).await)),
        };
        Self(HealthClient::new(client))
    }

    /// Asks the agent whether it is there, which no policy is asked about.
    pub async fn round_trip(&self) {
        let limit = context::with_duration(Duration::from_secs(10));
        self.0.check(limit, &CheckRequest::new()).await.unwrap();
    }
}

async fn through_shim(folder: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(folder.join("vsock.sock")).await.unwrap();
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
    stream
}

const AGENT_PORT: u32 = 1024;
