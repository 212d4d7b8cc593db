//! What Kubernetes asks of a pod's guest, asked of a real one: limits, statistics, events, copied files, disks.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use sandbox::DiskConfig;
use tests::Lab;
use tests::guest::{COPIES, Guest, soon};
use wire_ttrpc::agent::*;
use wire_ttrpc::oci;

#[tokio::test]
async fn a_pod_has_limits_statistics_and_events() {
    let guest = Guest::boot("limits", |config| config.shared_pid_namespace = true).await;
    let pause = guest.create("pause", &[], |request| {
        let kind = ("io.katacontainers.pkg.oci.container_type".to_owned(), "pod_sandbox".to_owned());
        request.OCI.mut_or_insert_default().Annotations.extend([kind]);
        request.storages.clear();
        // As containerd sets it for each sandbox.
        let parameter = ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned());
        request.OCI.mut_or_insert_default().Linux.mut_or_insert_default().Sysctl.extend([parameter]);
    });
    pause.await.unwrap();
    guest.start("pause").await;
    guest.copy("app-config/key", b"from the host").await;
    let start =
        guest.create("app", &["/bin/sh", "-c", "echo last words > /dev/termination-log; exec sleep 3600"], |request| {
            let spec = request.OCI.mut_or_insert_default();
            spec.Mounts.push(bind("/etc/config", &format!("{COPIES}/app-config")));
            spec.Mounts.push(bind("/dev/shm", "/run/kata-containers/sandbox/shm"));
            let resources = spec.Linux.mut_or_insert_default().Resources.mut_or_insert_default();
            resources.Memory.mut_or_insert_default().Limit = 64 << 20;
        });
    start.await.unwrap();
    guest.start("app").await;

    // The container is where it should be, with what it should have.
    assert_eq!(guest.output("app", &["cat", "/proc/sys/net/ipv4/ping_group_range"]).await, "0\t2147483647\n");
    assert_eq!(guest.output("app", &["cat", "/etc/config/key"]).await, "from the host");
    assert_eq!(guest.output("app", &["cat", "/proc/1/comm"]).await, "pause\n");
    let stats = guest.stats("app").await;
    assert_eq!(stats.memory_stats.usage.limit, 64 << 20);
    assert!(stats.cpu_stats.cpu_usage.total_usage > 0 && stats.pids_stats.current > 0, "{stats:?}");

    // Limits change while it runs.
    let mut update = UpdateContainerRequest { container_id: "app".into(), ..Default::default() };
    let resources = update.resources.mut_or_insert_default();
    resources.Memory.mut_or_insert_default().Limit = 32 << 20;
    let cpu = resources.CPU.mut_or_insert_default();
    (cpu.Quota, cpu.Period, cpu.Shares) = (50_000, 100_000, 512);
    guest.agent().update_container(soon(), &update).await.unwrap();
    assert_eq!(guest.stats("app").await.memory_stats.usage.limit, 32 << 20);
    assert_eq!(guest.output("app", &["cat", "/sys/fs/cgroup/cpu.max"]).await, "50000 100000\n");

    // Whoever takes more memory than that is killed, and the host hears of it.
    let told = tokio::spawn({
        let agent = guest.agent().clone();
        async move { agent.get_oom_event(soon(), &GetOOMEventRequest::new()).await.unwrap().container_id }
    });
    let greedy = ["/bin/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"];
    assert_eq!(guest.exec("app", &greedy).await.0, 137);
    assert_eq!(told.await.unwrap(), "app");

    // A paused container answers nothing until it goes on.
    let pause = PauseContainerRequest { container_id: "app".into(), ..Default::default() };
    guest.agent().pause_container(soon(), &pause).await.unwrap();
    let resume = ResumeContainerRequest { container_id: "app".into(), ..Default::default() };
    guest.agent().resume_container(soon(), &resume).await.unwrap();
    let log = GetDiagnosticDataRequest {
        log_type: "termination_log".into(),
        container_id: "app".into(),
        ..Default::default()
    };
    assert_eq!(guest.agent().get_diagnostic_data(soon(), &log).await.unwrap().data, "last words\n");

    // The same container again, in the same pod.
    let remove = RemoveContainerRequest { container_id: "app".into(), timeout: 10, ..Default::default() };
    guest.agent().remove_container(soon(), &remove).await.unwrap();
    guest.create("app", &["/bin/sh", "-c", "exit 3"], |_| {}).await.unwrap();
    assert_eq!(guest.run("app").await, 3);
    guest.end().await;
}

#[tokio::test]
async fn a_disk_that_is_plugged_in_is_a_volume_or_a_device() {
    let lab = Lab::new();
    let disk = |name: &str| {
        let path = lab.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
        path
    };
    let (volume, raw) = (disk("volume.img"), disk("raw.img"));
    let content = lab.path().join("content");
    std::fs::create_dir(&content).unwrap();
    std::fs::write(content.join("greeting"), "from the disk").unwrap();
    tests::run("mke2fs", ["-q", "-t", "ext4", "-d", content.to_str().unwrap(), volume.to_str().unwrap()]);
    std::fs::write(&raw, "raw bytes").unwrap();
    std::fs::File::options().write(true).open(&raw).unwrap().set_len(1 << 20).unwrap();

    let guest = Guest::boot("disks", |_| {}).await;
    let attach = async |path: &Path, read_only| {
        let disk = DiskConfig { path: path.to_owned(), read_only };
        guest.sandbox.attach_disk(disk).await.unwrap()
    };
    let (volume, raw) = (attach(&volume, false).await, attach(&raw, true).await);
    let data = "/run/kata-containers/sandbox/storage/data";
    let with_disks = |request: &mut CreateContainerRequest| {
        request.storages.push(Storage {
            driver: "blk".into(),
            source: volume.pci_path(),
            fstype: "ext4".into(),
            mount_point: data.into(),
            ..Default::default()
        });
        request.devices.push(Device {
            id: raw.pci_path(),
            type_: "blk".into(),
            container_path: "/dev/raw-disk".into(),
            ..Default::default()
        });
        request.OCI.mut_or_insert_default().Mounts.push(bind("/data", data));
    };
    guest.create("app", &["sleep", "3600"], with_disks).await.unwrap();
    guest.start("app").await;
    assert_eq!(guest.output("app", &["cat", "/data/greeting"]).await, "from the disk");
    // A program begins with every signal at its default, the container's first one as one that is run in it.
    let statuses = guest.output("app", &["cat", "/proc/1/status", "/proc/self/status"]).await;
    let ignored: Vec<&str> = statuses.lines().filter(|line| line.starts_with("SigIgn:")).collect();
    assert_eq!(ignored, ["SigIgn:\t0000000000000000"; 2]);
    let head = ["/bin/busybox", "dd", "if=/dev/raw-disk", "bs=9", "count=1"];
    assert_eq!(guest.output("app", &head).await, "raw bytes");
    let stats = VolumeStatsRequest { volume_guest_path: data.into(), ..Default::default() };
    let stats = guest.agent().get_volume_stats(soon(), &stats).await.unwrap();
    assert!(stats.usage[0].total > 1 << 20 && stats.usage[0].used > 0, "{stats:?}");

    // With its last container the volume goes, so that its disk can be taken away.
    let remove = RemoveContainerRequest { container_id: "app".into(), timeout: 10, ..Default::default() };
    guest.agent().remove_container(soon(), &remove).await.unwrap();
    guest.sandbox.detach_disk(volume).await.unwrap();
    let error = guest.create("app", &["sleep", "1"], with_disks_gone(data)).await.unwrap_err().to_string();
    assert!(error.contains("no disk is at"), "{error}");
    guest.end().await;
}

#[tokio::test]
async fn what_a_pod_writes_to_an_encrypted_disk_and_its_images_stay_inside() {
    let lab = Lab::new();
    let disk = |name: &str, mib: u64| {
        let path = lab.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path
    };
    let (scratch, images) = (disk("scratch.img", 40), disk("images.img", 64));
    let guest = Guest::boot("encrypted", |_| {}).await;
    let attach = async |path: &Path| {
        let disk = DiskConfig { path: path.to_owned(), read_only: false };
        guest.sandbox.attach_disk(disk).await.unwrap().pci_path()
    };
    let (scratch_path, images_path) = (attach(&scratch).await, attach(&images).await);
    let data = "/run/kata-containers/sandbox/storage/scratch";
    let with_disks = |request: &mut CreateContainerRequest| {
        request.storages.push(Storage {
            driver: "blk".into(),
            driver_options: ["create_filesystem", "encryption_key=ephemeral"].map(str::to_owned).to_vec(),
            source: scratch_path.clone(),
            fstype: "ext4".into(),
            mount_point: data.into(),
            shared: true,
            ..Default::default()
        });
        request.devices.push(Device {
            id: images_path.clone(),
            type_: "blk".into(),
            container_path: "/dev/trusted_store".into(),
            ..Default::default()
        });
        let spec = request.OCI.mut_or_insert_default();
        spec.Mounts.push(bind("/scratch", data));
        let device = oci::LinuxDevice { Path: "/dev/trusted_store".into(), Type: "b".into(), ..Default::default() };
        spec.Linux.mut_or_insert_default().Devices.push(device);
    };
    guest.create("app", &["sleep", "3600"], with_disks).await.unwrap();
    guest.start("app").await;
    guest.output("app", &["/bin/sh", "-c", &format!("echo {MARKER} > /scratch/note; /bin/busybox sync")]).await;
    assert_eq!(guest.output("app", &["cat", "/scratch/note"]).await, format!("{MARKER}\n"));
    let mounts = guest.output("app", &["cat", "/proc/mounts"]).await;
    assert!(
        mounts.lines().any(|line| line.starts_with("/dev/mapper/volume-") && line.contains(" /scratch ext4 ")),
        "{mounts}"
    );
    assert!(guest.output("app", &["ls", "/dev"]).await.lines().all(|name| name != "trusted_store"));

    // Another container of the pod has the same volume, and its image where the first one's is.
    guest.create("other", &["cat", "/scratch/note"], with_disks).await.unwrap();
    assert_eq!(guest.run("other").await, 0);
    guest.end().await;
    for disk in [scratch, images] {
        let bytes = std::fs::read(disk).unwrap();
        let written = bytes.iter().filter(|byte| **byte != 0).count();
        assert!(written > 16 << 10, "{written} bytes");
        for secret in [MARKER, "applet not found"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret} is readable");
        }
    }
}

fn with_disks_gone(data: &str) -> impl FnOnce(&mut CreateContainerRequest) {
    let mount_point = data.to_owned();
    move |request| {
        request.storages.push(Storage {
            driver: "blk".into(),
            source: "02/1f".into(),
            fstype: "ext4".into(),
            mount_point,
            ..Default::default()
        });
    }
}

fn bind(destination: &str, source: &str) -> oci::Mount {
    oci::Mount {
        destination: destination.into(),
        source: source.into(),
        type_: "bind".into(),
        options: vec!["rbind".into()],
        ..Default::default()
    }
}

const MARKER: &str = "what-only-the-guest-may-read";
