//! Processes of a node as the host sees them: which there are, and waiting for their end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// A process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Process {
    /// Its number on the host.
    pub pid: u32,
    /// Its command line; of one that is dead already its name in brackets.
    pub command: String,
}

impl Process {
    /// All that descend from these.
    pub(super) fn descendants(of: &[u32]) -> Vec<Self> {
        let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may end meanwhile, here and below.
            let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
            // The name stands in brackets and may hold some itself.
            let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
            let parent = rest.split(' ').nth(1).and_then(|parent| parent.parse().ok());
            children.entry(parent.unwrap_or_default()).or_default().push(pid);
        }
        let (mut open, mut seen) = (of.to_vec(), BTreeSet::new());
        while let Some(pid) = open.pop() {
            open.extend(children.get(&pid).into_iter().flatten().filter(|child| seen.insert(**child)));
        }
        seen.into_iter().filter_map(Self::read).collect()
    }

    /// Waits for its end, but not longer than this.
    pub(super) async fn ended(&self, limit: Duration) {
        let pid = Pid::from_raw(self.pid.try_into().unwrap()).unwrap();
        // One that is not there has ended.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
        let wait = move || {
            let limit = PollTimeout::try_from(limit).unwrap();
            poll(&mut [PollFd::new(handle.as_fd(), PollFlags::POLLIN)], limit).unwrap();
        };
        tokio::task::spawn_blocking(wait).await.unwrap();
    }

    fn read(pid: u32) -> Option<Self> {
        let mut command =
            fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.trim_end_matches('\0').replace('\0', " ");
        if command.is_empty() {
            command = format!("[{}]", fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim());
        }
        Some(Self { pid, command })
    }
}

/// The one child of a process that has just one.
pub(super) fn child_of(process: u32) -> u32 {
    fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap().trim().parse().unwrap()
}
