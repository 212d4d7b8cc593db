//! ttrpc servers on unix sockets, whose file appears when the server answers and not before.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use ttrpc::r#async::{Server, Service};

/// A running server. It stops to accept connections when this is dropped.
pub struct Endpoint {
    _server: Server,
}

impl Endpoint {
    /// Serves `services` at `address`, which is `unix://` and an absolute path.
    ///
    /// Whoever waits for the socket's file to appear can connect at once; a file that is left from before is replaced.
    ///
    /// # Errors
    /// [`Error`] if the address has another form, or the socket can't be made.
    pub async fn open(address: &str, services: HashMap<String, Service>) -> Result<Self, Error> {
        let path = path(address)?;
        let failed = |cause: io::Error| Error::Socket { path: path.clone(), cause: cause.to_string() };
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await.map_err(failed)?;
        }
        // A socket's file exists before it listens, so it gets its name only afterwards.
        let unnamed = path.with_extension("starting");
        match tokio::fs::remove_file(&unnamed).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let refused = |cause: ttrpc::Error| Error::Socket { path: path.clone(), cause: cause.to_string() };
        let mut server =
            Server::new().bind(&format!("{SCHEME}{}", unnamed.display())).map_err(refused)?.register_service(services);
        server.start().await.map_err(refused)?;
        tokio::fs::rename(&unnamed, &path).await.map_err(failed)?;
        tracing::info!(address, "serving");
        Ok(Self { _server: server })
    }
}

/// Why a socket can't be served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// An address that is not of the form expected.
    #[error("socket address {0:?}; next: write it as unix:///absolute/path.sock")]
    Address(String),
    /// The operating system said no.
    #[error("socket {}: {cause}", path.display())]
    Socket {
        /// The socket's file.
        path: PathBuf,
        /// What it said.
        cause: String,
    },
}

fn path(address: &str) -> Result<PathBuf, Error> {
    match address.strip_prefix(SCHEME).map(Path::new) {
        Some(path) if path.is_absolute() && path.file_name().is_some() => Ok(path.to_owned()),
        _ => Err(Error::Address(address.to_owned())),
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

    #[test]
    fn only_absolute_unix_sockets_are_addresses() {
        for bad in ["", "/run/x.sock", "unix://x.sock", "unix:///", "tcp://127.0.0.1:1", "vsock://1:1"] {
            assert!(path(bad).is_err(), "{bad:?} passed");
        }
    }
}
