//! Servers of the guest: ttrpc on unix sockets, whose file appears when the server answers and not before, and gRPC.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use ttrpc::r#async::{Server, Service};

/// Where a service is offered, which also says how.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `unix://` and an absolute path: ttrpc.
    Ttrpc(PathBuf),
    /// An IP address and a port: gRPC.
    Grpc(SocketAddr),
}

impl Address {
    /// Parses either form.
    ///
    /// # Errors
    /// [`Error::Address`] for another form, [`Error::NotLoopback`] for an IP address that others can reach: tokens,
    /// keys and secrets go over these services in clear.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refused = || Error::Address(text.to_owned());
        if let Some(path) = text.strip_prefix(SCHEME).map(Path::new) {
            let named = path.is_absolute() && path.file_name().is_some();
            return if named { Ok(Self::Ttrpc(path.to_owned())) } else { Err(refused()) };
        }
        let address: SocketAddr = text.parse().map_err(|_| refused())?;
        if address.ip().is_loopback() { Ok(Self::Grpc(address)) } else { Err(Error::NotLoopback(address)) }
    }
}

/// How a program serves, where its name says so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// Its name starts with `ttrpc-`.
    Ttrpc,
    /// Its name starts with `grpc-`.
    Grpc,
}

impl Protocol {
    /// The one that the name of the program fixes; another name leaves it to the address.
    pub fn of_program(name: &OsStr) -> Option<Self> {
        let name = Path::new(name).file_name()?.to_str()?;
        let named = |start| name.starts_with(start);
        if named("ttrpc-") { Some(Self::Ttrpc) } else { named("grpc-").then_some(Self::Grpc) }
    }

    /// The address to serve at, as it was configured or else the protocol's default.
    ///
    /// # Errors
    /// [`Error`] for what is no address, or one of the other protocol.
    pub fn address(
        fixed: Option<Self>,
        configured: Option<&str>,
        ttrpc: &str,
        grpc: &str,
    ) -> Result<(String, Address), Error> {
        let text = configured.unwrap_or(if fixed == Some(Self::Grpc) { grpc } else { ttrpc });
        let address = Address::parse(text)?;
        match (fixed, &address) {
            (Some(Self::Ttrpc), Address::Grpc(_)) | (Some(Self::Grpc), Address::Ttrpc(_)) => {
                Err(Error::Address(text.to_owned()))
            }
            _ => Ok((text.to_owned(), address)),
        }
    }
}

/// A running server. It stops to accept connections when this is dropped.
pub struct Endpoint {
    _server: Running,
    grpc: Option<SocketAddr>,
}

impl Endpoint {
    /// Serves `services` over ttrpc at `address`, which is `unix://` and an absolute path.
    ///
    /// Whoever waits for the socket's file to appear can connect at once; a file that is left from before is replaced.
    ///
    /// # Errors
    /// [`Error`] if the address has another form, or the socket can't be made.
    pub async fn open(address: &str, services: HashMap<String, Service>) -> Result<Self, Error> {
        let Address::Ttrpc(path) = Address::parse(address)? else {
            return Err(Error::Address(address.to_owned()));
        };
        let failed = |cause: io::Error| Error::Socket { path: path.clone(), cause: cause.to_string() };
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(failed)?;
        }
        // A socket's file exists before it listens, so it gets its name only afterwards.
        let unnamed = path.with_extension("starting");
        remove(&unnamed).await.map_err(failed)?;
        // Nobody may take the file of a server that has ended for one that is about to answer.
        remove(&path).await.map_err(failed)?;
        let refused = |cause: ttrpc::Error| Error::Socket { path: path.clone(), cause: cause.to_string() };
        let mut server =
            Server::new().bind(&format!("{SCHEME}{}", unnamed.display())).map_err(refused)?.register_service(services);
        server.start().await.map_err(refused)?;
        tokio::fs::rename(&unnamed, &path).await.map_err(failed)?;
        tracing::info!(address, "serving ttrpc");
        Ok(Self { _server: Running::Ttrpc(server), grpc: None })
    }

    /// Serves `routes` over gRPC at `address`, a loopback address with a port. It answers once this returns.
    ///
    /// # Errors
    /// [`Error`] if the address has another form or can't be had.
    pub async fn open_grpc(address: &str, routes: Routes) -> Result<Self, Error> {
        let Address::Grpc(address) = Address::parse(address)? else {
            return Err(Error::Address(address.to_owned()));
        };
        let failed = |cause: io::Error| Error::Tcp { address, cause: cause.to_string() };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(incoming);
        let task = tokio::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!(%error, "gRPC is not served any longer");
            }
        });
        tracing::info!(%bound, "serving gRPC");
        Ok(Self { _server: Running::Grpc(Abort(task)), grpc: Some(bound) })
    }

    /// The address that gRPC is served at, which has a port even where none was asked for.
    pub fn grpc_address(&self) -> Option<SocketAddr> {
        self.grpc
    }
}

/// Why an address can't be served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An address that is not of the form expected.
    #[error("address {0:?}; next: write it as unix:///absolute/path.sock for ttrpc, or 127.0.0.1:50002 for gRPC")]
    Address(String),
    /// Secrets would leave the guest in clear.
    #[error("address {0} can be reached from outside, and tokens and keys go over it in clear; next: use 127.0.0.1")]
    NotLoopback(SocketAddr),
    /// The operating system said no.
    #[error("socket {}: {cause}; next: check that the folder can be written", path.display())]
    Socket {
        /// The socket's file.
        path: PathBuf,
        /// What it said.
        cause: String,
    },
    /// The port can't be had.
    #[error("{address}: {cause}; next: check that nothing else in the guest listens there")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        cause: String,
    },
}

/// Each ends its server when it is dropped.
enum Running {
    Ttrpc(#[expect(dead_code, reason = "held for its end")] Server),
    Grpc(#[expect(dead_code, reason = "held for its end")] Abort),
}

struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn remove(path: &Path) -> io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const SCHEME: &str = "unix://";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_left_from_before_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("new/agent.sock");
        let address = format!("unix://{}", socket.display());

        drop(Endpoint::open(&address, HashMap::new()).await.unwrap());
        let _endpoint = Endpoint::open(&address, HashMap::new()).await.unwrap();

        tokio::net::UnixStream::connect(&socket).await.unwrap();
        assert_eq!(std::fs::read_dir(socket.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_grpc_port_is_free_again_after_its_server() {
        let endpoint = Endpoint::open_grpc("127.0.0.1:0", Routes::default()).await.unwrap();
        let address = endpoint.grpc_address().unwrap().to_string();
        let error = Endpoint::open_grpc(&address, Routes::default()).await.err().unwrap().to_string();
        assert!(error.starts_with(&address) && error.contains("; next: "), "{error}");

        drop(endpoint);
        let free = async {
            while Endpoint::open_grpc(&address, Routes::default()).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), free).await.unwrap();
    }

    #[test]
    fn a_programs_name_fixes_the_protocol() {
        let (unix, port) = ("unix:///run/x.sock", "127.0.0.1:1");
        for (name, configured, expected) in [
            ("/usr/local/bin/attestation-agent", None, Some("unix:///d")),
            ("ttrpc-aa", None, Some("unix:///d")),
            ("/bin/grpc-aa", None, Some("127.0.0.1:9")),
            ("confidential-data-hub", Some(unix), Some(unix)),
            ("confidential-data-hub", Some(port), Some(port)),
            ("ttrpc-cdh", Some(unix), Some(unix)),
            ("grpc-cdh", Some(port), Some(port)),
            ("grpc-cdh", Some(unix), None),
            ("ttrpc-cdh", Some(port), None),
            ("attestation-agent", Some("nonsense"), None),
        ] {
            let fixed = Protocol::of_program(OsStr::new(name));
            let address = Protocol::address(fixed, configured, "unix:///d", "127.0.0.1:9");
            assert_eq!(address.ok().map(|(text, _)| text).as_deref(), expected, "{name} {configured:?}");
        }
        assert_eq!(Protocol::of_program(OsStr::new("")), None);
    }

    #[test]
    fn an_address_says_which_protocol_is_spoken() {
        assert_eq!(Address::parse("unix:///run/a.sock").unwrap(), Address::Ttrpc("/run/a.sock".into()));
        assert!(matches!(Address::parse("127.0.0.1:50002"), Ok(Address::Grpc(_))));
        assert!(matches!(Address::parse("[::1]:50002"), Ok(Address::Grpc(_))));
        for bad in ["", "/run/x.sock", "unix://x.sock", "unix:///", "tcp://127.0.0.1:1", "vsock://1:1", "localhost:1"] {
            assert!(matches!(Address::parse(bad), Err(Error::Address(_))), "{bad:?} passed");
        }
        for bad in ["0.0.0.0:50002", "10.0.0.1:1", "[::]:1"] {
            assert!(matches!(Address::parse(bad), Err(Error::NotLoopback(_))), "{bad:?} passed");
        }
    }
}
