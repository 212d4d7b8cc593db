//! The guest's ports as the host reaches them: through the host kernel's vsock, or through our back end's socket.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::Vsock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Socket;
use vsock_backend::{Backend, BackendConfig};

use crate::agent::AGENT_PORT;
use crate::{Directory, Error};

/// How one guest's ports are reached.
#[derive(Clone, Debug)]
pub(crate) enum Channel {
    /// A unix socket that takes `CONNECT <port>`.
    Hybrid(PathBuf),
    /// A unix socket that leads to the agent of a machine elsewhere, and to nothing else there.
    Agent(PathBuf),
    /// The host kernel's vsock.
    Kernel {
        /// The guest's context id.
        cid: u32,
    },
}

impl Channel {
    /// The host kernel's vsock where it has it, else our own back end, with what QEMU must be told.
    ///
    /// # Errors
    /// [`Error::Directory`], [`Error::Vsock`].
    pub(crate) fn open(directory: &Directory) -> Result<(Self, Vsock, Option<Backend>), Error> {
        if let Some(device) = kernel_vsock(Path::new(VHOST)) {
            let cid = random_cid();
            directory.write(CID, |file| write!(file, "{cid}"))?;
            return Ok((Self::Kernel { cid }, Vsock::Kernel { cid, device: Arc::new(device.into()) }, None));
        }
        let (socket, uds) = (directory.path().join("vhost.sock"), directory.path().join(VSOCK));
        // A guest that asks for a blob is connected to the node's cache, where there is one.
        let cache = directory.path().join(format!("{VSOCK}_{}", wire::blob::PORT));
        std::os::unix::fs::symlink(BLOB_CACHE, &cache).map_err(|source| Error::Directory { path: cache, source })?;
        let backend = Backend::start(BackendConfig { socket: socket.clone(), uds: uds.clone(), guest_cid: GUEST_CID })?;
        Ok((Self::Hybrid(uds), Vsock::UserBackend { socket }, Some(backend)))
    }

    /// The channel of a sandbox that another process owns, by its folder; none if it does not run.
    pub(crate) fn of_folder(folder: &Path) -> Option<Self> {
        match std::fs::read_to_string(folder.join(CID)) {
            Ok(cid) => Some(Self::Kernel { cid: cid.parse().ok()? }),
            Err(_) if folder.join(AGENT).exists() => Some(Self::Agent(folder.join(AGENT))),
            Err(_) => folder.join(VSOCK).exists().then(|| Self::Hybrid(folder.join(VSOCK))),
        }
    }

    /// Connects to a port of the guest.
    pub(crate) async fn connect(&self, port: u32) -> io::Result<Socket> {
        match self {
            Self::Hybrid(socket) => Ok(Socket::from(hybrid(socket, port).await?)),
            Self::Agent(socket) if port == AGENT_PORT => Ok(Socket::from(UnixStream::connect(socket).await?)),
            Self::Agent(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "a machine elsewhere has its agent's port only"))
            }
            Self::Kernel { cid } => {
                let address = tokio_vsock::VsockAddr::new(*cid, port);
                Ok(Socket::from(tokio_vsock::VsockStream::connect(address).await?))
            }
        }
    }
}

/// Where the agent of the sandbox in this folder is reached, as Kata's tools write it; empty if it does not run.
pub fn agent_url(folder: &Path) -> String {
    match Channel::of_folder(folder) {
        Some(Channel::Hybrid(socket)) => format!("hvsock://{}:{AGENT_PORT}", socket.display()),
        Some(Channel::Agent(socket)) => format!("unix://{}", socket.display()),
        Some(Channel::Kernel { cid }) => format!("vsock://{cid}:{AGENT_PORT}"),
        None => String::new(),
    }
}

/// The host kernel's vsock for guests, where it has one. The device's file may be there without a driver behind it.
fn kernel_vsock(device: &Path) -> Option<File> {
    match File::options().read(true).write(true).open(device) {
        Ok(device) => Some(device),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::info!(device = %device.display(), %error, "the host kernel's vsock can't be used; using our own back end");
            None
        }
    }
}

/// A context id for the host's kernel; 0 to 2 and the highest have a meaning. QEMU refuses one that is taken.
fn random_cid() -> u32 {
    let random = RandomState::new().hash_one(std::process::id());
    (random as u32).clamp(3, u32::MAX - 1)
}

/// Connects to a guest's port through the unix socket of a hybrid vsock.
async fn hybrid(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    // Byte by byte: what follows the line belongs to the guest's first message.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        if line.len() > 64 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the channel's answer is not a line"));
        }
        line.push(stream.read_u8().await?);
    }
    if line.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(io::Error::new(io::ErrorKind::ConnectionRefused, format!("nobody listens on the guest's port {port}")))
    }
}

/// The socket of the node's blob cache.
const BLOB_CACHE: &str = "/run/cocoon-snapshotter/blobs.sock";
/// The host kernel's vsock for guests.
const VHOST: &str = "/dev/vhost-vsock";
/// The link to the agent's socket in the folder of a sandbox whose machine is elsewhere.
pub(crate) const AGENT: &str = "agent.sock";
/// The hybrid socket in the sandbox's folder.
const VSOCK: &str = "vsock.sock";
/// The file in the sandbox's folder with the guest's context id in the host's kernel.
const CID: &str = "cid";
/// Inside one machine only, so every guest may have it.
const GUEST_CID: u64 = 3;
