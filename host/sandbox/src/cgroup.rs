//! The cgroup in which QEMU runs, on version 1, version 2, or both at once, and the quota that is lifted at boot.
//!
//! A pod with half a processor would boot for ten times as long as its guest needs to answer: so the quota of the pod
//! counts from the guest's first answer on.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Error;

/// One cgroup: a folder in each hierarchy of the host.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Cgroup {
    folders: Vec<PathBuf>,
}

/// A limit on processor time that was lifted.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Quota {
    file: PathBuf,
    value: String,
}

impl Cgroup {
    /// The cgroup at `path`, as in an OCI spec: a path, or `slice:prefix:name` as systemd names it.
    pub(crate) fn at(path: &Path) -> Result<Self, Error> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(|source| Error::Cgroup { path: path.to_owned(), source })?;
        Self::below(&hierarchies(&mounts), path)
    }

    fn below(hierarchies: &[PathBuf], path: &Path) -> Result<Self, Error> {
        let refused = || Error::Cgroup { path: path.to_owned(), source: io::ErrorKind::InvalidInput.into() };
        let text = path.to_str().ok_or_else(refused)?;
        let relative = match text.split(':').collect::<Vec<_>>()[..] {
            [plain] => PathBuf::from(plain.trim_start_matches('/')),
            [slice, prefix, name] => slice_folder(slice).join(match prefix {
                "" => format!("{name}.scope"),
                prefix => format!("{prefix}-{name}.scope"),
            }),
            _ => return Err(refused()),
        };
        let plain = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain || relative.as_os_str().is_empty() || hierarchies.is_empty() {
            return Err(refused());
        }
        Ok(Self { folders: hierarchies.iter().map(|hierarchy| hierarchy.join(&relative)).collect() })
    }

    /// Makes what is missing of it, and opens the file of each hierarchy through which a process enters.
    pub(crate) fn create(&self) -> Result<Vec<Arc<OwnedFd>>, Error> {
        self.folders
            .iter()
            .map(|folder| {
                create(folder)
                    .and_then(|()| OpenOptions::new().write(true).open(folder.join("cgroup.procs")))
                    .map(|file| Arc::new(file.into()))
                    .map_err(|source| Error::Cgroup { path: folder.clone(), source })
            })
            .collect()
    }

    /// The limits on processor time of the cgroup and of the pod's that it is in.
    pub(crate) fn quotas(&self) -> Vec<Quota> {
        let pod_of = |folder: &Path| {
            let parent = folder.parent()?;
            let name = parent.file_name()?.to_str()?;
            (name.starts_with("pod") || name.contains("-pod")).then(|| parent.to_owned())
        };
        self.folders
            .iter()
            .flat_map(|folder| [Some(folder.clone()), pod_of(folder)])
            .flatten()
            .flat_map(|folder| [folder.join(V1_QUOTA), folder.join(V2_QUOTA)])
            .filter_map(|file| {
                let value = fs::read_to_string(&file).ok()?.trim().to_owned();
                (!value.starts_with("max") && value != "-1").then_some(Quota { file, value })
            })
            .collect()
    }

    /// Whether the kernel has killed a process in it for want of memory.
    pub(crate) fn is_starved(&self) -> bool {
        let files = self.folders.iter().flat_map(|folder| [V1_SHORTAGE, V2_SHORTAGE].map(|file| folder.join(file)));
        files.filter_map(|file| fs::read_to_string(file).ok()).any(|text| has_killed(&text))
    }

    /// Removes it where nobody else is in it. The machine of an owner that was killed may be about to leave it, and nothing tells
    /// when it has.
    pub(crate) fn remove(&self) {
        let deadline = Instant::now() + LEAVE_TIME;
        for folder in &self.folders {
            loop {
                match fs::remove_dir(folder) {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                        std::thread::sleep(PAUSE);
                    }
                    // Whoever else put something in there removes it.
                    Err(error) => {
                        tracing::debug!(folder = %folder.display(), %error, "a cgroup stays");
                        break;
                    }
                }
            }
        }
    }
}

impl Quota {
    /// Lifts the limit.
    pub(crate) fn lift(&self) {
        let unlimited = if self.file.ends_with(V1_QUOTA) { "-1" } else { "max" };
        self.set(unlimited);
    }

    /// Sets the limit again.
    pub(crate) fn restore(&self) {
        self.set(&self.value);
    }

    /// Nothing depends on it but the time that a boot takes, and a limit that is gone needs none of it.
    fn set(&self, value: &str) {
        if let Err(error) = fs::write(&self.file, value) {
            tracing::debug!(file = %self.file.display(), value, %error, "the limit on processor time is not changed");
        }
    }
}

/// The limits of a sandbox that boots; they hold again when this is dropped.
pub(crate) struct Lifted(Vec<Quota>);

impl Lifted {
    pub(crate) fn new(quotas: Vec<Quota>) -> Self {
        quotas.iter().for_each(Quota::lift);
        Self(quotas)
    }
}

impl Drop for Lifted {
    fn drop(&mut self) {
        // The pod's limit comes before that of what is in it, which may not be higher.
        self.0.iter().rev().for_each(Quota::restore);
    }
}

/// Where hierarchies are mounted: one on a host with version 2, several on one with version 1, which may have version 2
/// beside them for systemd's own use.
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mut found = [Vec::new(), Vec::new()];
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let kind = file_system.split(' ').next().unwrap_or_default();
        let mut fields = mount.split(' ');
        let (root, point) = (fields.nth(3), fields.next());
        let version = match kind {
            "cgroup" => 0,
            "cgroup2" => 1,
            _ => continue,
        };
        if let (Some("/"), Some(point)) = (root, point)
            && point.starts_with("/sys/fs/cgroup")
        {
            found[version].push(PathBuf::from(point));
        }
    }
    let [first, second] = found;
    if first.is_empty() { second } else { first }
}

/// systemd puts the slice `a-b.slice` into `a.slice`.
fn slice_folder(slice: &str) -> PathBuf {
    let name = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = name.match_indices('-').map(|(end, _)| end).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

/// Makes a folder and those above it. On version 1 a new set of processors is empty, and nobody can enter it.
fn create(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let Some(parent) = folder.parent() else { return Err(io::ErrorKind::NotFound.into()) };
    create(parent)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = folder.join(file);
        // Version 2 inherits by itself.
        if folder.join("tasks").exists() && fs::read_to_string(&own).is_ok_and(|value| value.trim().is_empty()) {
            fs::write(own, fs::read(parent.join(file))?)?;
        }
    }
    Ok(())
}

/// Whether a file with a word and a number a line counts a kill.
fn has_killed(counts: &str) -> bool {
    counts
        .lines()
        .filter_map(|line| line.split_once(' '))
        .any(|(word, count)| word == "oom_kill" && count.trim() != "0")
}

/// For a process that the kernel is ending.
const LEAVE_TIME: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(5);
const V1_SHORTAGE: &str = "memory.oom_control";
const V2_SHORTAGE: &str = "memory.events";
/// Microseconds in each period; -1 for no limit.
const V1_QUOTA: &str = "cpu.cfs_quota_us";
/// Microseconds, or `max`, and the period, which stays if it is left out.
const V2_QUOTA: &str = "cpu.max";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_on_either_version() {
        let unified = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(hierarchies(unified), [PathBuf::from("/sys/fs/cgroup")]);
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 30 0:29 / /sys/fs/cgroup tmpfs - tmpfs tmpfs rw\n\
                      34 30 0:28 /other /sys/fs/cgroup/bound rw - cgroup cgroup rw\n\
                      35 30 0:28 / /elsewhere rw - cgroup cgroup rw\n";
        let expected = ["/sys/fs/cgroup/cpu,cpuacct"].map(PathBuf::from);
        assert_eq!(hierarchies(hybrid), expected);
    }

    #[test]
    fn a_path_is_taken_as_the_kernel_or_as_systemd_writes_it() {
        let folder = |path: &str| {
            Cgroup::below(&["/cg".into()], Path::new(path)).map(|cgroup| cgroup.folders[0].display().to_string())
        };
        assert_eq!(folder("/kubepods/pod1/box").unwrap(), "/cg/kubepods/pod1/box");
        assert_eq!(
            folder("kubepods-burstable-pod1.slice:cri-containerd:box").unwrap(),
            "/cg/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-box.scope"
        );
        for bad in ["", "/", "/a/../b", "a:b", "a:b:c:d", "a:b/../c:d"] {
            assert!(folder(bad).is_err(), "{bad:?} gave {:?}", folder(bad));
        }
    }

    #[test]
    fn a_kill_for_want_of_memory_is_seen_on_either_version() {
        for (counts, killed) in [
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", false),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", true),
            ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 0\noom_group_kill 0\n", false),
            ("low 0\nhigh 0\nmax 7\noom 1\noom_kill 12\noom_group_kill 0\n", true),
        ] {
            assert_eq!(has_killed(counts), killed, "{counts}");
        }
    }

    #[test]
    fn limits_of_the_cgroup_and_of_its_pod_are_lifted_and_come_back() {
        let host = tempfile::tempdir().unwrap();
        let (kubepods, pod) = (host.path().join("kubepods"), host.path().join("kubepods/pod1"));
        let leaf = pod.join("box");
        fs::create_dir_all(&leaf).unwrap();
        for (folder, quota) in [(&kubepods, "800000 100000"), (&pod, "50000 100000"), (&leaf, "max 100000")] {
            fs::write(folder.join(V2_QUOTA), format!("{quota}\n")).unwrap();
        }
        let quota = |folder: &Path| fs::read_to_string(folder.join(V2_QUOTA)).unwrap().trim().to_owned();

        let cgroup = Cgroup { folders: vec![leaf.clone()] };
        let lifted = Lifted::new(cgroup.quotas());
        assert_eq!([quota(&kubepods), quota(&pod), quota(&leaf)], ["800000 100000", "max", "max 100000"]);
        drop(lifted);
        assert_eq!([quota(&kubepods), quota(&pod), quota(&leaf)], ["800000 100000", "50000 100000", "max 100000"]);
    }
}
