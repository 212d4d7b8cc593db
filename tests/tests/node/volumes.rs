//! What containers keep on disks of the node: emptyDirs, direct volumes, block volumes and their own images.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::{Whence, lseek};
use serde_json::json;
use tests::node::{Cocoon, Containerd, Pod};
use tests::{Image, InitDataFiles, Lab, example_policy, run};

use crate::ground::{Ground, INITDATA, LIMIT, versions};
use crate::world::ConfigMap;

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_dir_is_a_disk_that_only_the_guest_reads() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("encrypted").run().await;
        let shared = empty_dir(&pod, "shared");
        let first =
            pod.container("first", &ground.image).script(&keep("first", "/shared")).mount(&shared, "/shared", false);
        let first = first.start().await;
        first.said("kept", LIMIT).await;

        // The node stores little of a disk that is as large as what it has left, and can't read it.
        let image = shared.join("disk.img");
        let disk = fs::metadata(&image).unwrap();
        assert!(
            disk.len() > 1 << 30 && disk.blocks() * 512 < 8 << 20,
            "{} of {} bytes",
            disk.blocks() * 512,
            disk.len()
        );
        println!("an emptyDir of {} GiB stores {} KiB at first", disk.len() >> 30, disk.blocks() / 2);
        assert!(!holds(&image, MARKER));

        // Its neighbour, which is somebody else in the group of the volume, has the same folder.
        let second = pod.container("second", &ground.image).script("exec sleep 3600").user(1000, 1000, &[GROUP]);
        let second = second.mount(&shared, "/data", false).start().await;
        let seen = second
            .exec(&["sh", "-c", "cat /data/first; echo mine > /data/second && ls -ln /data; busybox df /data"])
            .await;
        assert_eq!((seen.code, &*seen.stderr), (0, ""), "{}", seen.stdout);
        assert!(seen.stdout.contains(MARKER) && seen.stdout.contains("/dev/mapper/"), "{}", seen.stdout);
        let own = seen.stdout.lines().find(|line| line.ends_with(" second")).unwrap();
        assert!(own.contains(&format!(" 1000     {GROUP} ")), "{own}");

        // A container that is made again finds what it left.
        first.stop(LIMIT).await.unwrap();
        first.remove().await.unwrap();
        let again = pod.container("first", &ground.image).attempt(1).script("cat /shared/*; exec sleep 3600");
        let again = again.mount(&shared, "/shared", false).start().await;
        again.said(MARKER, LIMIT).await;
        again.said("mine", LIMIT).await;

        pod.remove().await;
        assert!(!image.exists(), "the disk goes with its machine");
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_an_empty_dir_are_shared_as_wholes_are() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let pod = ground.pod("parts").run().await;
    let scratch = empty_dir(&pod, "scratch");
    // A kubelet binds each subPath to a place of the container's.
    let part = |container: &str, name: &str| {
        let (whole, part) =
            (scratch.join(name), pod.folder().join("volume-subpaths/scratch").join(container).join(name));
        fs::create_dir_all(&whole).unwrap();
        fs::create_dir_all(&part).unwrap();
        assert!(ground.node.command("mount").arg("--bind").args([&whole, &part]).status().unwrap().success());
        part
    };
    let parts = [part("init", "conf"), part("app", "conf"), part("app", "tmp")];
    let init = pod.container("init", &ground.image).script("echo made > /conf/file").mount(&parts[0], "/conf", false);
    assert_eq!(init.start().await.ended(LIMIT).await.exit_code, 0);
    let app = pod.container("app", &ground.image).script("cat /conf/file; ls /tmp | busybox wc -l; exec sleep 3600");
    let app = app.mount(&parts[1], "/conf", false).mount(&parts[2], "/tmp", false).start().await;
    app.said("made", LIMIT).await;
    app.said("0", LIMIT).await;

    pod.remove().await;
    for part in parts {
        assert!(ground.node.command("umount").arg(&part).status().unwrap().success());
    }
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_changes_on_a_disk_reads_as_an_error() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let pod = ground.pod("tampered").run().await;
    let shared = empty_dir(&pod, "shared");
    let container = pod.container("app", &ground.image).script("exec sleep 3600").mount(&shared, "/shared", false);
    // So that little of a file stays in memory.
    let container = container.memory(16 << 20).start().await;
    // In parts: what waits to be written counts as the container's memory, and a slow disk would end it.
    let write = "for part in 1 2 3 4 5 6 7 8 9 10 11 12; do busybox yes 'what nobody may change' | busybox head -c 4000000; \
        busybox sync; done > /shared/file";
    let written = container.exec(&["sh", "-c", write]).await;
    assert_eq!(written.code, 0, "{written:?}");
    let read = ["sh", "-c", "cat /shared/file > /dev/null"];
    assert_eq!(container.exec(&read).await.code, 0);

    change(&shared.join("disk.img"), 8 << 20);

    let read = container.exec(&read).await;
    assert!(read.code != 0 && read.stderr.contains("Input/output error"), "{read:?}");
    // The container goes on, and the pod ends as any other does.
    assert_eq!(container.exec(&["echo", "alive"]).await.stdout, "alive\n");
    pod.remove().await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_leaves_no_disk_behind() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let pod = ground.pod("killed").run().await;
    let shared = empty_dir(&pod, "shared");
    let container =
        pod.container("app", &ground.image).script(&keep("note", "/shared")).mount(&shared, "/shared", false);
    let container = container.start().await;
    container.said("kept", LIMIT).await;

    ground.node.kill(&ground.node.processes("containerd-shim-cocoon-v2")[0]).await;

    assert_ne!(container.ended(LIMIT).await.exit_code, 0);
    pod.remove().await;
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 0);
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_dir_in_the_clear_gives_its_space_back() {
    let cocoon = Cocoon::new().with("runtime.emptydir_mode", "block-plain");
    let Some(ground) = Ground::on(Containerd::V1, "debug", &cocoon).await else { return };
    let pod = ground.pod("plain").run().await;
    let shared = empty_dir(&pod, "shared");
    let container =
        pod.container("app", &ground.image).script(&keep("note", "/shared")).mount(&shared, "/shared", false);
    let container = container.start().await;
    container.said("kept", LIMIT).await;
    let image = shared.join("disk.img");
    let stored = || fs::metadata(&image).unwrap().blocks() * 512;
    assert!(holds(&image, MARKER));

    let write = "busybox head -c 32000000 /dev/urandom > /shared/large; busybox sync";
    assert_eq!(container.exec(&["sh", "-c", write]).await.code, 0);
    let full = stored();
    assert!(full > 32_000_000, "{full}");
    assert_eq!(container.exec(&["sh", "-c", "busybox rm /shared/large; busybox sync"]).await.code, 0);
    assert!(stored() < full - 30_000_000, "{} of {full} bytes are still stored", stored());

    pod.remove().await;
    assert!(!image.exists());
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_is_an_error_in_the_container_and_never_a_stopped_pod() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let pod = ground.pod("full").run().await;
    let small = empty_dir(&pod, "small");
    let file_system = ground.lab.file("small", "");
    File::options().write(true).open(&file_system).unwrap().set_len(48 << 20).unwrap();
    run("mke2fs", ["-q", "-t", "ext4", file_system.to_str().unwrap()]);
    let mounted = ground.node.command("mount").args(["-o", "loop"]).arg(&file_system).arg(&small).status().unwrap();
    assert!(mounted.success());
    let container = pod.container("app", &ground.image).script(&keep("note", "/small")).mount(&small, "/small", false);
    let container = container.start().await;
    container.said("kept", LIMIT).await;

    // The disk is no larger than the room that there was; what takes the room now is somebody else.
    let inside = ground.node.path(small.to_str().unwrap());
    assert!(fs::metadata(inside.join("disk.img")).unwrap().len() <= 48 << 20);
    let others =
        ground.node.command("sh").args(["-c", "head -c 60000000 /dev/zero > \"$0/others\""]).arg(&small).status();
    assert!(!others.unwrap().success(), "the node is full");
    let write = ["busybox", "dd", "if=/dev/urandom", "of=/small/large", "bs=1M", "count=24", "conv=fsync"];
    let written = container.exec(&write).await;
    assert!(written.code != 0 && written.stderr.contains("Input/output error"), "{written:?}");
    assert_eq!(container.exec(&["cat", "/small/note"]).await.stdout.trim(), MARKER);

    pod.remove().await;
    assert!(ground.node.command("umount").arg(&small).status().unwrap().success());
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_volume_is_mounted_in_the_guest_and_asked_about() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let pod = ground.pod("direct").run().await;
    let device = LoopDevice::new(&ground, "direct", 64 << 20);
    run("mke2fs", ["-q", "-t", "ext4", &device.0]);
    let volume = pod.volume("kubernetes.io~csi", "pvc-1").join("mount");
    fs::create_dir(&volume).unwrap();
    let path = volume.to_str().unwrap();
    let cocoon = |arguments: &[&str]| {
        let output = ground.node.command(Lab::program("cocoon")).arg("direct-volume").args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };

    // As a storage driver does, in either form of upstream's tools.
    let info = |kind: &str| {
        let (device, metadata) = (&device.0, json!({"fsGroup": GROUP.to_string()}));
        json!({"volume-type": kind, "device": device, "fstype": "ext4", "metadata": metadata, "options": []})
            .to_string()
    };
    let (added, said) = cocoon(&["add", path, &info("spdkvol")]);
    assert!(!added && said.contains("\"spdkvol\" are not supported; next: use \"blk\""), "{said}");
    assert_eq!(cocoon(&["add", "--volume-path", path, "--mount-info", &info("blk")]), (true, String::new()));
    let (asked, said) = cocoon(&["stats", path]);
    assert!(!asked && said.contains("no running pod has"), "{said}");

    let container = pod.container("app", &ground.image).script(&keep("note", "/data")).mount(&volume, "/data", false);
    let container = container.start().await;
    container.said("kept", LIMIT).await;
    let mounts = container.exec(&["cat", "/proc/mounts"]).await.stdout;
    assert!(mounts.lines().any(|line| line.starts_with("/dev/vd") && line.contains(" /data ext4 ")), "{mounts}");
    let (asked, said) = cocoon(&["stats", "--volume-path", path]);
    assert!(asked, "{said}");
    let stats: serde_json::Value = serde_json::from_str(&said).unwrap();
    let (total, used) = (&stats["usage"][0]["total"], &stats["usage"][0]["used"]);
    assert!(total.as_u64().unwrap() > 32 << 20 && used.as_u64().unwrap() > 0, "{said}");
    assert_eq!(stats["volume_condition"]["abnormal"], false);
    let (resized, said) = cocoon(&["resize", path, "134217728"]);
    assert!(!resized && said.contains("can't grow; next: remove the pod"), "{said}");

    pod.remove().await;
    assert!(!cocoon(&["stats", path]).0, "nobody has it any more");
    assert_eq!(cocoon(&["remove", path]), (true, String::new()));
    assert!(!cocoon(&["remove", path]).0);
    assert!(holds(Path::new(&device.0), MARKER), "what the pod wrote is on the driver's device");
    drop(device);
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_larger_than_the_guest_s_memory_is_unpacked_to_the_trusted_store() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let large = Image::busybox(&ground.lab, "large", "exec sleep 3600");
    let content = ground.lab.file("content", format!("{MARKER}\n").repeat((320 << 20) / (MARKER.len() + 1)));
    let name = format!("{}:latest", large.layout().display());
    run("umoci", ["insert", "--rootless", "--image", &name, content.to_str().unwrap(), "/content"]);
    let image = ground.registry.push(large.layout(), "large");
    ground.node.pull(&image).await;
    let device = LoopDevice::new(&ground, "store", 1 << 30);

    let policy = example_policy("debug", &image);
    let initdata = InitDataFiles::without_trustee(policy, &ground.registry).annotation(&ground.lab, "initdata-large");

    let pod = ground.pod("store").annotation(INITDATA, initdata).limits(128 << 20, 1000).run().await;
    let container = pod.container("app", &image).script("busybox stat -c %s /content; exec sleep 3600");
    let container = container.device(&device.0, "/dev/trusted_store").start().await;
    container.said(&fs::metadata(&content).unwrap().len().to_string(), LIMIT).await;
    let seen = container.exec(&["sh", "-c", "busybox free -m; ls /dev; busybox tail -n 1 /content"]).await.stdout;
    assert!(seen.contains(MARKER) && !seen.contains("trusted_store"), "{seen}");
    assert!(!holds(Path::new(&device.0), MARKER), "the node can't read the image");

    pod.remove().await;
    drop(device);
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_every_kind_are_there_together() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("kinds").run().await;
        let of = |kind: &str| ConfigMap::new(pod.volume(&format!("kubernetes.io~{kind}"), kind), kind);
        let (config, secret, token, downward) = (of("configmap"), of("secret"), of("projected"), of("downward-api"));
        let scratch = empty_dir(&pod, "scratch");
        let device = LoopDevice::new(&ground, "raw", 4 << 20);

        let container = pod.container("app", &ground.image).script(FOLLOW).mount(&scratch, "/scratch", false);
        let container = container.mount(&config.folder, "/configmap", true).mount(&secret.folder, "/secret", true);
        let container =
            container.mount(&token.folder, "/projected", true).mount(&downward.folder, "/downward-api", true);
        let container = container.device(&device.0, "/dev/xvda").start().await;
        container.said("configmap secret projected downward-api", LIMIT).await;
        for (volume, value) in
            [(&config, "config-2"), (&secret, "secret-2"), (&token, "token-2"), (&downward, "labels-2")]
        {
            volume.change(value);
            container.said(value, LIMIT).await;
        }
        let write = "busybox dd if=/scratch/seen of=/dev/xvda conv=fsync 2>/dev/null; busybox head -c 9 /dev/xvda";
        assert_eq!(container.exec(&["sh", "-c", write]).await.stdout, "configmap");
        assert!(holds(Path::new(&device.0), "labels-2"), "a block volume is the node's own");

        pod.remove().await;
        drop(device);
        ground.expect_clean().await;
    }
}

/// An emptyDir as a kubelet makes one for a pod with an `fsGroup`.
fn empty_dir(pod: &Pod<'_>, name: &str) -> PathBuf {
    let folder = pod.volume("kubernetes.io~empty-dir", name);
    std::os::unix::fs::chown(&folder, None, Some(GROUP as u32)).unwrap();
    folder
}

/// A script that keeps a known text in a file.
fn keep(file: &str, folder: &str) -> String {
    format!("echo '{MARKER}' > {folder}/{file}; busybox sync; echo kept; exec sleep 3600")
}

/// A device of the node, which goes with this value.
struct LoopDevice(String);

impl LoopDevice {
    fn new(ground: &Ground, name: &str, size: u64) -> Self {
        let file = ground.lab.file(name, "");
        File::options().write(true).open(&file).unwrap().set_len(size).unwrap();
        Self(run("losetup", ["--find", "--show", file.to_str().unwrap()]).trim().to_owned())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

/// Whether what is stored of a file, or of a device, has a text in it.
fn holds(path: &Path, text: &str) -> bool {
    stretches(path).iter().any(|(at, length)| {
        let mut bytes = vec![0; *length as usize];
        let read = File::open(path).unwrap().read_at(&mut bytes, *at).unwrap();
        let first = text.as_bytes()[0];
        let mut starts = bytes[..read].iter().enumerate().filter(|(_, byte)| **byte == first);
        starts.any(|(start, _)| bytes[start..].starts_with(text.as_bytes()))
    })
}

/// Changes a bit in each block that is stored of a file beyond `start`.
fn change(path: &Path, start: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for (at, length) in stretches(path) {
        for block in (at..at + length).step_by(4096).filter(|block| *block >= start) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, block + 100).unwrap();
            file.write_all_at(&[byte[0] ^ 1], block + 100).unwrap();
        }
    }
    file.sync_all().unwrap();
}

/// Where something of a file is stored, in pieces with what comes next so that no text is cut; all of a device.
fn stretches(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let seek = |at: i64, whence| lseek(file.as_raw_fd(), at, whence).ok();
    let end = seek(0, Whence::SeekEnd).unwrap();
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        let (data, hole) = match seek(at, Whence::SeekData) {
            Some(data) => (data, seek(data, Whence::SeekHole).unwrap()),
            None if file.metadata().unwrap().is_file() => break,
            None => (at, end),
        };
        for piece in (data..hole).step_by(PIECE) {
            found.push((piece as u64, (hole - piece).min(PIECE as i64 + 4096) as u64));
        }
        at = hole;
    }
    found
}

const PIECE: usize = 16 << 20;
const GROUP: i64 = 2345;
const MARKER: &str = "nobody on the node reads this line";
const FOLLOW: &str = "
while sleep 0.1; do
    now=\"$(cat /configmap/key) $(cat /secret/key) $(cat /projected/key) $(cat /downward-api/key)\"
    if [ \"$now\" != \"$before\" ]; then echo $now; echo $now >> /scratch/seen; before=$now; fi
done";
