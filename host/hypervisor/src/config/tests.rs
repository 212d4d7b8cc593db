//! Command lines as QEMU gets them, and what is refused before.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::tee::QuoteService;

#[test]
fn a_small_vm_on_kvm() {
    let device = device();
    let config = VmConfig {
        acceleration: Acceleration::Kvm,
        vsock: Vsock::Kernel { cid: 42, device: device.clone() },
        disks: Vec::new(),
        network: Network::Taps(vec![
            Tap { device: device.clone(), vhost: Some(device.clone()), mac: "02:00:00:00:00:02".into() },
            Tap { device: device.clone(), vhost: None, mac: "02:00:00:00:00:03".into() },
        ]),
        bios: None,
        ..config()
    };
    assert_argv(
        &config,
        &format!(
            "-name pod-1 -nodefaults -no-user-config -nographic -no-reboot -vga none \
             -machine q35,accel=kvm,memory-backend=ram0 -cpu host,pmu=off -smp 2 -m 256M \
             -object memory-backend-memfd,id=ram0,size=256M,share=on \
             -kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 \
             {CONSOLE_AND_MONITOR} {BRIDGE_AND_RANDOM} \
             -device vhost-vsock-pci,guest-cid=42,vhostfd={fd} \
             -netdev tap,id=net0,fd={fd},vhost=on,vhostfd={fd} \
             -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:02,romfile= \
             -netdev tap,id=net1,fd={fd} -device virtio-net-pci,netdev=net1,mac=02:00:00:00:00:03,romfile= {SECCOMP}",
            fd = device.as_raw_fd()
        ),
    );
}

#[test]
fn a_full_vm_in_software_emulation() {
    assert_argv(
        &config(),
        &format!(
            "-name pod-1 -nodefaults -no-user-config -nographic -no-reboot -vga none \
             -machine q35,accel=tcg,memory-backend=ram0 -cpu max,cx16=off -smp 2 -m 256M \
             -object memory-backend-memfd,id=ram0,size=256M,share=on \
             -bios /usr/share/qemu/qboot.rom \
             -kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 \
             {CONSOLE_AND_MONITOR} {BRIDGE_AND_RANDOM} {VSOCK} \
             -drive if=none,id=disk0,format=raw,readonly=on,file.locking=off,file=/run/vm/initdata \
             -device virtio-blk-pci,drive=disk0,serial=initdata \
             -drive if=none,id=disk1,format=raw,readonly=off,file=/run/vm/scratch \
             -device virtio-blk-pci,drive=disk1,serial=scratch \
             -netdev user,id=net0 -device virtio-net-pci,netdev=net0,mac=52:54:00:c0:c0:01,romfile= {SECCOMP}"
        ),
    );
}

#[test]
fn a_tee_is_an_object_that_the_machine_refers_to() {
    let tdx = "{\"id\":\"tdx\",\"mrconfigid\":\"ERERERERERERERERERERERERERERERERERERERERERERERERERERERERERERERER\",\
               \"qom-type\":\"tdx-guest\",\"quote-generation-socket\":";
    let unix = QuoteService::Unix("/var/run/tdx-qgs/qgs.socket".into());
    for (tee, object, machine, cpu) in [
        (
            Tee::Snp { policy: 0x30000, c_bit: 51 },
            "sev-snp-guest,id=snp,cbitpos=51,reduced-phys-bits=1,policy=0x30000,kernel-hashes=on,\
             host-data=ERERERERERERERERERERERERERERERERERERERERERE="
                .to_owned(),
            "q35,kernel_irqchip=split,confidential-guest-support=snp",
            "EPYC-v4",
        ),
        (
            Tee::Sev { policy: 5, c_bit: 47 },
            "sev-guest,id=sev,cbitpos=47,reduced-phys-bits=1,policy=5,kernel-hashes=on".to_owned(),
            "q35,confidential-guest-support=sev",
            "host,pmu=off",
        ),
        (
            Tee::Tdx { quotes: Some(unix) },
            format!("{tdx}{{\"path\":\"/var/run/tdx-qgs/qgs.socket\",\"type\":\"unix\"}},\"sept-ve-disable\":true}}"),
            "q35,kernel_irqchip=split,confidential-guest-support=tdx",
            "host,pmu=off",
        ),
        (
            Tee::Tdx { quotes: Some(QuoteService::Vsock(4050)) },
            format!("{tdx}{{\"cid\":\"2\",\"port\":\"4050\",\"type\":\"vsock\"}},\"sept-ve-disable\":true}}"),
            "q35,kernel_irqchip=split,confidential-guest-support=tdx",
            "host,pmu=off",
        ),
    ] {
        let config = confidential(tee);
        assert_argv(
            &config,
            &format!(
                "-name pod-1 -nodefaults -no-user-config -nographic -no-reboot -vga none -object {object} \
                 -machine {machine},accel=kvm,memory-backend=ram0 -cpu {cpu} -smp 2 -m 256M \
                 -object memory-backend-memfd,id=ram0,size=256M,share=on -bios /usr/share/ovmf/OVMF.fd \
                 -kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 \
                 {CONSOLE_AND_MONITOR} {BRIDGE_AND_RANDOM} {VSOCK} {SECCOMP}"
            ),
        );
    }
}

#[test]
fn secure_execution_boots_one_image_on_another_machine() {
    assert_argv(
        &VmConfig { bios: None, ..confidential(Tee::Se) },
        &format!(
            "-name pod-1 -nodefaults -no-user-config -nographic -no-reboot -vga none -object s390-pv-guest,id=pv0 \
             -machine s390-ccw-virtio,confidential-guest-support=pv0,accel=kvm,memory-backend=ram0 -cpu host -smp 2 \
             -m 256M -object memory-backend-memfd,id=ram0,size=256M,share=on -kernel /boot/vmlinux \
             {CONSOLE_AND_MONITOR} -object rng-builtin,id=rng0 -device virtio-rng-ccw,rng=rng0 \
             -chardev socket,id=vsock0,path=/run/vm/vhost.sock -device vhost-user-vsock-ccw,chardev=vsock0 {SECCOMP}"
        ),
    );
}

#[test]
fn a_digest_fits_its_register_whatever_its_length() {
    for length in [32, 48, 64] {
        let digest: Vec<u8> = (1..=length).collect();
        let snp = Tee::Snp { policy: 0x30000, c_bit: 51 }.object(Some(&digest)).unwrap();
        let host_data = STANDARD.decode(snp.split_once("host-data=").unwrap().1).unwrap();
        assert_eq!(host_data, digest[..32]);

        let tdx = Tee::Tdx { quotes: None }.object(Some(&digest)).unwrap();
        let object: serde_json::Value = serde_json::from_str(&tdx).unwrap();
        let mrconfigid = STANDARD.decode(object["mrconfigid"].as_str().unwrap()).unwrap();
        let padded: Vec<u8> = digest.iter().copied().chain(std::iter::repeat(0)).take(48).collect();
        assert_eq!(mrconfigid, padded);
    }
}

#[test]
fn a_tee_without_kvm_is_refused_before_qemu_runs() {
    let config = VmConfig { acceleration: Acceleration::Tcg, ..confidential(Tee::Tdx { quotes: None }) };
    assert!(matches!(config.validate(), Err(Error::TeeWithoutKvm)));
}

#[test]
fn a_comma_in_a_path_or_name_does_not_start_an_option() {
    let disk = Disk { path: "/images/a,b".into(), serial: "x".into(), read_only: false };
    let config = VmConfig { name: "pod,debug-threads=on".into(), disks: vec![disk], ..config() };
    let argv = config.argv();
    assert!(argv.contains(&"pod,,debug-threads=on".into()));
    assert!(argv.contains(&"if=none,id=disk0,format=raw,readonly=off,file=/images/a,,b".into()));
}

#[test]
fn a_command_line_is_one_argument() {
    let command_line = "console=ttyS0 panic=1 -- a,b \"c d\"".to_owned();
    let argv = VmConfig { command_line: command_line.clone(), ..config() }.argv();
    let append = argv.iter().position(|argument| argument == "-append").unwrap();
    assert_eq!(argv[append + 1], OsString::from(command_line));
}

#[test]
fn a_serial_that_the_guest_would_see_differently_is_refused() {
    for (serial, valid) in [
        ("initdata", true),
        ("12345678901234567890", true),
        ("123456789012345678901", false),
        ("", false),
        ("a,b", false),
        ("a b", false),
        ("ä", false),
    ] {
        let disk = Disk { path: "/".into(), serial: serial.into(), read_only: true };
        assert_eq!(disk.has_valid_serial(), valid, "{serial:?}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = config().validate().unwrap_err().to_string();
    assert!(error.contains("kernel /boot/vmlinux"), "{error}");
}

fn assert_argv(config: &VmConfig, expected: &str) {
    assert_eq!(config.argv(), expected.split_whitespace().map(OsString::from).collect::<Vec<_>>());
}

fn config() -> VmConfig {
    VmConfig {
        name: "pod-1".into(),
        kernel: "/boot/vmlinux".into(),
        initramfs: "/boot/initramfs".into(),
        command_line: "console=ttyS0".into(),
        memory_mib: 256,
        vcpus: 2,
        acceleration: Acceleration::Tcg,
        vsock: Vsock::UserBackend { socket: "/run/vm/vhost.sock".into() },
        disks: vec![
            Disk { path: "/run/vm/initdata".into(), serial: "initdata".into(), read_only: true },
            Disk { path: "/run/vm/scratch".into(), serial: "scratch".into(), read_only: false },
        ],
        network: Network::User,
        qmp_socket: "/run/vm/qmp.sock".into(),
        bios: Some("/usr/share/qemu/qboot.rom".into()),
        tee: Tee::None,
        initdata_digest: None,
        confinement: Confinement::default(),
        console: Console::new(),
    }
}

fn confidential(tee: Tee) -> VmConfig {
    VmConfig {
        acceleration: Acceleration::Kvm,
        disks: Vec::new(),
        network: Network::None,
        bios: Some("/usr/share/ovmf/OVMF.fd".into()),
        tee,
        initdata_digest: Some(vec![0x11; 48]),
        ..config()
    }
}

fn device() -> Arc<OwnedFd> {
    Arc::new(std::fs::File::open("/proc/self/exe").unwrap().into())
}

const CONSOLE_AND_MONITOR: &str = "-chardev stdio,id=console0,signal=off -serial chardev:console0 \
    -chardev socket,id=qmp0,path=/run/vm/qmp.sock -mon chardev=qmp0,mode=control";
const BRIDGE_AND_RANDOM: &str = "-device pci-bridge,id=hotplug0,bus=pcie.0,addr=0x2,chassis_nr=1,shpc=off \
    -object rng-builtin,id=rng0 -device virtio-rng-pci,rng=rng0,bus=hotplug0,addr=0x1";
const VSOCK: &str = "-chardev socket,id=vsock0,path=/run/vm/vhost.sock -device vhost-user-vsock-pci,chardev=vsock0";
const SECCOMP: &str = "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
