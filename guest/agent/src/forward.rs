//! Forwarded ports: connects the host to what listens on the guest's loopback interface, where the policy allows it.
//!
//! A port of the pod's own address is anybody's who reaches the pod's network. On the loopback interface listens what is
//! meant for the pod alone, and for the owner's policy to give away: rule `PortForwardRequest`, input `{"port": 8080}`.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use ttrpc::asynchronous::transport::Listener;
use wire::port_forward::Answer;

use crate::agent::{Agent, Error};

impl Agent {
    /// Connects the host to ports of the loopback interface until the future is dropped.
    ///
    /// `address` is `vsock://-1:1031` in a guest, or `unix://` and a path. `withheld` are ports of the guest's own services,
    /// which no policy opens: what they tell containers is not the host's to know.
    ///
    /// # Errors
    /// [`Error::Listen`] where nothing can be listened on.
    pub async fn serve_ports(self: Arc<Self>, address: &str, withheld: &'static [u16]) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Listen(address.to_owned(), ttrpc::Error::Others(error.to_string()));
        let mut listener = Listener::bind(address).map_err(failed)?;
        let mut carried = JoinSet::new();
        loop {
            tokio::select! {
                // Further hosts wait: each one takes descriptors that the guest needs.
                host = listener.next(), if carried.len() < AT_ONCE => match host {
                    Some(Ok(host)) => {
                        let agent = Arc::clone(&self);
                        carried.spawn(async move {
                            if let Err(error) = agent.forward(host, withheld).await {
                                tracing::debug!(%error, "a forwarded port's connection ended");
                            }
                        });
                    }
                    Some(Err(error)) => {
                        tracing::warn!(%error, "a host that wants a port is lost");
                        // Where descriptors are short, the next attempt would fail at once.
                        sleep(PAUSE).await;
                    }
                    None => break,
                },
                Some(_) = carried.join_next() => {}
            }
        }
        Err(failed(io::ErrorKind::BrokenPipe.into()))
    }

    /// Carries one connection of the host.
    async fn forward(&self, mut host: impl AsyncRead + AsyncWrite + Unpin, withheld: &[u16]) -> io::Result<()> {
        let port = timeout(PATIENCE, host.read_u16()).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let opened = if withheld.contains(&port) {
            Err(Answer::Withheld)
        } else if self.decide(RULE, json!({"port": port})).await.is_err() {
            Err(Answer::Denied)
        } else {
            connect(port).await.ok_or(Answer::Closed)
        };
        match opened {
            Ok(mut program) => {
                host.write_u8(Answer::Connected.byte()).await?;
                copy_bidirectional(&mut host, &mut program).await.map(drop)
            }
            Err(answer) => {
                tracing::info!(port, "{answer}");
                host.write_u8(answer.byte()).await?;
                host.shutdown().await
            }
        }
    }
}

/// Whoever listens on either of the loopback interface's addresses.
async fn connect(port: u16) -> Option<TcpStream> {
    match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
        Ok(program) => Some(program),
        Err(_) => TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.ok(),
    }
}

const RULE: &str = "PortForwardRequest";
/// For a host to say which port it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// As many as the shim carries for one pod.
const AT_ONCE: usize = 256;
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use async_trait::async_trait;
    use tokio::net::{TcpListener, UnixStream};
    use tokio::sync::watch;

    use crate::agent::{AgentConfig, Drivers};
    use crate::images::{ImageError, Images, PulledImage, ResolvedImage};
    use crate::policy::Policy;

    #[tokio::test]
    async fn a_port_that_the_policy_opens_is_the_host_s_until_both_have_said_all() {
        let echo = Echo::start("127.0.0.1:0").await;
        let guest = Guest::with(&format!("PortForwardRequest if input.port == {}", echo.port)).await;

        let (answer, mut stream) = guest.ask(echo.port).await;
        assert_eq!(answer, Answer::Connected);
        stream.write_all(b"ping").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "ping");
    }

    #[tokio::test]
    async fn who_listens_on_the_newer_protocol_alone_is_found_too() {
        let echo = Echo::start("[::1]:0").await;
        let guest = Guest::with("PortForwardRequest := true").await;
        assert_eq!(guest.ask(echo.port).await.0, Answer::Connected);
    }

    #[tokio::test]
    async fn everything_else_is_refused_by_its_reason_and_the_connection_closed() {
        let echo = Echo::start("127.0.0.1:0").await;
        let silent = Guest::with("").await;
        let choosy = Guest::with(&format!("PortForwardRequest if input.port != {}", echo.port)).await;
        let open = Guest::with("PortForwardRequest := true").await;
        for (guest, port, expected) in [
            (&silent, echo.port, Answer::Denied),
            (&choosy, echo.port, Answer::Denied),
            // No policy opens what is the guest's own.
            (&open, WITHHELD, Answer::Withheld),
            (&open, 0, Answer::Closed),
        ] {
            let (answer, mut stream) = guest.ask(port).await;
            assert_eq!(answer, expected, "port {port}");
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{answer:?}");
        }
    }

    struct Guest {
        folder: tempfile::TempDir,
    }

    impl Guest {
        async fn with(rules: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let agent = Arc::new(agent(rules, folder.path()));
            let address = format!("unix://{}/ports", folder.path().display());
            tokio::spawn(async move { agent.serve_ports(&address, &[WITHHELD]).await.unwrap() });
            Self { folder }
        }

        /// What the guest answers to a host that wants this port.
        async fn ask(&self, port: u16) -> (Answer, UnixStream) {
            // The listener is made when its task first runs.
            let mut stream = loop {
                match UnixStream::connect(self.folder.path().join("ports")).await {
                    Ok(stream) => break stream,
                    Err(_) => tokio::task::yield_now().await,
                }
            };
            stream.write_u16(port).await.unwrap();
            let answer = Answer::of_byte(stream.read_u8().await.unwrap()).unwrap();
            (answer, stream)
        }
    }

    /// A program that says what is said to it.
    struct Echo {
        port: u16,
    }

    impl Echo {
        async fn start(address: &str) -> Self {
            let listener = TcpListener::bind(address).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (mut from, mut to) = stream.into_split();
                    tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
                }
            });
            Self { port }
        }
    }

    fn agent(rules: &str, folder: &Path) -> Agent {
        let config = AgentConfig {
            policy: Policy::parse(&format!("package agent_policy\n{rules}")).unwrap(),
            images: Arc::new(NoImages),
            secrets: None,
            disks: None,
            helper: "/bin/false".into(),
            root: folder.join("root"),
            resolv_conf: None,
            drivers: watch::channel(Drivers::All).1,
            version: String::new(),
        };
        Agent::new(config).unwrap()
    }

    struct NoImages;

    #[async_trait]
    impl Images for NoImages {
        async fn resolve(&self, _: &str) -> Result<ResolvedImage, ImageError> {
            Err(ImageError("there are none".to_owned()))
        }

        async fn pull(&self, _: &ResolvedImage, _: &Path) -> Result<PulledImage, ImageError> {
            Err(ImageError("there are none".to_owned()))
        }

        async fn release(&self, _: &Path) {}
    }

    const WITHHELD: u16 = 8006;
}
