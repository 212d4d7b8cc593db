//! What QEMU makes of the objects for TEEs: the newest one that there is, on a machine that has none of them.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Duration;

use hypervisor::{Acceleration, Confinement, Console, Network, QuoteService, Tee, VmConfig, Vsock};
use newer_debian::NewerDebian;

/// QEMU reads and checks an object before it looks for the hardware, so what it misses is that and nothing else.
#[tokio::test]
async fn qemu_understands_each_tee_and_misses_its_hardware_alone() {
    if std::env::var_os("COCOON_TEST_FULL").is_none() {
        return eprintln!("skipped: it downloads QEMU; next: set COCOON_TEST_FULL=1");
    }
    let qemu = match NewerDebian::unpack(SUITES, PACKAGES) {
        Ok(qemu) => qemu,
        Err(reason) => return eprintln!("skipped: {reason}"),
    };
    let unix = QuoteService::Unix("/var/run/tdx-qgs/qgs.socket".into());
    for tee in [
        Tee::Sev { policy: 5, c_bit: Tee::c_bit() },
        Tee::Snp { policy: 0x30000, c_bit: Tee::c_bit() },
        Tee::Tdx { quotes: None },
        Tee::Tdx { quotes: Some(unix) },
        Tee::Tdx { quotes: Some(QuoteService::Vsock(4050)) },
    ] {
        let complaint = complaint(qemu.command("qemu-system-x86_64"), tee.clone()).await;
        assert!(HARDWARE.iter().any(|missing| complaint.contains(missing)), "{tee:?}: {complaint}");
    }
}

/// What QEMU says in the end; nothing if it runs, because the hardware is there.
async fn complaint(command: Command, tee: Tee) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = VmConfig {
        name: "test".into(),
        kernel: "/dev/null".into(),
        initramfs: "/dev/null".into(),
        command_line: "console=ttyS0".into(),
        memory_mib: 64,
        vcpus: 1,
        acceleration: Acceleration::Kvm,
        vsock: Vsock::UserBackend { socket: folder.path().join("vhost.sock") },
        disks: Vec::new(),
        network: Network::None,
        qmp_socket: folder.path().join("qmp.sock"),
        bios: None,
        tee,
        initdata_digest: Some(vec![0x11; 48]),
        confinement: Confinement::default(),
        console: Console::new(),
    };
    let argv = config.argv();
    // Without the sockets, which nobody serves here.
    let machine = argv.iter().position(|argument| argument == "-kernel").unwrap();
    let mut command = tokio::process::Command::from(command);
    command.args(&argv[..machine]).arg("-S").kill_on_drop(true).stdin(Stdio::null());
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Ok(output) => String::from_utf8_lossy(&output.unwrap().stderr).into_owned(),
        Err(_) => HARDWARE[0].to_owned(),
    }
}

/// How QEMU says that the processor or the kernel does not have it.
const HARDWARE: [&str; 4] =
    ["not supported by KVM", "cbitpos check failed", "/dev/sev", "Could not access KVM kernel module"];
const SUITES: &str = "trixie trixie-backports";
/// The first names the folder.
const PACKAGES: &[&str] = &[
    "libc6",
    "qemu-system-x86/trixie-backports",
    "libaio1t64",
    "libblkid1",
    "libcapstone5",
    "libfdt1",
    "libfuse3-4",
    "libglib2.0-0t64",
    "libgnutls30t64",
    "libhogweed6t64",
    "libidn2-0",
    "libmount1",
    "libnettle8t64",
    "libnuma1",
    "libp11-kit0",
    "libpng16-16t64",
    "libselinux1",
    "libslirp0",
    "libtasn1-6",
    "libunistring5",
    "liburing2",
];
const PATIENCE: Duration = Duration::from_secs(20);
