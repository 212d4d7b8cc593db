//! The parts put together: containerd's socket, the guests' sockets and the cache between them.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream;
use tokio::net::UnixListener;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};
use tonic::transport::{Endpoint, Server as Grpc};
use wire::blob;

use crate::cache::{self, Cache};
use crate::config::Config;
use crate::names::Names;
use crate::prefetch::Prefetch;
use crate::proto::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use crate::server::Server;
use crate::service::Snapshotter;
use crate::unpacking::Unpacking;

/// A snapshotter whose sockets are open.
pub struct Daemon {
    snapshotter: Snapshotter,
    containerd: UnixListener,
    server: Server,
    guests: UnixListener,
    /// The host kernel's vsock, where it has one.
    vsock: Option<VsockListener>,
}

impl Daemon {
    /// The socket for containerd, in [`Config::run_dir`].
    pub const CONTAINERD: &str = "containerd.sock";
    /// The socket for guests, there too.
    pub const GUESTS: &str = "blobs.sock";

    /// Opens the folders and the sockets.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(config: Config) -> Result<Self, Error> {
        let Config { run_dir, state_dir, cache_mib, registries, credentials, containerd } = config;
        let cache = Arc::new(Cache::open(state_dir.clone(), cache_mib.saturating_mul(1 << 20))?);
        let folder = |path: &Path, source: io::Error| Error::Folder { path: path.to_owned(), source };
        let unpacking = Unpacking::open(state_dir.join(UNPACKING)).map_err(|e| folder(&state_dir, e))?;
        std::fs::create_dir_all(&run_dir).map_err(|e| folder(&run_dir, e))?;
        let containerd = Endpoint::from_shared(format!("unix:{}", containerd.display()))
            .map_err(|_| Error::Address { path: containerd })?;
        let names = Names::new(containerd, run_dir.join(ROOTS));
        let prefetch = Arc::new(Prefetch::new(Arc::clone(&cache), registries, credentials));
        // The port is the machine's, and so only for the one snapshotter that sandboxes know.
        let vsock = (run_dir == Config::default().run_dir && Path::new(VHOST_VSOCK).exists())
            .then(|| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, blob::PORT)))
            .transpose()
            .unwrap_or_else(|error| {
                tracing::warn!(port = blob::PORT, %error, "guests of the host's kernel can't use the cache");
                None
            });
        Ok(Self {
            snapshotter: Snapshotter::new(unpacking, names, prefetch),
            containerd: listen(run_dir.join(Self::CONTAINERD))?,
            server: Server::new(cache),
            guests: listen(run_dir.join(Self::GUESTS))?,
            vsock,
        })
    }

    /// Serves until something fails.
    pub async fn serve(self) -> Error {
        let incoming = stream::unfold(self.containerd, async |listener| {
            Some((listener.accept().await.map(|(stream, _)| stream), listener))
        });
        let containerd =
            Grpc::builder().add_service(SnapshotsServer::new(self.snapshotter)).serve_with_incoming(Box::pin(incoming));
        let server = self.server.clone();
        let vsock = async {
            match self.vsock {
                Some(listener) => server.serve_vsock(listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = containerd => Error::Containerd(ended.err().map_or_else(String::new, |e| e.to_string())),
            never = self.server.serve_unix(self.guests) => match never {},
            never = vsock => match never {},
        }
    }
}

/// Listens on a socket that only root may connect to. One that an earlier process has left is replaced.
fn listen(path: PathBuf) -> Result<UnixListener, Error> {
    if UnixStream::connect(&path).is_ok() {
        return Err(Error::Running { path });
    }
    let unusable = |source| Error::Socket { path: path.clone(), source };
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unusable(e)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(unusable)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(unusable)?;
    Ok(listener)
}

/// Why the snapshotter can't serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cache can't be used.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// A folder can't be used.
    #[error("folder {path}: {source}; next: check run_dir and state_dir, and run as root")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A socket can't be opened.
    #[error("socket {path}: {source}; next: check run_dir, and run as root")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another snapshotter serves there.
    #[error("socket {path}: another process serves it; next: stop that one, or choose another run_dir")]
    Running {
        /// The socket.
        path: PathBuf,
    },
    /// containerd's own socket has no path that can be used.
    #[error("containerd's socket {path}: that is no path of a socket; next: check the key containerd")]
    Address {
        /// The path.
        path: PathBuf,
    },
    /// containerd's socket is no longer served.
    #[error("containerd's socket: {0}; next: start the snapshotter again")]
    Containerd(String),
}

const UNPACKING: &str = "unpacking";
const ROOTS: &str = "roots";
const VHOST_VSOCK: &str = "/dev/vhost-vsock";
