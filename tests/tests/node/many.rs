//! Many pods, at once and one after the other.

use std::{fs, io};

use futures::future::join_all;
use tests::node::{Cocoon, Containerd, Snapshotter};

use crate::ground::{Ground, LIMIT, is_full};

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_start_at_once_all_run() {
    let count = if is_full() { 10 } else { 4 };
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let live = async |number| {
        let pod = ground.pod(&format!("crowd-{number}")).run().await;
        pod.container("app", &ground.image).start().await.said("the image", LIMIT * 3).await;
        pod
    };
    let pods = join_all((0..count).map(live)).await;

    assert_eq!(ground.node.pods().await.len(), count);
    assert_eq!(ground.node.processes("qemu-system").len(), count);
    join_all(pods.into_iter().map(|pod| pod.remove())).await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_and_go_leave_nothing_in_the_node_s_services() {
    let count = if is_full() { 30 } else { 5 };
    let cocoon = Cocoon::new().with_snapshotter();
    let Some(ground) = Ground::on(Containerd::V1, "debug", &cocoon).await else { return };
    let snapshotter = Snapshotter::start(&ground.node);
    let services = [ground.node.containerd_pid(), snapshotter.pid()];
    let live = async || {
        snapshotter.pull(&ground.image).await;
        let pod = ground.pod("one-of-many").run().await;
        let app = pod.container("app", &ground.image).start().await;
        assert_eq!(app.exec(&["echo", "here"]).await.stdout, "here\n");
        pod.remove().await;
    };
    // The first ones open what stays.
    for _ in 0..2 {
        live().await;
    }
    ground.expect_clean().await;
    let before = services.map(Use::of);

    for _ in 0..count {
        live().await;
    }

    ground.expect_clean().await;
    let after = services.map(Use::of);
    eprintln!("containerd and snapshotter after {count} pods: {before:?} became {after:?}");
    for (before, after) in before.iter().zip(&after) {
        assert!(after.files.len() <= before.files.len(), "{before:?} became {after:?}");
        assert!(after.threads <= before.threads + SPARE_THREADS, "{before:?} became {after:?}");
    }
    // containerd's heap grows and shrinks as its collector likes.
    assert!(after[1].kib <= before[1].kib + GROWTH_KIB, "{before:?} became {after:?}");
}

/// What a process uses.
#[derive(Debug)]
struct Use {
    /// What is open, by the kernel's names for it.
    files: Vec<String>,
    threads: usize,
    kib: u64,
}

impl Use {
    fn of(pid: u32) -> Self {
        let entries = |folder: &str| fs::read_dir(format!("/proc/{pid}/{folder}")).unwrap();
        // One may be closed meanwhile.
        let open = |entry: io::Result<fs::DirEntry>| fs::read_link(entry.ok()?.path()).ok();
        let mut files: Vec<_> = entries("fd").filter_map(open).map(|file| file.display().to_string()).collect();
        // containerd keeps each pull's connection to the registry for half a minute.
        let connections = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
        let inodes = connections.lines().skip(1).filter_map(|line| line.split_whitespace().nth(INODE));
        let passing: Vec<_> = inodes.map(|inode| format!("socket:[{inode}]")).collect();
        files.retain(|file| !passing.contains(file));
        files.sort();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib = resident.trim().trim_end_matches(" kB").parse().unwrap();
        Self { files, threads: entries("task").count(), kib }
    }
}

/// A column of `/proc/net/tcp`.
const INODE: usize = 9;
/// containerd's runtime starts one now and then, and keeps it.
const SPARE_THREADS: usize = 4;
/// What the snapshotter may have more resident at the end: the blobs and snapshots are the same for each pod.
const GROWTH_KIB: u64 = 2 << 10;
