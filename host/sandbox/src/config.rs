//! What a sandbox is made of.

use std::path::{Path, PathBuf};

use hypervisor::acceleration::Preference;
use hypervisor::{Console, Tee};
use wire::initdata::InitData;

use crate::{Error, RemoteMachine, SandboxName, Timeline};

/// What a sandbox is made of. [`SandboxConfig::new`] gives a small one, whose parts can then be set.
pub struct SandboxConfig {
    /// Its name.
    pub name: SandboxName,
    /// Kernel and initramfs.
    pub guest: GuestFiles,
    /// Memory of the guest in MiB.
    pub memory_mib: u32,
    /// Processors of the guest.
    pub vcpus: u32,
    /// Whether the host's virtualisation is used.
    pub acceleration: Preference,
    /// The owner's configuration and policy.
    pub initdata: Option<InitDataDisk>,
    /// How the guest reaches a network.
    pub network: PodNetwork,
    /// What keeps the host out of the guest's memory.
    pub tee: Tee,
    /// A machine elsewhere in place of QEMU, for which of the rest only name, sizes, initdata, host name, resolvers and the
    /// network's namespace count.
    pub remote: Option<RemoteMachine>,
    /// Firmware made for the TEE; without a TEE the fast one is found.
    pub firmware: Option<PathBuf>,
    /// The guest's host name, if not the sandbox's.
    pub hostname: Option<String>,
    /// The lines of resolv.conf, if not the network's own.
    pub dns: Option<Vec<String>>,
    /// Whether the pod's containers see each other's processes.
    pub shared_pid_namespace: bool,
    /// Bytes of `/dev/shm`, which the pod's containers share.
    pub shm_size: u64,
    /// The cgroup in which QEMU runs, as in an OCI spec's `linux.cgroupsPath`; root only.
    pub cgroup: Option<PathBuf>,
    /// Further parameters for the guest's kernel.
    pub kernel_params: Vec<String>,
    /// What takes the guest's lines, for whoever looks while it boots, or after that has failed.
    pub console: Console,
    /// What takes the times, likewise.
    pub timeline: Timeline,
    /// Is told the sandbox's folder as soon as it exists.
    pub opened: Option<Opened>,
}

/// What is told a folder.
pub type Opened = Box<dyn FnOnce(&Path) + Send + Sync>;

/// How a guest reaches a network.
#[derive(Clone, Debug, PartialEq)]
pub enum PodNetwork {
    /// Through QEMU, as an ordinary program: outgoing connections only, no privileges needed.
    User,
    /// As the network namespace at this path does, whose addresses the guest gets; root only.
    Namespace(PathBuf),
    /// The same by macvtap links.
    Macvtap(PathBuf),
    /// Not at all: the machine is in the namespace at this path, and its guest has nothing of it; root only.
    Isolated(PathBuf),
}

/// What the guest boots.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The kernel, an ELF file with a PVH entry or a bzImage.
    pub kernel: PathBuf,
    /// The initramfs with guestd.
    pub initramfs: PathBuf,
    /// The kernel's command line, without what is added for one sandbox.
    pub command_line: String,
}

/// The initdata disk, and the digest that binds it.
pub struct InitDataDisk {
    /// The document on the disk.
    pub document: InitData,
    /// What the TEE, on coco-dev the command line, is told: the document's digest, unless the host attacks.
    pub digest: Vec<u8>,
}

impl SandboxConfig {
    /// A sandbox of 256 MiB and one processor, with QEMU's user network, without initdata and TEE.
    pub fn new(name: SandboxName, guest: GuestFiles) -> Self {
        Self {
            name,
            guest,
            memory_mib: 256,
            vcpus: 1,
            acceleration: Preference::Auto,
            initdata: None,
            network: PodNetwork::User,
            tee: Tee::None,
            remote: None,
            firmware: None,
            hostname: None,
            dns: None,
            shared_pid_namespace: false,
            shm_size: 64 << 20,
            cgroup: None,
            kernel_params: Vec::new(),
            console: Console::new(),
            timeline: Timeline::default(),
            opened: None,
        }
    }

    /// The kernel's command line with all that this sandbox adds.
    pub(crate) fn command_line(&self) -> Result<String, Error> {
        let mut line = self.guest.command_line.clone();
        for parameter in &self.kernel_params {
            // A parameter of ours would speak for the guest's owner, and a dash ends what the kernel reads.
            let ours = parameter.starts_with("cocoon.") || parameter.starts_with("cocoon_");
            let plain = !parameter.is_empty() && parameter.bytes().all(|byte| byte.is_ascii_graphic());
            if !plain || ours || parameter == "--" {
                return Err(Error::KernelParameter(
                    parameter.chars().take(80).flat_map(char::escape_default).collect(),
                ));
            }
            line.push(' ');
            line.push_str(parameter);
        }
        // A TEE has a register for the digest, or, with SEV, measures the command line.
        if let (Some(initdata), Tee::None | Tee::Sev { .. }) = (&self.initdata, &self.tee) {
            line.push_str(&format!(" cocoon.initdata={}", hex::encode(&initdata.digest)));
        }
        if line.len() > MAX_COMMAND_LINE {
            return Err(Error::CommandLine { length: line.len() });
        }
        Ok(line)
    }
}

impl From<InitData> for InitDataDisk {
    fn from(document: InitData) -> Self {
        let digest = document.digest();
        Self { document, digest }
    }
}

/// `COMMAND_LINE_SIZE` of x86, less the byte that ends it: the kernel would cut off the rest.
pub(crate) const MAX_COMMAND_LINE: usize = 2047;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_appended_in_order_and_the_digest_last() {
        let mut config = config();
        config.kernel_params = vec!["agent.log=debug".to_owned(), "quiet".to_owned()];
        let text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n".to_owned();
        config.initdata = Some(InitDataDisk { document: InitData::parse(text).unwrap(), digest: vec![0xab, 0xcd] });
        assert_eq!(config.command_line().unwrap(), "console=ttyS0 agent.log=debug quiet cocoon.initdata=abcd");

        config.tee = Tee::Snp { policy: 0x30000, c_bit: 51 };
        assert_eq!(config.command_line().unwrap(), "console=ttyS0 agent.log=debug quiet");
    }

    #[test]
    fn a_parameter_that_is_several_or_speaks_for_the_owner_is_refused() {
        for bad in ["", "a b", "a\nb", "--", "ä", "cocoon.initdata=00", "cocoon_initdata=00"] {
            let config = SandboxConfig { kernel_params: vec![bad.to_owned()], ..config() };
            assert!(matches!(config.command_line(), Err(Error::KernelParameter(_))), "{bad:?} passed");
        }
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let config = SandboxConfig { kernel_params: vec!["a".repeat(2040)], ..config() };
        assert!(matches!(config.command_line(), Err(Error::CommandLine { length: 2054 })));
    }

    fn config() -> SandboxConfig {
        let guest = GuestFiles {
            kernel: "/boot/vmlinux".into(),
            initramfs: "/boot/initramfs".into(),
            command_line: "console=ttyS0".to_owned(),
        };
        SandboxConfig::new(SandboxName::parse("pod-1").unwrap(), guest)
    }
}
