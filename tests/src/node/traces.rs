//! What pods leave on a node after the last one was removed: nothing, it should be.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{BRIDGE, Node, PAUSE_BETWEEN_CALLS, groups_in, hierarchies};

impl Node {
    /// What pods have left after the last one was removed and what was told to end has ended, containerd's own records included.
    ///
    /// # Panics
    /// If the node can't be looked at.
    pub async fn leftovers(&self) -> Vec<String> {
        let deadline = Instant::now() + END_LIMIT;
        loop {
            let mut left = self.traces();
            if left.is_empty() {
                left = self.records();
            }
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            // Most of it tells nobody when it is gone.
            tokio::time::sleep(PAUSE_BETWEEN_CALLS).await;
        }
    }

    /// Processes, mounts, network interfaces, files, loop devices and control groups that a node has only while pods are on it.
    ///
    /// # Panics
    /// If the node can't be looked at.
    pub fn traces(&self) -> Vec<String> {
        let processes = self.processes("").into_iter();
        let mut left: Vec<String> = processes.map(|process| format!("process {}", process.command)).collect();
        let mounts = self.namespaces.mounts().into_iter().filter(|mount| !self.mounts.contains(mount));
        left.extend(mounts.map(|mount| format!("mount {mount}")));
        left.extend(self.files().into_iter().map(|path| format!("file {}", path.display())));
        let links = self.command("ip").args(["-brief", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        // The bridge stays for the next pod.
        let of_pods = links.lines().filter(|line| !line.starts_with("lo ") && !line.starts_with(BRIDGE));
        left.extend(of_pods.map(|line| format!("network interface {line}")));
        left.extend(self.loop_devices().into_iter().map(|file| format!("loop device with {file}")));
        left.extend(self.control_groups().into_iter().map(|group| format!("control group {}", group.display())));
        left
    }

    /// Removes the control groups of pods, as a kubelet does in the end. One that is not empty stays, and is seen among what is left.
    pub fn remove_pod_groups(&self) {
        for tree in hierarchies() {
            for group in fs::read_dir(tree.join(&self.name)).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(group.path());
            }
        }
    }

    /// Lets the day pass for which containerd holds what it was making when it was killed.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn expire_leases(&self) {
        for lease in self.ctr(&["leases", "ls", "-q"]).lines() {
            self.ctr(&["leases", "delete", "--sync", lease]);
        }
    }

    /// Containers, tasks and snapshots of containers that containerd keeps.
    fn records(&self) -> Vec<String> {
        let mut left = Vec::new();
        let ask = |arguments: &[&str]| self.containerd().ctr(&self.namespaces, arguments);
        for kind in ["containers", "tasks"] {
            let ids = ask(&[kind, "ls", "-q"]).unwrap_or_default();
            left.extend(ids.lines().map(|id| format!("{kind} {id}")));
        }
        // Not every node has the second one.
        for snapshotter in ["overlayfs", "cocoon"] {
            let snapshots = ask(&["snapshots", "--snapshotter", snapshotter, "ls"]).unwrap_or_default();
            let open = snapshots.lines().filter(|line| line.trim_end().ends_with("Active"));
            left.extend(open.map(|line| format!("snapshot of {snapshotter} {line}")));
        }
        left
    }

    /// Files and folders that are there for pods.
    fn files(&self) -> Vec<PathBuf> {
        let state = |name: &str| PathBuf::from("/run/containerd").join(name);
        let folders = [
            PathBuf::from("/run/cocoon"),
            "/run/netns".into(),
            "/run/tmp".into(),
            "/var/lib/cni/results".into(),
            state("s"),
            state("fifo"),
            state("io.containerd.runtime.v2.task/k8s.io"),
            state("io.containerd.grpc.v1.cri/sandboxes"),
            state("io.containerd.grpc.v1.cri/containers"),
            self.folder.join("root/io.containerd.grpc.v1.cri/sandboxes"),
            self.folder.join("root/io.containerd.grpc.v1.cri/containers"),
            self.folder.join("root/io.containerd.runtime.v2.task/k8s.io"),
            self.folder.join("root/tmpmounts"),
            self.folder.join("addresses/lab"),
            self.folder.join("snapshotter/unpacking"),
        ];
        // What the node itself keeps begins with a dot.
        let of_nobody = |name: &str| name.starts_with("last_reserved_ip") || name == "lock" || name.starts_with('.');
        let entries = folders.iter().flat_map(|folder| {
            let found = fs::read_dir(self.path(folder.to_str().unwrap())).into_iter().flatten().flatten();
            found.filter(|entry| !of_nobody(&entry.file_name().to_string_lossy())).map(|it| folder.join(it.file_name()))
        });
        entries.collect()
    }

    /// The files of the case that are devices.
    fn loop_devices(&self) -> Vec<String> {
        let devices = fs::read_dir("/sys/block").unwrap().flatten();
        let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        let case = self.folder.parent().and_then(|folder| folder.to_str()).unwrap();
        files.map(|file| file.trim().to_owned()).filter(|file| file.contains(case)).collect()
    }

    /// The control groups of the node's pods, the inner ones first.
    fn control_groups(&self) -> Vec<PathBuf> {
        hierarchies().iter().flat_map(|tree| groups_in(&tree.join(&self.name))).collect()
    }
}

/// For what a pod that was removed still has.
const END_LIMIT: Duration = Duration::from_secs(15);
