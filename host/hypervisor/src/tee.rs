//! What keeps the host out of a guest's memory, as QEMU is told.
//!
//! Source: QEMU's documentation of confidential guest support; Kata Containers for the values.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::acceleration::Acceleration;

/// The TEE that a guest runs in. All but [`Tee::None`] need KVM and firmware made for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Tee {
    /// None: an ordinary machine, which is what `coco-dev` runs.
    #[default]
    None,
    /// AMD SEV, or SEV-ES where the policy demands it.
    Sev {
        /// The guest's policy: 1 forbids debugging, 5 demands SEV-ES as well.
        policy: u32,
        /// The bit of an address that marks a page as encrypted; see [`Tee::c_bit`].
        c_bit: u32,
    },
    /// AMD SEV-SNP.
    Snp {
        /// The guest's policy; 0x30000 is what a guest without debugging and with threads has.
        policy: u64,
        /// The bit of an address that marks a page as encrypted; see [`Tee::c_bit`].
        c_bit: u32,
    },
    /// Intel TDX.
    Tdx {
        /// Who turns the guest's reports into quotes; without it the guest has to reach one itself.
        quotes: Option<QuoteService>,
    },
    /// IBM Secure Execution: the kernel is an image with initramfs and command line, encrypted for one machine.
    Se,
}

/// Where TDX's quote generation service listens.
#[derive(Clone, Debug, PartialEq)]
pub enum QuoteService {
    /// On a unix socket, usually `/var/run/tdx-qgs/qgs.socket`.
    Unix(PathBuf),
    /// On a vsock port of the host, usually 4050.
    Vsock(u32),
}

impl Tee {
    /// This processor's bit for encrypted pages. Where it has no SEV, the one that newer processors with it have.
    pub fn c_bit() -> u32 {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::__cpuid;
            if __cpuid(0x8000_0000).eax >= 0x8000_001f {
                return __cpuid(0x8000_001f).ebx & 0x3f;
            }
        }
        51
    }

    /// The QEMU binary, searched in `PATH`.
    pub(crate) fn qemu(&self) -> &'static str {
        match self {
            Self::Se => "qemu-system-s390x",
            _ => crate::QEMU,
        }
    }

    /// Type and options of the machine.
    pub(crate) fn machine(&self) -> &'static str {
        match self {
            Self::None => "q35",
            Self::Sev { .. } => "q35,confidential-guest-support=sev",
            Self::Snp { .. } => "q35,kernel_irqchip=split,confidential-guest-support=snp",
            Self::Tdx { .. } => "q35,kernel_irqchip=split,confidential-guest-support=tdx",
            Self::Se => "s390-ccw-virtio,confidential-guest-support=pv0",
        }
    }

    pub(crate) fn cpu(&self, acceleration: Acceleration) -> &'static str {
        match self {
            Self::None | Self::Sev { .. } | Self::Tdx { .. } => acceleration.cpu(),
            // SNP measures what the guest is told of its processor, so that must not vary with the host.
            Self::Snp { .. } => "EPYC-v4",
            Self::Se => "host",
        }
    }

    /// The object that stands for the TEE. `digest` is the initdata's, which goes into the register made for it.
    pub(crate) fn object(&self, digest: Option<&[u8]>) -> Option<String> {
        match self {
            Self::None => None,
            Self::Sev { policy, c_bit } => {
                Some(format!("sev-guest,id=sev,cbitpos={c_bit},reduced-phys-bits=1,policy={policy},kernel-hashes=on"))
            }
            Self::Snp { policy, c_bit } => {
                let mut object = format!(
                    "sev-snp-guest,id=snp,cbitpos={c_bit},reduced-phys-bits=1,policy={policy:#x},kernel-hashes=on"
                );
                if let Some(digest) = digest {
                    object.push_str(&format!(",host-data={}", register(digest, HOST_DATA)));
                }
                Some(object)
            }
            Self::Tdx { quotes } => {
                let mut object = json!({"qom-type": "tdx-guest", "id": "tdx", "sept-ve-disable": true});
                if let Some(digest) = digest {
                    object["mrconfigid"] = register(digest, MRCONFIGID).into();
                }
                match quotes {
                    Some(QuoteService::Unix(path)) => {
                        object["quote-generation-socket"] = json!({"type": "unix", "path": path});
                    }
                    Some(QuoteService::Vsock(port)) => {
                        object["quote-generation-socket"] =
                            json!({"type": "vsock", "cid": HOST_CID.to_string(), "port": port.to_string()});
                    }
                    None => {}
                }
                Some(object.to_string())
            }
            Self::Se => Some("s390-pv-guest,id=pv0".to_owned()),
        }
    }

    /// How virtio devices are attached.
    pub(crate) fn bus(&self) -> &'static str {
        match self {
            Self::Se => "ccw",
            _ => "pci",
        }
    }
}

/// A digest as a register of `width` bytes holds it: cut off or padded with zeros on the right.
fn register(digest: &[u8], width: usize) -> String {
    let mut register = digest.to_vec();
    register.resize(width, 0);
    STANDARD.encode(register)
}

/// Bytes of SNP's HOST_DATA.
const HOST_DATA: usize = 32;
/// Bytes of TDX's MRCONFIGID.
const MRCONFIGID: usize = 48;
/// The host's own address in vsock.
const HOST_CID: u32 = 2;
