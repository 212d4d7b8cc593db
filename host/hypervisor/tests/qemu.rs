//! VMs in a real QEMU, with a guest of a few instructions that says what a test wants it to say.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{
    Acceleration, Confinement, Console, Disk, DiskConfig, Error, Network, QEMU, Tee, User, Vm, VmConfig, Vsock, hotplug,
};
use tokio::time::Instant;
use vsock_backend::{Backend, BackendConfig};

#[tokio::test]
async fn a_guest_boots_and_is_stopped_in_an_orderly_way() {
    let Some(lab) = Lab::new("hello from the guest\n", AtTheEnd::Stay) else { return };
    let vm = Vm::launch(lab.config()).await.unwrap();
    assert!(!lab.path("qmp.sock").exists(), "nobody else may connect to the monitor");

    let greeting = vm.console().wait_for(|line| line.contains("hello"), Instant::now() + PATIENCE);
    assert_eq!(&*vm.boot(greeting, PATIENCE).await.unwrap().unwrap().text, "hello from the guest");
    assert_eq!(format!("{:?}", vm.qmp().status().await.unwrap()), "running");

    let mut events = vm.qmp().events();
    let reason = vm.stop(PATIENCE).await;
    assert!(reason.status.success(), "{reason}");
    assert!(format!("{:?}", events.recv().await.unwrap()).starts_with("SHUTDOWN"));
    assert_eq!(reason.console.last().unwrap(), "hello from the guest");
    assert!(!exists(vm.pid()));
    // Asking again gives the same answer.
    assert_eq!(vm.exited().await.status, reason.status);
}

#[tokio::test]
async fn a_kernel_panic_is_the_reason_that_a_guest_did_not_come_up() {
    let panic = "[    0.5] Kernel panic - not syncing: Attempted to kill init! exitcode=0x0000000b\n";
    for end in [AtTheEnd::Reset, AtTheEnd::Stay] {
        let Some(lab) = Lab::new(panic, end) else { return };
        let vm = Vm::launch(lab.config()).await.unwrap();
        let error = vm.boot(std::future::pending::<()>(), PATIENCE).await.unwrap_err().to_string();
        assert!(error.contains("kernel panic: Attempted to kill init! exitcode=0x0000000b;"), "{error}");
    }
}

#[tokio::test]
async fn a_guest_that_reboots_ends_its_vm() {
    let Some(lab) = Lab::new("good bye\n", AtTheEnd::Reset) else { return };
    let vm = Vm::launch(lab.config()).await.unwrap();
    let error = vm.boot(std::future::pending::<()>(), PATIENCE).await.unwrap_err();
    assert!(matches!(error, Error::GuestEnded(_)), "{error}");
    assert!(error.to_string().contains("good bye"), "{error}");
}

#[tokio::test]
async fn a_guest_that_is_not_ready_in_time_is_named_by_its_last_line() {
    let Some(lab) = Lab::new("waiting for Godot\n", AtTheEnd::Stay) else { return };
    let vm = Vm::launch(lab.config()).await.unwrap();
    vm.console().wait_for(|line| line.contains("Godot"), Instant::now() + PATIENCE).await.unwrap();
    let error = vm.boot(std::future::pending::<()>(), Duration::from_millis(10)).await.unwrap_err();
    assert!(matches!(&error, Error::GuestSilent { last_line, .. } if last_line == "waiting for Godot"), "{error}");
}

#[tokio::test]
async fn a_dropped_vm_is_gone() {
    let Some(lab) = Lab::new("", AtTheEnd::Stay) else { return };
    let vm = Vm::launch(lab.config()).await.unwrap();
    let pid = vm.pid();
    assert!(exists(pid));
    drop(vm);
    assert!(!exists(pid));
}

#[tokio::test]
async fn disks_are_attached_in_turn_and_a_refused_one_leaves_nothing() {
    let Some(lab) = Lab::new("", AtTheEnd::Stay) else { return };
    let vm = Vm::launch(lab.config()).await.unwrap();
    let disk = |name: &str, read_only| DiskConfig { path: lab.path(name), read_only };
    std::fs::write(lab.path("data"), [0; 4096]).unwrap();

    assert_eq!(vm.attach_disk(disk("disk", true)).await.unwrap().pci_path(), "02/02");
    let error = vm.attach_disk(disk("missing", true)).await.unwrap_err();
    assert!(matches!(&error, hotplug::Error::Open { .. }), "{error}");
    let error = vm.attach_disk(DiskConfig { path: "/proc/self".into(), read_only: true }).await.unwrap_err();
    assert!(matches!(&error, hotplug::Error::Open { .. }), "{error}");

    assert_eq!(vm.attach_disk(disk("data", false)).await.unwrap().pci_path(), "02/03");
    // A second writer is refused by QEMU, and its slot is free again.
    let error = vm.attach_disk(disk("data", false)).await.unwrap_err();
    assert!(matches!(&error, hotplug::Error::Attach { .. }), "{error}");
    assert!(error.to_string().contains("lock"), "{error}");
    assert_eq!(vm.attach_disk(disk("disk", true)).await.unwrap().pci_path(), "02/04");
}

#[tokio::test]
async fn a_confined_qemu_runs_as_its_own_user_in_its_own_network() {
    let Some(lab) = Lab::new("confined\n", AtTheEnd::Stay) else { return };
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return eprintln!("skipped: only root can give up its user");
    }
    // A namespace that only its descriptor holds: a thread makes it, and ends.
    let namespace = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap()
    });
    let namespace = namespace.join().unwrap();
    let inode = namespace.metadata().unwrap().ino();
    let user = User { id: 1_234_567_890, groups: vec![36] };
    std::fs::set_permissions(lab.path(""), std::fs::Permissions::from_mode(0o711)).unwrap();
    let confinement =
        Confinement { network_namespace: Some(Arc::new(namespace.into())), cgroups: Vec::new(), user: Some(user) };

    let vm = Vm::launch(VmConfig { confinement, ..lab.config() }).await.unwrap();

    vm.console().wait_for(|line| line.contains("confined"), Instant::now() + PATIENCE).await.unwrap();
    let process = Path::new("/proc").join(vm.pid().to_string());
    assert_eq!(std::fs::metadata(process.join("ns/net")).unwrap().ino(), inode);
    let status = std::fs::read_to_string(process.join("status")).unwrap();
    for line in ["Uid:\t1234567890\t1234567890\t1234567890\t1234567890", "Groups:\t36 ", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{line:?} is not in {status}");
    }
    assert!(status.contains("Seccomp:\t2"), "{status}");
    vm.attach_disk(DiskConfig { path: lab.path("disk"), read_only: true }).await.unwrap();
}

#[tokio::test]
async fn what_qemu_says_about_its_command_line_is_passed_on() {
    let Some(lab) = Lab::new("", AtTheEnd::Stay) else { return };
    std::fs::write(lab.path("kernel"), [0; 4096]).unwrap();
    let error = Vm::launch(lab.config()).await.unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert!(error.to_string().contains("kernel too old"), "{error}");
    assert!(!lab.path("qmp.sock").exists());
}

#[tokio::test]
async fn missing_files_are_found_before_qemu_is_started() {
    let Some(lab) = Lab::new("", AtTheEnd::Stay) else { return };
    std::fs::remove_file(lab.path("initramfs")).unwrap();
    let error = Vm::launch(lab.config()).await.unwrap_err().to_string();
    assert!(error.contains("initramfs") && error.contains("guest image"), "{error}");
}

/// A folder with everything that a VM needs.
struct Lab {
    folder: tempfile::TempDir,
    _backend: Backend,
}

impl Lab {
    /// `None`, with a printed reason, where QEMU is not installed.
    fn new(output: &str, end: AtTheEnd) -> Option<Self> {
        if Command::new(QEMU).arg("--version").output().is_err() {
            eprintln!("skipped: {QEMU} is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), kernel(output, end)).unwrap();
        std::fs::write(folder.path().join("initramfs"), "unused").unwrap();
        std::fs::write(folder.path().join("disk"), [0; 4096]).unwrap();
        let backend = Backend::start(BackendConfig {
            socket: folder.path().join("vhost.sock"),
            uds: folder.path().join("vm.vsock"),
            guest_cid: 3,
        });
        Some(Self { folder, _backend: backend.unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// All devices at once.
    fn config(&self) -> VmConfig {
        VmConfig {
            name: "test".into(),
            kernel: self.path("kernel"),
            initramfs: self.path("initramfs"),
            command_line: "console=ttyS0".into(),
            memory_mib: 64,
            vcpus: 2,
            acceleration: Acceleration::Tcg,
            vsock: Vsock::UserBackend { socket: self.path("vhost.sock") },
            disks: vec![
                Disk { path: self.path("disk"), serial: "initdata".into(), read_only: true },
                Disk { path: self.path("disk"), serial: "again".into(), read_only: true },
            ],
            network: Network::User,
            qmp_socket: self.path("qmp.sock"),
            bios: None,
            tee: Tee::None,
            initdata_digest: None,
            confinement: Confinement::default(),
            console: Console::new(),
        }
    }
}

/// What the guest does when it has said its piece.
#[derive(Clone, Copy)]
enum AtTheEnd {
    Stay,
    Reset,
}

/// A multiboot kernel of 32-bit code that writes `output` to the first serial port.
fn kernel(output: &str, end: AtTheEnd) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const HEADER: u32 = 32;
    const MAGIC: u32 = 0x1bad_b002;
    const HAS_ADDRESSES: u32 = 1 << 16;

    let mut code = vec![0xbe]; // mov esi, message
    let message = code.len();
    code.extend([0; 4]);
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    code.extend([0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]); // next: lodsb; test al, al; jz done; out dx, al; jmp next
    if matches!(end, AtTheEnd::Reset) {
        code.extend([0xb0, 0xfe, 0xe6, 0x64]); // mov al, 0xfe; out 0x64, al: the keyboard controller's reset
    }
    code.extend([0xf4, 0xeb, 0xfd]); // stay: hlt; jmp stay
    let address = BASE + HEADER + code.len() as u32;
    code[message..message + 4].copy_from_slice(&address.to_le_bytes());
    // The firmware has not ended its last line.
    code.push(b'\n');
    code.extend(output.bytes());
    code.push(0);

    let end = BASE + HEADER + code.len() as u32;
    let checksum = 0_u32.wrapping_sub(MAGIC.wrapping_add(HAS_ADDRESSES));
    let header = [MAGIC, HAS_ADDRESSES, checksum, BASE, BASE, end, end, BASE + HEADER];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend(code);
    image
}

fn exists(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
