//! Attesters: find out which TEE the guest runs in and collect its evidence, one module a TEE.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attester;
mod az_snp_vtpm;
mod az_tdx_vtpm;
mod azure;
mod cca;
mod csv;
mod detect;
mod error;
#[cfg(test)]
mod fake;
mod http;
mod hygon_dcu;
mod initdata;
mod ioctl;
mod linux;
mod machine;
mod nvidia_dpu;
mod pcrs;
mod registers;
mod sample;
mod se;
mod sgx;
mod snp;
#[cfg(test)]
mod swtpm;
mod tdx;
mod tpm;
mod tpm_device;
mod tsm;

pub use attester::{Attester, MAX_REPORT_DATA};
pub use error::Error;
pub use initdata::{Binding, InitDataDigest};
pub use registers::Registers;
pub use wire::evidence::RegisterAlgorithm;
