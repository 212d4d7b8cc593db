//! Who calls: an address on the loopback interface, or a process at the unix socket.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UnixStream;

/// Decides whether a caller at the unix socket may ask for a path, such as `/cdh/resource/default/key/1`.
pub type Guard = Arc<dyn Fn(&Caller, &str) -> bool + Send + Sync>;

/// Who opened a connection.
#[derive(Clone)]
pub(crate) enum Peer {
    /// Somebody on the network, which is the pod's own if the address is a loopback one.
    Network(SocketAddr),
    /// A process, and who decides what it may have.
    Process(Caller, Guard),
}

/// The process that opened a connection to the unix socket, as the kernel tells it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Its process id in the guest, if it has one there.
    pub pid: Option<i32>,
    /// Its user in the guest.
    pub uid: u32,
    /// Its control group in the guest's hierarchy, such as `/containers/<id>`; empty if it is gone already.
    pub cgroup: String,
}

impl Caller {
    /// The peer of a connection. The kernel notes the process when it connects; a process that ends at once and whose
    /// number is given to another has that one's control group, so a guard must not take a short-lived caller's word.
    pub(crate) fn of(stream: &UnixStream) -> std::io::Result<Self> {
        let credentials = stream.peer_cred()?;
        let pid = credentials.pid();
        let cgroup = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
        Ok(Self { pid, uid: credentials.uid(), cgroup: cgroup.as_deref().map(unified).unwrap_or_default() })
    }

    /// The container's id, which is the name of its control group; none for a process outside of every container.
    pub fn container(&self) -> Option<&str> {
        let name = self.cgroup.split('/').rfind(|name| !name.is_empty())?;
        (!name.ends_with(".slice") && !name.ends_with(".service") && name != "init.scope").then_some(name)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pid = self.pid.map_or("(unknown)".to_owned(), |pid| pid.to_string());
        write!(f, "process {pid} of user {} in {:?}", self.uid, self.cgroup)
    }
}

/// The group in the unified hierarchy, from the lines of `/proc/<pid>/cgroup`.
fn unified(lines: &str) -> String {
    lines.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_by_its_control_group() {
        for (lines, container) in [
            ("0::/containers/c1\n", Some("c1")),
            ("12:cpu:/x\n0::/kubepods.slice/pod7/c2/\n", Some("c2")),
            ("0::/\n", None),
            ("0::/system.slice/ssh.service\n", None),
            ("", None),
        ] {
            let caller = Caller { pid: Some(7), uid: 0, cgroup: unified(lines) };
            assert_eq!(caller.container(), container, "{lines:?}");
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_who_called() {
        let (one, _other) = UnixStream::pair().unwrap();
        let caller = Caller::of(&one).unwrap();
        assert_eq!(caller.pid, Some(std::process::id() as i32));
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        assert_eq!(caller.cgroup, unified(&own));
    }
}
