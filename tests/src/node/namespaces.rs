//! A node's own namespaces: network, mounts, processes and host name. When they end, nothing of the node is left.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Runtime;

use super::processes;
use crate::lab::HOST_IN_GUEST;

/// The namespaces, held by their first process, which ends with this value or with the program that owns it.
///
/// `/run`, `/opt` and `/var/lib/cni` are memory file systems of the node's own, and what it writes to `/etc` and `/usr/local/bin` is its own
/// too, so that sockets, sandboxes' folders, pods' network namespaces and what is installed are neither seen nor left on the host.
pub(crate) struct Namespaces {
    holder: Child,
    /// The first process, as the host numbers it.
    init: u32,
    /// Serves the relays, so that a case may block its own thread.
    relays: Option<Runtime>,
}

impl Namespaces {
    /// Makes them; `name` becomes the host name.
    pub(crate) fn new(name: &str) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"])
            // Neither sees what the other mounts from now on.
            .args(["--propagation", "private", "bash", "-ec", SET_UP, "node", name, HOST_IN_GUEST])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "a node's namespaces can't be made; next: run as root");
        let init = processes::child_of(holder.id());
        let relays = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { holder, init, relays: Some(relays) }
    }

    /// A command that runs in the node.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--uts", "--"]).arg(program);
        command
    }

    /// A path of the node as the host sees it.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(inside.trim_start_matches('/'))
    }

    /// The first process, as the host numbers it.
    pub(crate) fn init(&self) -> u32 {
        self.init
    }

    /// The node's mounts, a line each.
    pub(crate) fn mounts(&self) -> Vec<String> {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.init)).unwrap().lines().map(str::to_owned).collect()
    }

    /// Connects to an address as the node itself would.
    pub(crate) fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        self.in_network(move || TcpStream::connect_timeout(&address, CONNECT_LIMIT))
    }

    /// Makes a port of the host's loopback reachable at the same port of [`HOST_IN_GUEST`], for the node and its pods.
    pub(crate) fn relay(&self, port: u16) {
        let address: SocketAddr = format!("{HOST_IN_GUEST}:{port}").parse().unwrap();
        let listener = self.in_network(move || TcpListener::bind(address)).unwrap();
        listener.set_nonblocking(true).unwrap();
        self.relays.as_ref().unwrap().spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut from, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut to) = tokio::net::TcpStream::connect(("127.0.0.1", port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                    }
                });
            }
        });
    }

    /// Ends every process of the node and waits for that; with the last one its mounts and its network are gone.
    pub(crate) fn end(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        if let Some(relays) = self.relays.take() {
            relays.shutdown_background();
        }
    }

    fn in_network<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.init)).unwrap();
        // A namespace is a thread's, so the thread ends with the act.
        let entered = std::thread::spawn(move || {
            setns(network, CloneFlags::CLONE_NEWNET).unwrap();
            act()
        });
        entered.join().unwrap()
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        self.end();
    }
}

/// bash reaps whatever is left to it. It ends when its standard input does, which is when this program ends.
const SET_UP: &str = "
hostname \"$1\"
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/etc /run/etc-work
mkdir --mode 1777 /run/tmp
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work overlay /etc
mkdir /run/bin /run/bin-work
mount -t overlay -o lowerdir=/usr/local/bin,upperdir=/run/bin,workdir=/run/bin-work overlay /usr/local/bin
mount -t tmpfs -o mode=755 tmpfs /opt
mkdir -p /opt/cni/bin /var/lib/cni
ln -s /usr/lib/cni/* /opt/cni/bin
mount -t tmpfs -o mode=755 tmpfs /var/lib/cni
ip link set lo up
ip address add \"$2/32\" dev lo
echo 1 > /proc/sys/net/ipv4/ip_forward
if [ -e /proc/sys/net/ipv6 ]; then echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; fi
echo ready
read -r _ || true
";
const CONNECT_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
