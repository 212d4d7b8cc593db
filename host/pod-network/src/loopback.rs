//! A namespace's loopback interface, whose connections the pod's machine answers in the place of programs on the node.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpStream};

use crate::bpf::Steering;

/// All that connects to 127.0.0.1 in a namespace while this value lives, whatever the port. Dropped, even with its whole
/// process, it leaves nothing.
#[derive(Debug)]
pub struct Loopback {
    listener: TcpListener,
    addresses: Vec<IpAddr>,
    _steering: Steering,
}

/// Somebody who connected, and the port that was meant.
#[derive(Debug)]
pub struct Caller {
    /// The connection.
    pub stream: TcpStream,
    /// The port.
    pub port: u16,
}

/// The parts of a [`Loopback`], made on a thread that is in the namespace.
pub(crate) struct Parts {
    pub(crate) listener: std::net::TcpListener,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) steering: Steering,
}

impl Loopback {
    pub(crate) fn of(parts: Parts) -> io::Result<Self> {
        let Parts { listener, addresses, steering } = parts;
        listener.set_nonblocking(true)?;
        Ok(Self { listener: TcpListener::from_std(listener)?, addresses, _steering: steering })
    }

    /// The pod's own addresses, at which the rest of its network reaches it.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn accept(&self) -> io::Result<Caller> {
        let (stream, _) = self.listener.accept().await?;
        let port = stream.local_addr()?.port();
        Ok(Caller { stream, port })
    }
}

/// Where the socket listens; its own port says nothing.
pub(crate) const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
