//! A sandbox as a shim makes it, with the real guest: in a pod's network, in a pod's cgroup, with a disk that comes late.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use sandbox::{DiskConfig, Error, GuestFiles, PodNetwork, Sandbox, SandboxConfig, SandboxName};
use tokio::time::Instant;

#[tokio::test]
async fn a_pods_machine_has_its_network_its_cgroup_and_its_disks() {
    let Some(lab) = Lab::new("whole") else { return };
    let cgroup = TestCgroup::new(&lab.pod);
    let mut config = lab.config();
    config.network = PodNetwork::Namespace(Path::new("/run/netns").join(&lab.pod));
    config.cgroup = Some(cgroup.path());
    // The kernel then says which disks it sees.
    config.kernel_params = vec!["loglevel=7".to_owned()];
    let (folder, console) = (sandbox::Directory::path_of(&config.name), config.console.clone());

    let sandbox = Sandbox::start(config).await.unwrap();

    lab.expect_guest();
    let pid = sandbox.pid().unwrap();
    assert!(cgroup.processes().contains(&pid), "{:?}", cgroup.processes());
    assert_eq!(cgroup.quota(), TestCgroup::QUOTA, "the limit holds again");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(!status.contains("Uid:\t0"), "{status}");

    let path = lab.folder.path().join("disk");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let disk = sandbox.attach_disk(DiskConfig { path, read_only: true }).await.unwrap();
    assert_eq!(disk.pci_path(), "02/02");
    let seen = |line: &str| line.contains("2048 512-byte logical blocks");
    console.wait_for(seen, Instant::now() + PATIENCE).await.expect("the guest's kernel sees the disk");
    sandbox.detach_disk(disk).await.unwrap();

    sandbox.stop().await.unwrap();
    drop(sandbox);
    assert!(!Path::new("/proc").join(pid.to_string()).exists());
    assert!(!folder.exists());
    let left = sh(&format!("ip -n {0} -brief link; tc -n {0} qdisc", lab.pod));
    assert!(!left.contains("tap") && !left.contains("ingress"), "{left}");
    cgroup.expect_gone();
}

#[tokio::test]
async fn a_guest_is_reached_through_macvtap() {
    let Some(lab) = Lab::new("macvtap") else { return };
    let mut config = lab.config();
    config.network = PodNetwork::Macvtap(Path::new("/run/netns").join(&lab.pod));

    let sandbox = Sandbox::start(config).await.unwrap();

    lab.expect_guest();
    drop(sandbox);
    let left = sh(&format!("ip -n {} -brief link", lab.pod));
    assert!(!left.contains("tap"), "{left}");
}

#[tokio::test]
async fn a_guest_without_memory_says_so() {
    let Some(lab) = Lab::new("small") else { return };
    // Too little for QEMU to load the image, and for the kernel to start.
    for (memory_mib, stage) in [(16, "launch: "), (64, "boot: ")] {
        let config = SandboxConfig { memory_mib, ..lab.config() };
        let folder = sandbox::Directory::path_of(&config.name);
        let error = Sandbox::start(config).await.err().unwrap();
        let text = error.to_string();
        assert!(text.starts_with(stage) && text.contains("; next: give the guest more memory"), "{text}");
        assert!(!folder.exists());
    }
}

#[tokio::test]
async fn a_network_that_is_not_there_is_an_error_before_anything_runs() {
    let Some(lab) = Lab::new("absent") else { return };
    let mut config = lab.config();
    config.network = PodNetwork::Namespace("/run/netns/no-such-namespace".into());
    let folder = sandbox::Directory::path_of(&config.name);
    let error = Sandbox::start(config).await.err().unwrap();
    assert!(matches!(&error, Error::Network(_)), "{error}");
    assert!(!folder.exists());
}

/// A pod's namespace, connected to a bridge in another one. All of it is removed when dropped.
struct Lab {
    pod: String,
    peer: String,
    image: PathBuf,
    folder: tempfile::TempDir,
}

impl Lab {
    /// `None`, with a printed reason, where this can't be tried.
    fn new(name: &str) -> Option<Self> {
        let own = std::env::current_exe().unwrap();
        let image = own.ancestors().map(|folder| folder.join("cocoon/guest-image")).find(|path| path.is_dir());
        let Some(image) = image else {
            eprintln!("skipped: the guest image is not built");
            return None;
        };
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root makes network namespaces and cgroups");
            return None;
        }
        let id = std::process::id();
        let lab = Self {
            pod: format!("cocoon-{name}-pod-{id}"),
            peer: format!("cocoon-{name}-peer-{id}"),
            image,
            folder: tempfile::tempdir().unwrap(),
        };
        let (pod, peer) = (&lab.pod, &lab.peer);
        for command in [
            format!("ip netns add {pod}"),
            format!("ip netns add {peer}"),
            format!("ip -n {peer} link add bridge0 type bridge"),
            format!("ip -n {pod} link add eth0 type veth peer name veth0 netns {peer}"),
            format!("ip -n {peer} link set veth0 master bridge0 up"),
            format!("ip -n {peer} address add 10.79.0.1/24 dev bridge0"),
            format!("ip -n {peer} address add fd00:79::1/64 dev bridge0 nodad"),
            format!("ip -n {peer} link set bridge0 up"),
            format!("ip -n {pod} address add 10.79.0.2/24 dev eth0"),
            format!("ip -n {pod} address add fd00:79::2/64 dev eth0 nodad"),
            format!("ip -n {pod} link set eth0 up"),
            format!("ip -n {pod} route add default via 10.79.0.1"),
        ] {
            sh(&command);
        }
        Some(lab)
    }

    fn config(&self) -> SandboxConfig {
        let manifest = fs::read_to_string(self.image.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        let guest = GuestFiles {
            kernel: self.image.join("vmlinux"),
            initramfs: self.image.join("initramfs"),
            command_line: manifest["command_line"].as_str().unwrap().to_owned(),
        };
        SandboxConfig::new(SandboxName::parse(&self.pod).unwrap(), guest)
    }

    /// The guest answers at the pod's addresses, which nobody else has from here on.
    fn expect_guest(&self) {
        sh(&format!("ip -n {} address flush dev eth0", self.pod));
        for address in ["10.79.0.2:7", "[fd00:79::2]:7"] {
            let address: SocketAddr = address.parse().unwrap();
            let refused = self.in_peer(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "the guest has no such server: {refused}");
        }
    }

    /// Runs on a thread that is in the bridge's namespace.
    fn in_peer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(Path::new("/run/netns").join(&self.peer)).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

/// A pod's cgroup with half a processor, where the kubelet would have made it; QEMU's is to be in it.
struct TestCgroup {
    name: String,
    /// In the hierarchy that limits processor time.
    pod: PathBuf,
}

impl TestCgroup {
    const QUOTA: &str = "50000";

    fn new(name: &str) -> Self {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let root = Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/cpu" });
        let pod = root.join(format!("pod-{name}"));
        fs::create_dir_all(&pod).unwrap();
        fs::write(pod.join(Self::quota_file(&pod)), Self::QUOTA).unwrap();
        Self { name: name.to_owned(), pod }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/pod-{0}/{0}", self.name))
    }

    fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.pod.join(&self.name).join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn quota(&self) -> String {
        let text = fs::read_to_string(self.pod.join(Self::quota_file(&self.pod))).unwrap();
        text.split_whitespace().next().unwrap().to_owned()
    }

    fn quota_file(pod: &Path) -> &'static str {
        if pod.join("cpu.max").exists() { "cpu.max" } else { "cpu.cfs_quota_us" }
    }

    fn expect_gone(&self) {
        assert!(!self.pod.join(&self.name).exists());
        let beside = Path::new("/sys/fs/cgroup/unified").join(format!("pod-{}", self.name));
        assert!(!beside.exists(), "only the hierarchies that limit something are used");
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // Others may have been made beside it in the other hierarchies.
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(format!("pod-{}", self.name)));
        }
        let _ = fs::remove_dir(&self.pod);
    }
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const PATIENCE: Duration = Duration::from_secs(30);
