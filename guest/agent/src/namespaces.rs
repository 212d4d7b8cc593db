//! The namespaces that all containers of a pod are in: names, System V memory and queues, and processes if asked for.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Pid;
use serde_json::{Value, json};

/// The pod's namespaces, kept by mounts that are named after them. They end with the value that made them.
#[derive(Debug)]
pub(crate) struct Namespaces {
    folder: PathBuf,
    has_pids: bool,
}

impl Namespaces {
    /// Makes namespaces for names and for System V objects, and keeps them in `folder`.
    pub(crate) fn make(folder: PathBuf, hostname: &str) -> io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let made = Self { folder, has_pids: false };
        let hostname = hostname.to_owned();
        let folder = made.folder.clone();
        in_a_thread(move || {
            unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
            nix::unistd::sethostname(hostname)?;
            keep(Path::new("/proc/thread-self/ns/uts"), &folder.join("uts"))?;
            keep(Path::new("/proc/thread-self/ns/ipc"), &folder.join("ipc"))
        })?;
        Ok(made)
    }

    /// Sets parameters of the kernel in them: files below `/proc/sys`, and what to write.
    pub(crate) fn set(&self, parameters: Vec<(PathBuf, String)>) -> io::Result<()> {
        let ipc = File::open(self.folder.join("ipc"))?;
        in_a_thread(move || {
            setns(ipc, CloneFlags::CLONE_NEWIPC)?;
            parameters
                .into_iter()
                .try_for_each(|(file, value)| std::fs::write(Path::new("/proc/sys").join(file), value))
        })
    }

    /// Makes the process namespace of this process the pod's, in the place of an earlier one.
    pub(crate) fn share_pids_of(&mut self, process: Pid) -> io::Result<()> {
        let place = self.folder.join("pid");
        if std::mem::take(&mut self.has_pids) {
            unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        keep(Path::new(&format!("/proc/{process}/ns/pid")), &place)?;
        self.has_pids = true;
        Ok(())
    }

    /// Whether there are processes that containers share.
    pub(crate) fn has_pids(&self) -> bool {
        self.has_pids
    }

    /// What a container's `config.json` says about namespaces. The network is the guest's: a pod has one.
    pub(crate) fn of_a_container(&self, shares_pids: bool) -> Value {
        let pid = match shares_pids && self.has_pids {
            true => json!({"type": "pid", "path": self.folder.join("pid")}),
            false => json!({"type": "pid"}),
        };
        json!([
            {"type": "mount"},
            {"type": "cgroup"},
            {"type": "ipc", "path": self.folder.join("ipc")},
            {"type": "uts", "path": self.folder.join("uts")},
            pid,
        ])
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in ["uts", "ipc", "pid"] {
            // Not all of them have to be there.
            let _ = unmount(self.folder.join(name), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, "folder of the pod's namespaces can't be removed");
        }
    }
}

/// A thread of its own: whoever leaves a namespace here can't come back.
fn in_a_thread(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let thread = std::thread::Builder::new().spawn(work)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread for the pod's namespaces ended")))
}

/// Mounts a namespace's file, which keeps the namespace.
fn keep(namespace: &Path, place: &Path) -> io::Result<()> {
    File::create(place)?;
    Ok(mount_bind(namespace, place)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_names_of_its_own_and_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped, since namespaces take root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("ns");
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());

        let mut namespaces = Namespaces::make(place.clone(), "pod-1").unwrap();
        for name in ["uts", "ipc"] {
            assert_ne!(inode(&place.join(name)), inode(&Path::new("/proc/self/ns").join(name)));
        }
        assert!(namespaces.of_a_container(true)[4].get("path").is_none(), "there is none yet");
        let own = Pid::from_raw(std::process::id().try_into().unwrap()).unwrap();
        for _ in 0..2 {
            namespaces.share_pids_of(own).unwrap();
            assert_eq!(inode(&place.join("pid")), inode(Path::new("/proc/self/ns/pid")));
        }
        assert_eq!(namespaces.of_a_container(true)[4]["path"], json!(place.join("pid")));
        assert!(namespaces.of_a_container(false)[4].get("path").is_none());

        drop(namespaces);
        assert!(!place.exists());
    }
}
