//! What a pod VM is made of, and the QEMU command line that says so.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::acceleration::Acceleration;
use crate::confinement::Confinement;
use crate::error::Error;
use crate::tee::Tee;

/// A VM that boots a kernel and an initramfs directly.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Shown in process lists and logs.
    pub name: String,
    /// A bzImage, or a vmlinux ELF with a PVH entry, which boots faster.
    pub kernel: PathBuf,
    /// A cpio archive, compressed or not.
    pub initramfs: PathBuf,
    /// The kernel's command line. `console=ttyS0` is what [`Vm::console`](crate::Vm::console) captures.
    pub command_line: String,
    /// Memory in MiB. All of it is one shared memory file, so that a vhost-user back end can see it.
    pub memory_mib: u32,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// What executes the guest; see [`acceleration::probe`](crate::acceleration::probe).
    pub acceleration: Acceleration,
    /// The guest's channel to the host.
    pub vsock: Vsock,
    /// Disks in the order in which the guest sees them: vda, vdb, ...
    pub disks: Vec<Disk>,
    /// The guest's network.
    pub network: Network,
    /// Where QEMU's monitor reaches us; exists only while the VM is launched.
    pub qmp_socket: PathBuf,
    /// Firmware in place of QEMU's SeaBIOS; [`qboot`] finds the fast one. A [`Tee`] has its own.
    pub bios: Option<PathBuf>,
    /// What keeps the host out of the guest.
    pub tee: Tee,
    /// The digest of the owner's initdata, in the register that the TEE has for it.
    pub initdata_digest: Option<Vec<u8>>,
    /// Where and as whom QEMU runs.
    pub confinement: Confinement,
}

/// How the guest reaches the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Vsock {
    /// The host kernel's vhost-vsock; `cid` must be unique on the host.
    Kernel {
        /// The guest's address, 3 or higher.
        cid: u32,
    },
    /// A vhost-user back end that listens on `socket` and knows the guest's address.
    UserBackend {
        /// The vhost-user socket.
        socket: PathBuf,
    },
}

/// A raw image or block device as a virtio disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// The image file or device.
    pub path: PathBuf,
    /// What the guest knows the disk by: 1 to 20 bytes of ASCII letters, digits, `-`, `_` and `.`.
    pub serial: String,
    /// Read-only disks are not locked, so that VMs can share an image.
    pub read_only: bool,
}

/// How the guest reaches a network.
#[derive(Clone, Debug)]
pub enum Network {
    /// Not at all.
    None,
    /// Through QEMU's user-mode network: outgoing connections only, no privileges needed. All such guests have the
    /// same MAC, because each is alone in its network.
    User,
    /// Through interfaces of the host, in the order in which the guest sees them.
    Taps(Vec<Tap>),
}

/// An open tap or macvtap device. QEMU gets the descriptor, and so needs no right to open one.
#[derive(Clone, Debug)]
pub struct Tap {
    /// The device, with room for the header that virtio puts before a frame.
    pub device: Arc<OwnedFd>,
    /// The guest's address on this link.
    pub mac: String,
}

/// The fast firmware, if QEMU's package has it.
pub fn qboot() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/share/qemu/qboot.rom");
    path.exists().then_some(path)
}

impl VmConfig {
    /// What QEMU inherits, open under the same number.
    pub(crate) fn inherited(&self) -> Vec<Arc<OwnedFd>> {
        match &self.network {
            Network::None | Network::User => Vec::new(),
            Network::Taps(taps) => taps.iter().map(|tap| tap.device.clone()).collect(),
        }
    }

    /// QEMU's arguments, without the program itself.
    pub fn argv(&self) -> Vec<OsString> {
        let mut argv = Argv::default();
        self.machine(&mut argv);
        self.boot(&mut argv);
        argv.option("-chardev", "stdio,id=console0,signal=off");
        argv.option("-serial", "chardev:console0");
        // QEMU connects to us: its readiness is an event then, and nothing has to be polled.
        argv.option("-chardev", Value::start("socket,id=qmp0,path=").path(&self.qmp_socket));
        argv.option("-mon", "chardev=qmp0,mode=control");
        self.devices(&mut argv);
        argv.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        argv.0
    }

    /// Refuses what QEMU would misunderstand or report in a way that nobody understands.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.tee != Tee::None && self.acceleration != Acceleration::Kvm {
            return Err(Error::TeeWithoutKvm);
        }
        let mut files = vec![("kernel", &self.kernel)];
        if self.tee != Tee::Se {
            files.push(("initramfs", &self.initramfs));
        }
        files.extend(self.bios.iter().map(|bios| ("firmware", bios)));
        files.extend(self.disks.iter().map(|disk| ("disk", &disk.path)));
        for (what, path) in files {
            std::fs::metadata(path).map_err(|source| Error::File { what, path: path.clone(), source })?;
        }
        if let Some(disk) = self.disks.iter().find(|disk| !disk.has_valid_serial()) {
            return Err(Error::DiskSerial(disk.serial.clone()));
        }
        Ok(())
    }

    fn machine(&self, argv: &mut Argv) {
        argv.option("-name", Value::default().text(&self.name));
        for flag in ["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"] {
            argv.flag(flag);
        }
        argv.option("-vga", "none");
        // With a TEE, QEMU itself gives all virtio devices what they need to reach the memory that a guest shares.
        if let Some(object) = self.tee.object(self.initdata_digest.as_deref()) {
            argv.option("-object", object);
        }
        argv.option(
            "-machine",
            format!("{},accel={},memory-backend=ram0", self.tee.machine(), self.acceleration.name()),
        );
        argv.option("-cpu", self.tee.cpu(self.acceleration));
        argv.option("-smp", self.vcpus.to_string());
        argv.option("-m", format!("{}M", self.memory_mib));
        argv.option("-object", format!("memory-backend-memfd,id=ram0,size={}M,share=on", self.memory_mib));
    }

    fn boot(&self, argv: &mut Argv) {
        if let Some(bios) = &self.bios {
            argv.option("-bios", bios.as_os_str());
        }
        argv.option("-kernel", self.kernel.as_os_str());
        if self.tee != Tee::Se {
            argv.option("-initrd", self.initramfs.as_os_str());
            argv.option("-append", self.command_line.as_str());
        }
    }

    fn devices(&self, argv: &mut Argv) {
        let bus = self.tee.bus();
        if bus == "pci" {
            // Before all others, which take the slots that are free. ACPI tells the guest what comes and goes.
            argv.option(
                "-device",
                format!("pci-bridge,id={BRIDGE},bus=pcie.0,addr={BRIDGE_SLOT:#x},chassis_nr=1,shpc=off"),
            );
        }
        argv.option("-object", "rng-builtin,id=rng0");
        argv.option("-device", format!("virtio-rng-{bus},rng=rng0"));
        match &self.vsock {
            Vsock::Kernel { cid } => argv.option("-device", format!("vhost-vsock-{bus},guest-cid={cid}")),
            Vsock::UserBackend { socket } => {
                argv.option("-chardev", Value::start("socket,id=vsock0,path=").path(socket));
                argv.option("-device", format!("vhost-user-vsock-{bus},chardev=vsock0"));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let mode = if disk.read_only { "readonly=on,file.locking=off" } else { "readonly=off" };
            let drive = format!("if=none,id=disk{index},format=raw,{mode},file=");
            argv.option("-drive", Value::start(drive).path(&disk.path));
            let device = format!("virtio-blk-{bus},drive=disk{index},serial=");
            argv.option("-device", Value::start(device).text(&disk.serial));
        }
        // An option ROM would only cost boot time.
        let rom = if bus == "pci" { ",romfile=" } else { "" };
        match &self.network {
            Network::None => {}
            Network::User => {
                argv.option("-netdev", "user,id=net0");
                argv.option("-device", format!("virtio-net-{bus},netdev=net0,mac={USER_MAC}{rom}"));
            }
            Network::Taps(taps) => {
                for (index, tap) in taps.iter().enumerate() {
                    argv.option("-netdev", format!("tap,id=net{index},fd={}", tap.device.as_raw_fd()));
                    argv.option("-device", format!("virtio-net-{bus},netdev=net{index},mac={}{rom}", tap.mac));
                }
            }
        }
    }
}

impl Disk {
    fn has_valid_serial(&self) -> bool {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (1..=SERIAL_BYTES).contains(&self.serial.len()) && self.serial.bytes().all(valid)
    }
}

#[derive(Default)]
struct Argv(Vec<OsString>);

impl Argv {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.flag(name);
        self.0.push(value.into());
    }
}

/// The value of an option: keys and values separated by commas, so that commas in a value are doubled.
#[derive(Default)]
struct Value(OsString);

impl Value {
    fn start(options: impl Into<OsString>) -> Self {
        Self(options.into())
    }

    fn path(self, path: &Path) -> Self {
        self.escaped(path.as_os_str())
    }

    fn text(self, text: &str) -> Self {
        self.escaped(OsStr::new(text))
    }

    fn escaped(mut self, value: &OsStr) -> Self {
        let mut bytes = Vec::with_capacity(value.len());
        for byte in value.as_bytes() {
            bytes.extend(std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
        }
        self.0.push(OsString::from_vec(bytes));
        self
    }
}

impl From<Value> for OsString {
    fn from(value: Value) -> Self {
        value.0
    }
}

/// Locally administered.
/// The address of the guest's device in [`Network::User`].
pub const USER_MAC: &str = "52:54:00:c0:c0:01";
/// Where disks come and go while the guest runs.
pub(crate) const BRIDGE: &str = "hotplug0";
/// The bridge's place on the machine's own bus.
pub(crate) const BRIDGE_SLOT: u8 = 2;
/// VIRTIO_BLK_ID_BYTES: what is longer would be cut off.
const SERIAL_BYTES: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_vm_on_kvm() {
        let config = VmConfig {
            acceleration: Acceleration::Kvm,
            vsock: Vsock::Kernel { cid: 42 },
            disks: Vec::new(),
            network: Network::None,
            bios: None,
            ..config()
        };
        assert_argv(
            &config,
            "-name pod-1 -nodefaults -no-user-config -nographic -no-reboot -vga none \
             -machine q35,accel=kvm,memory-backend=ram0 -cpu host,pmu=off -smp 2 -m 256M \
             -object memory-backend-memfd,id=ram0,size=256M,share=on \
             -kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 \
             -chardev stdio,id=console0,signal=off -serial chardev:console0 \
             -chardev socket,id=qmp0,path=/run/vm/qmp.sock -mon chardev=qmp0,mode=control \
             -device pci-bridge,id=hotplug0,bus=pcie.0,addr=0x2,chassis_nr=1,shpc=off \
             -object rng-builtin,id=rng0 -device virtio-rng-pci,rng=rng0 \
             -device vhost-vsock-pci,guest-cid=42 \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
    }

    #[test]
    fn a_full_vm_in_software_emulation() {
        assert_argv(
            &config(),
            "-name pod-1 -nodefaults -no-user-config -nographic -no-reboot -vga none \
             -machine q35,accel=tcg,memory-backend=ram0 -cpu max,cx16=off -smp 2 -m 256M \
             -object memory-backend-memfd,id=ram0,size=256M,share=on \
             -bios /usr/share/qemu/qboot.rom \
             -kernel /boot/vmlinux -initrd /boot/initramfs -append console=ttyS0 \
             -chardev stdio,id=console0,signal=off -serial chardev:console0 \
             -chardev socket,id=qmp0,path=/run/vm/qmp.sock -mon chardev=qmp0,mode=control \
             -device pci-bridge,id=hotplug0,bus=pcie.0,addr=0x2,chassis_nr=1,shpc=off \
             -object rng-builtin,id=rng0 -device virtio-rng-pci,rng=rng0 \
             -chardev socket,id=vsock0,path=/run/vm/vhost.sock -device vhost-user-vsock-pci,chardev=vsock0 \
             -drive if=none,id=disk0,format=raw,readonly=on,file.locking=off,file=/run/vm/initdata \
             -device virtio-blk-pci,drive=disk0,serial=initdata \
             -drive if=none,id=disk1,format=raw,readonly=off,file=/run/vm/scratch \
             -device virtio-blk-pci,drive=disk1,serial=scratch \
             -netdev user,id=net0 -device virtio-net-pci,netdev=net0,mac=52:54:00:c0:c0:01,romfile= \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
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
        }
    }
}
