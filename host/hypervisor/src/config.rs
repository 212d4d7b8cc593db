//! What a pod VM is made of, and the QEMU command line that says so.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::acceleration::Acceleration;
use crate::confinement::Confinement;
use crate::console::Console;
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
    /// What takes the guest's lines. Whoever has a clone sees them while the guest boots.
    pub console: Console,
}

/// How the guest reaches the host.
#[derive(Clone, Debug)]
pub enum Vsock {
    /// The host kernel's vhost-vsock; `cid` must be unique on the host.
    Kernel {
        /// The guest's address, 3 or higher.
        cid: u32,
        /// `/dev/vhost-vsock`, open, so that QEMU needs no right to open it.
        device: Arc<OwnedFd>,
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
    /// `/dev/vhost-net`, open, if the host's kernel is to move the frames itself; one for each tap.
    pub vhost: Option<Arc<OwnedFd>>,
    /// The guest's address on this link.
    pub mac: String,
}

/// The fast firmware, if QEMU's package has it.
pub fn qboot() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/share/qemu/qboot.rom");
    path.exists().then_some(path)
}

impl VmConfig {
    /// Lets QEMU's user connect to the sockets, which is to write to them.
    pub(crate) fn give_sockets(&self) -> Result<(), Error> {
        let Some(user) = &self.confinement.user else { return Ok(()) };
        let backend = match &self.vsock {
            Vsock::UserBackend { socket } => Some(socket),
            Vsock::Kernel { .. } => None,
        };
        for path in backend.into_iter().chain([&self.qmp_socket]) {
            std::os::unix::fs::chown(path, Some(user.id), None)
                .map_err(|source| Error::Listen { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// What QEMU inherits, open under the same number.
    pub(crate) fn inherited(&self) -> Vec<Arc<OwnedFd>> {
        let taps = match &self.network {
            Network::None | Network::User => &[][..],
            Network::Taps(taps) => taps,
        };
        let vsock = match &self.vsock {
            Vsock::Kernel { device, .. } => Some(device),
            Vsock::UserBackend { .. } => None,
        };
        taps.iter().flat_map(|tap| [Some(&tap.device), tap.vhost.as_ref()]).flatten().chain(vsock).cloned().collect()
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
        // Before all others, which take the slots that are free. ACPI tells the guest what comes and goes. With a device
        // that is always there, guests without firmware for PCI reserve memory behind the bridge for those to come.
        let behind = match bus {
            "pci" => {
                let slot = format!("bus=pcie.0,addr={BRIDGE_SLOT:#x}");
                argv.option("-device", format!("pci-bridge,id={BRIDGE},{slot},chassis_nr=1,shpc=off"));
                format!(",bus={BRIDGE},addr={RANDOM_SLOT:#x}")
            }
            _ => String::new(),
        };
        argv.option("-object", "rng-builtin,id=rng0");
        argv.option("-device", format!("virtio-rng-{bus},rng=rng0{behind}"));
        match &self.vsock {
            Vsock::Kernel { cid, device } => {
                argv.option("-device", format!("vhost-vsock-{bus},guest-cid={cid},vhostfd={}", device.as_raw_fd()));
            }
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
                    let vhost = tap.vhost.as_ref().map(|vhost| format!(",vhost=on,vhostfd={}", vhost.as_raw_fd()));
                    let device = tap.device.as_raw_fd();
                    argv.option("-netdev", format!("tap,id=net{index},fd={device}{}", vhost.unwrap_or_default()));
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
/// The random source's place behind it.
pub(crate) const RANDOM_SLOT: u8 = 1;
/// VIRTIO_BLK_ID_BYTES: what is longer would be cut off.
const SERIAL_BYTES: usize = 20;

#[cfg(test)]
mod tests;
