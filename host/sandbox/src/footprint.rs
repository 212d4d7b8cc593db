//! What a sandbox leaves on the host: its folder, and in it a record of the rest, so that another process can end it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pod_network::Namespace;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Cgroup, Quota};
use crate::remote::Order;
use crate::{Directory, Error, SandboxName};

/// Takes away all that a sandbox has left behind whose owner was killed: QEMU, what its network has in the pod's
/// namespace, its cgroup and its folder. May be called again, and for a sandbox that never was.
///
/// # Errors
/// [`Error::Running`] while its owner lives; [`Error::CleanUp`] for what did not go away.
pub fn clean_up(name: &SandboxName) -> Result<(), Error> {
    if !Directory::path_of(name).exists() {
        return Ok(());
    }
    // Making the folder anew takes away what is left of the old one, and dropping it takes away the folder.
    Directory::create(name).map(drop)
}

/// Whether a sandbox has left a machine elsewhere, whose end may take as long as its adaptor takes.
pub fn is_elsewhere(name: &SandboxName) -> bool {
    Record::read(&Directory::path_of(name)).is_some_and(|record| record.order.is_some())
}

/// What a running sandbox leaves on the host. Dropping it, when QEMU has ended, takes all of it away.
pub(crate) struct Footprint {
    record: Record,
    fulfilled: AtomicBool,
    pub(crate) directory: Directory,
}

impl Footprint {
    pub(crate) fn of(directory: Directory) -> Self {
        Self { record: Record::default(), fulfilled: AtomicBool::new(false), directory }
    }

    /// The sandbox is about to use a pod's network.
    pub(crate) fn enter(&mut self, namespace: &Namespace) -> Result<(), Error> {
        self.record.namespace = Some(namespace.path().to_owned());
        self.record.write(&self.directory)
    }

    /// The sandbox is about to use a cgroup and to lift its limits.
    pub(crate) fn confine(&mut self, cgroup: Cgroup, quotas: Vec<Quota>) -> Result<(), Error> {
        (self.record.cgroup, self.record.quotas) = (Some(cgroup), quotas);
        self.record.write(&self.directory)
    }

    /// Whether QEMU was killed for the memory that its cgroup is short of.
    pub(crate) fn is_starved(&self) -> bool {
        self.record.cgroup.as_ref().is_some_and(Cgroup::is_starved)
    }

    /// The sandbox is about to have a machine made elsewhere.
    pub(crate) fn order(&mut self, order: &Order) -> Result<(), Error> {
        self.record.order = Some(order.clone());
        self.record.write(&self.directory)
    }

    /// The machine elsewhere has ended.
    pub(crate) fn fulfilled(&self) {
        self.fulfilled.store(true, Ordering::Relaxed);
    }

    /// QEMU runs. If we are killed before this is written, the kernel ends QEMU with us all the same.
    pub(crate) fn launched(&mut self, pid: u32) -> Result<(), Error> {
        let vmm = Vmm::of(pid).map_err(|source| Error::CleanUp { what: format!("QEMU, process {pid}"), source })?;
        self.record.vmm = Some(vmm);
        self.record.write(&self.directory)
    }
}

impl Drop for Footprint {
    fn drop(&mut self) {
        // The limits are not lifted any more, and somebody else may have changed them.
        self.record.quotas.clear();
        if self.fulfilled.load(Ordering::Relaxed) {
            self.record.order = None;
        }
        if let Err(error) = self.record.remove() {
            tracing::error!(%error, folder = %self.directory.path().display(), "something of the sandbox stays behind");
            self.directory.kept = true;
        }
    }
}

/// What a sandbox has outside of its folder.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub(crate) struct Record {
    vmm: Option<Vmm>,
    namespace: Option<PathBuf>,
    cgroup: Option<Cgroup>,
    quotas: Vec<Quota>,
    /// A machine elsewhere.
    order: Option<Order>,
}

/// A process that can't be mistaken for another one with the same number.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Vmm {
    pid: i32,
    /// In the kernel's ticks since it booted.
    started: u64,
}

impl Record {
    /// The record in a folder, if there is one that can be read.
    pub(crate) fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Writes the record in one step, so that there is an old one or a new one.
    fn write(&self, directory: &Directory) -> Result<(), Error> {
        let text = serde_json::to_vec(self).map_err(io::Error::from);
        let temporary = directory.write("record.new", |file| io::Write::write_all(file, &text?))?;
        let path = directory.path().join(FILE);
        fs::rename(temporary, &path).map_err(|source| Error::Directory { path, source })
    }

    /// Takes away all that is left of it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        if let Some(vmm) = &self.vmm {
            vmm.end().map_err(|source| Error::CleanUp { what: format!("QEMU, process {}", vmm.pid), source })?;
        }
        if let Some(namespace) = self.namespace.as_deref().filter(|path| path.exists()) {
            match Namespace::open(namespace).and_then(|namespace| namespace.disconnect()) {
                Ok(()) => {}
                // A namespace that is on its way out has nothing to take away.
                Err(error) => tracing::debug!(%error, "the pod's network stays as it is"),
            }
        }
        for quota in &self.quotas {
            quota.restore();
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.remove();
        }
        match &self.order {
            Some(order) => order.stop_blocking(),
            None => Ok(()),
        }
    }
}

impl Vmm {
    fn of(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).map_err(io::Error::other)?;
        Ok(Self { pid, started: started(pid)? })
    }

    /// Kills the process if it is still the one that was recorded, and waits for its end.
    fn end(&self) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        // From here on the number can't be given to another process without our seeing the end of this one.
        if started(self.pid).ok() != Some(self.started) {
            return Ok(());
        }
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        let mut ended = [PollFd::new(std::os::fd::AsFd::as_fd(&process), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(END_TIME).map_err(io::Error::other)?;
        match poll(&mut ended, limit)? {
            0 => Err(io::Error::new(io::ErrorKind::TimedOut, format!("killed, and still there after {END_TIME:?}"))),
            _ => Ok(()),
        }
    }
}

/// When a process was started: the 22nd field of its `stat`, counted behind the name, which may hold anything.
fn started(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let behind_name = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let field = behind_name.split_ascii_whitespace().nth(19);
    field.and_then(|field| field.parse().ok()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

const FILE: &str = "record.json";
/// For a killed process to be gone.
const END_TIME: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Child, Command};

    #[test]
    fn what_a_killed_owner_left_is_ended_and_removed_once() {
        let (mut left, name) = (process(), name("left"));
        let folder = abandon(&name, Vmm::of(left.id()).unwrap());
        fs::write(folder.join("vsock.sock"), "").unwrap();

        clean_up(&name).unwrap();

        assert!(!folder.exists());
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        clean_up(&name).unwrap();
    }

    #[test]
    fn a_process_that_only_has_the_number_is_left_alone() {
        let (mut other, name) = (process(), name("reused"));
        let recorded = Vmm::of(other.id()).unwrap();
        let folder = abandon(&name, Vmm { started: recorded.started + 1, ..recorded });

        clean_up(&name).unwrap();

        assert!(!folder.exists());
        assert_eq!(other.try_wait().unwrap(), None, "it lives");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_sandbox_whose_owner_lives_is_not_touched() {
        let name = name("owned");
        let owner = Directory::create(&name).unwrap();
        assert!(matches!(clean_up(&name), Err(Error::Running { .. })));
        assert!(owner.path().exists());
    }

    #[test]
    fn a_damaged_record_does_not_keep_the_folder() {
        let (mut left, name) = (process(), name("damaged"));
        let folder = abandon(&name, Vmm::of(left.id()).unwrap());
        fs::write(folder.join(FILE), "{").unwrap();
        clean_up(&name).unwrap();
        assert!(!folder.exists());
        left.kill().unwrap();
        left.wait().unwrap();
    }

    #[test]
    fn a_pods_limit_that_a_killed_owner_had_lifted_holds_again() {
        let host = tempfile::tempdir().unwrap();
        let (leaf, quota) = (host.path().join("pod1/box"), host.path().join("pod1/cpu.max"));
        fs::create_dir_all(&leaf).unwrap();
        fs::write(&quota, "max 100000").unwrap();
        let (name, json) = (
            name("lifted"),
            serde_json::json!({
                "cgroup": {"folders": [leaf]}, "quotas": [{"file": quota, "value": "50000 100000"}],
            }),
        );
        let folder = Directory::path_of(&name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(FILE), json.to_string()).unwrap();

        clean_up(&name).unwrap();

        assert_eq!(fs::read_to_string(quota).unwrap(), "50000 100000");
        assert!(!leaf.exists() && !folder.exists());
    }

    fn abandon(name: &SandboxName, vmm: Vmm) -> PathBuf {
        let folder = Directory::path_of(name);
        fs::create_dir_all(&folder).unwrap();
        let record = Record { vmm: Some(vmm), ..Record::default() };
        fs::write(folder.join(FILE), serde_json::to_vec(&record).unwrap()).unwrap();
        folder
    }

    fn process() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    fn name(name: &str) -> SandboxName {
        SandboxName::parse(&format!("test-{name}-{}", std::process::id())).unwrap()
    }
}
