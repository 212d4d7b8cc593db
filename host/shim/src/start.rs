//! `start`: a server for a new pod, or the address of the one that its pod has.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use sha2::{Digest as _, Sha256};

use crate::bootstrap::Bootstrap;
use crate::bundle::{self, Bundle};
use crate::{Arguments, Error, Kind};

/// Starts a server in a process of its own, unless the container belongs to a pod that has one, and prints its address.
///
/// # Errors
/// [`Error::Arguments`], [`Error::File`], [`Error::Spec`], [`Error::Listening`], [`Error::Spawn`].
pub fn start(arguments: &Arguments) -> Result<(), Error> {
    let mut input = Vec::new();
    if !io::stdin().is_terminal() {
        io::stdin().take(MAX_INPUT).read_to_end(&mut input).map_err(Error::file("start", "standard input"))?;
    }
    let bootstrap = Bootstrap::read(arguments, &input, |name| std::env::var(name).ok())?;
    let bundle = Bundle::of(&arguments.bundle)?;
    let kind = match bundle.has_spec() {
        true => Kind::of(&bundle.spec()?.annotations)?,
        // A pod that containerd means to make through the sandbox API.
        false => Kind::Sandbox,
    };

    let socket = SocketPath::of(&bootstrap, kind.sandbox(&bootstrap.id));
    let address = socket.address();
    if kind.owns_machine() {
        launch(&bootstrap, &bundle, &socket)?;
    }
    let answer = bootstrap.answer(&address);
    bundle.write(bundle::ADDRESS, &address)?;
    io::stdout().write_all(&answer).map_err(Error::file("start", "standard output"))
}

/// Where a pod's server listens: the same for all who know containerd's address, the namespace and the pod.
#[derive(Clone, Debug)]
pub(crate) struct SocketPath(PathBuf);

impl SocketPath {
    pub(crate) fn of(bootstrap: &Bootstrap, sandbox: &str) -> Self {
        Self::new(&bootstrap.sockets, &bootstrap.address, &bootstrap.namespace, sandbox)
    }

    pub(crate) fn new(folder: &str, address: &str, namespace: &str, sandbox: &str) -> Self {
        let joined = Path::new(address).join(namespace).join(sandbox);
        let digest = Sha256::digest(joined.as_os_str().as_encoded_bytes());
        Self(Path::new(folder).join(hex::encode_upper(digest)))
    }

    pub(crate) fn at(address: &str) -> Self {
        Self(address.strip_prefix("unix://").unwrap_or(address).into())
    }

    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.0.display())
    }

    /// Listens, in place of a server that was killed.
    fn listen(&self) -> Result<UnixListener, Error> {
        if let Some(folder) = self.0.parent() {
            fs::create_dir_all(folder).map_err(Error::file("start", folder))?;
        }
        match UnixListener::bind(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(&self.0).is_ok() {
                    return Err(Error::Listening(self.0.clone()));
                }
                self.remove();
                UnixListener::bind(&self.0)
            }
            bound => bound,
        }
        .map_err(Error::file("start", &self.0))
    }

    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Starts the server. Its socket is its standard input, and exists before containerd is told of it.
fn launch(bootstrap: &Bootstrap, bundle: &Bundle, socket: &SocketPath) -> Result<(), Error> {
    let listener = socket.listen()?;
    let mut command = Command::new(std::env::current_exe().map_err(Error::Spawn)?);
    command
        .args(["-namespace", &bootstrap.namespace, "-address", &bootstrap.address, "-id", &bootstrap.id])
        .arg("-bundle")
        .arg(bundle.path())
        .args(bootstrap.debug.then_some("-debug"))
        .env("TTRPC_ADDRESS", &bootstrap.events)
        .env(crate::serve::SOCKET, &socket.0)
        .current_dir(bundle.path())
        .stdin(Stdio::from(OwnedFd::from(listener)))
        // containerd waits for the end of `start`'s output, which must not be the server's.
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let started = command.spawn().map_err(Error::Spawn).and_then(|child| {
        bundle.write(bundle::PID, child.id().to_string())?;
        bundle.write(bundle::BOOTSTRAP, bootstrap.answer_json(&socket.address()))
    });
    if started.is_err() {
        socket.remove();
    }
    started
}

/// What containerd bounds its own message to.
const MAX_INPUT: u64 = 10 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_one_address() {
        let socket = SocketPath::new("/run/containerd/s", "/run/containerd/containerd.sock", "k8s.io", "pod");
        // As sha256sum says of /run/containerd/containerd.sock/k8s.io/pod.
        assert_eq!(
            socket.address(),
            "unix:///run/containerd/s/B9CAB8E84F817F3C3BB561C7EA8DCBFBA051D5D8F56EC2C3F204BC387D13F7D0"
        );
    }

    #[test]
    fn a_socket_that_nobody_serves_is_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let socket = SocketPath::new(folder.path().to_str().unwrap(), "/a", "n", "pod");
        drop(socket.listen().unwrap());
        let serving = socket.listen().unwrap();
        assert!(matches!(socket.listen(), Err(Error::Listening(_))));
        drop(serving);
    }
}
