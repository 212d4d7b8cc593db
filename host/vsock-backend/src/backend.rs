//! A running back end: its two sockets and its threads.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserDaemon};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;

use crate::device::{Device, HOST_EVENT, Memory};
use crate::host_socket::service_path;
use crate::muxer::Muxer;

/// Where a back end listens, and for whom.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    /// The vhost-user socket: QEMU connects here.
    pub socket: PathBuf,
    /// The hybrid vsock socket: the host's clients connect here, and `<uds>_<port>` is where the guest's
    /// connections arrive.
    pub uds: PathBuf,
    /// The guest's address, 3 or higher. It has a meaning inside the VM only, so all VMs may use the same.
    pub guest_cid: u64,
}

/// The vsock of one VM. Serves one QEMU, from its connect to its disconnect.
#[derive(Debug)]
pub struct Backend {
    /// Removed with the back end.
    paths: [PathBuf; 2],
    signal: Arc<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Listens on both sockets; QEMU and clients may connect as soon as this returns.
    ///
    /// A client that asks for a port before the guest's driver runs gets its answer when it does.
    ///
    /// # Errors
    /// [`Error::PathTooLong`] and [`Error::Listen`] for a path that can't be listened on, an existing file included;
    /// [`Error::Setup`] if the system lacks descriptors or threads.
    pub fn start(config: BackendConfig) -> Result<Self, Error> {
        check_length(&config.socket)?;
        check_length(&service_path(&config.uds, u32::MAX))?;

        let mut paths = Paths(Vec::new());
        let vhost_user = paths.listen(&config.socket)?;
        let hybrid = paths.listen(&config.uds)?;

        let signal = Arc::new(Signal::new().map_err(Error::setup)?);
        let memory = Memory::new(GuestMemoryMmap::new());
        let muxer = Muxer::new(config.guest_cid, config.uds.clone(), hybrid).map_err(Error::setup)?;
        let device = Device::new(config.guest_cid, memory.clone(), muxer, signal.flag.clone());
        let host_fd = device.host_fd();

        let daemon = VhostUserDaemon::new("vsock".to_owned(), Arc::new(Mutex::new(device)), memory);
        let daemon = daemon.map_err(Error::setup)?;
        for worker in daemon.get_epoll_handlers() {
            worker.register_listener(host_fd, EventSet::IN, HOST_EVENT).map_err(Error::setup)?;
        }

        let thread = thread::Builder::new().name("vsock-daemon".to_owned()).spawn({
            let signal = signal.clone();
            move || {
                if let Err(e) = serve(daemon, vhost_user, &signal) {
                    tracing::warn!(error = %e, "vsock: the connection to QEMU ended with an error");
                }
            }
        });
        let thread = Some(thread.map_err(Error::setup)?);
        paths.0.clear();
        Ok(Self { paths: [config.socket, config.uds], signal, thread })
    }

    /// Ends all connections and threads, and removes both sockets. Dropping does the same.
    pub fn stop(self) {}
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.signal.raise();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("vsock: the daemon thread panicked");
        }
        for path in &self.paths {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Why a back end could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A path does not fit into a unix socket address.
    #[error(
        "vsock: {path} is longer than a socket's path may be ({MAX_PATH} bytes); next: use a shorter run directory"
    )]
    PathTooLong {
        /// The path, with the longest suffix that it will get.
        path: PathBuf,
    },
    /// A socket can't be created.
    #[error("vsock: can't listen on {path}: {source}; next: remove the file if it is left from another VM")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system refused a descriptor or a thread.
    #[error("vsock: the back end can't be set up: {0}; next: check the limits on open files and threads")]
    Setup(String),
}

impl Error {
    fn setup(cause: impl std::fmt::Display) -> Self {
        Self::Setup(cause.to_string())
    }
}

/// Waits for QEMU, and serves it until it disconnects or the signal is raised.
fn serve(
    mut daemon: VhostUserDaemon<Arc<Mutex<Device>>>,
    listener: UnixListener,
    signal: &Signal,
) -> Result<(), vhost_user_backend::Error> {
    if !signal.wait_for(&listener) {
        return Ok(());
    }
    daemon.start(&mut Listener::from(listener))?;
    signal.on_raise(daemon.shutdown_handle());
    let end = daemon.wait();
    signal.on_raise(None);

    use vhost::vhost_user::Error::{Disconnected, PartialMessage};
    match end {
        Err(vhost_user_backend::Error::HandleRequest(Disconnected | PartialMessage)) => Ok(()),
        end => end,
    }
}

/// Tells the threads to end.
#[derive(Debug)]
struct Signal {
    flag: Arc<AtomicBool>,
    event: EventFd,
    connection: Mutex<Connection>,
}

impl Signal {
    fn new() -> io::Result<Self> {
        Ok(Self {
            flag: Arc::default(),
            event: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            connection: Mutex::new(Connection(None)),
        })
    }

    fn raise(&self) {
        self.flag.store(true, Ordering::SeqCst);
        // Fails only if the counter is full, and then it has been raised long ago.
        let _ = self.event.arm();
        if let Some(handle) = &self.connection.lock().unwrap_or_else(PoisonError::into_inner).0 {
            handle.shutdown();
        }
    }

    /// Waits until somebody connects to `listener`: `true`; or the signal is raised: `false`.
    fn wait_for(&self, listener: &UnixListener) -> bool {
        loop {
            let mut fds =
                [PollFd::new(self.event.as_fd(), PollFlags::POLLIN), PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) if fds[0].any() == Some(true) => return false,
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(e) => {
                    tracing::error!(error = %e, "vsock: can't wait for QEMU");
                    return false;
                }
            }
        }
    }

    /// Has `handle` shut down when the signal is raised, or now if it has been.
    fn on_raise(&self, handle: Option<ShutdownHandle>) {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if self.flag.load(Ordering::SeqCst)
            && let Some(handle) = &handle
        {
            handle.shutdown();
        }
        connection.0 = handle;
    }
}

/// QEMU's connection, which has no `Debug` of its own.
struct Connection(Option<ShutdownHandle>);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "connected" } else { "not connected" })
    }
}

/// Sockets to remove if the start fails half-way.
struct Paths(Vec<PathBuf>);

impl Paths {
    fn listen(&mut self, path: &Path) -> Result<UnixListener, Error> {
        let listener = UnixListener::bind(path).map_err(|source| Error::Listen { path: path.to_owned(), source })?;
        self.0.push(path.to_owned());
        Ok(listener)
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn check_length(path: &Path) -> Result<(), Error> {
    if path.as_os_str().as_bytes().len() > MAX_PATH {
        return Err(Error::PathTooLong { path: path.to_owned() });
    }
    Ok(())
}

/// `sockaddr_un` has 108 bytes for a path and its terminator.
const MAX_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sockets_exist_from_start_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());

        let backend = Backend::start(config.clone()).unwrap();
        assert!(config.socket.exists() && config.uds.exists());
        backend.stop();

        assert!(!config.socket.exists() && !config.uds.exists());
    }

    #[test]
    fn a_back_end_leaves_no_descriptor_behind() {
        let folder = tempfile::tempdir().unwrap();
        // The exit event is the one that the framework would leave open.
        let exit_events = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap();
            fds.filter(|fd| {
                let target = std::fs::read_link(fd.as_ref().unwrap().path()).unwrap_or_default();
                target == Path::new("anon_inode:[eventfd]")
            })
            .count()
        };
        // Other tests of this process come and go, so look for a leak that grows.
        let before = exit_events();
        for _ in 0..50 {
            Backend::start(config(folder.path())).unwrap().stop();
        }
        assert!(exit_events() < before + 50);
    }

    #[test]
    fn qemu_that_disconnects_ends_the_back_end() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let mut backend = Backend::start(config.clone()).unwrap();

        drop(std::os::unix::net::UnixStream::connect(&config.socket).unwrap());

        backend.thread.take().unwrap().join().unwrap();
    }

    #[test]
    fn stop_does_not_wait_for_a_qemu_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let backend = Backend::start(config.clone()).unwrap();
        let _qemu = std::os::unix::net::UnixStream::connect(&config.socket).unwrap();
        backend.stop();
    }

    #[test]
    fn a_socket_that_is_in_use_is_not_taken_over() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        std::fs::write(&config.uds, "precious").unwrap();

        let error = Backend::start(config.clone()).unwrap_err();

        assert!(matches!(&error, Error::Listen { path, .. } if *path == config.uds), "{error}");
        assert_eq!(std::fs::read(&config.uds).unwrap(), b"precious");
        assert!(!config.socket.exists());
    }

    #[test]
    fn a_path_without_room_for_a_port_is_refused() {
        let uds = PathBuf::from(format!("/tmp/{}", "x".repeat(95)));
        let config = BackendConfig { socket: "/tmp/never-created".into(), uds, guest_cid: 3 };
        assert!(matches!(Backend::start(config), Err(Error::PathTooLong { .. })));
    }

    fn config(folder: &Path) -> BackendConfig {
        BackendConfig { socket: folder.join("vhost.sock"), uds: folder.join("vm.vsock"), guest_cid: 3 }
    }
}
