//! Verifiers: each turns the evidence of one TEE into claims, if the evidence holds.

mod sample;
mod sample_device;

use serde_json::{Map, Value};
use wire::rcar::Tee;

/// A verifier for the evidence of one TEE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verifier {
    Sample,
    SampleDevice,
}

/// Which verifiers may be used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Enabled {
    /// Accept evidence of the sample TEE and its device, which anyone can make.
    pub sample: bool,
}

/// What evidence is checked against. A check for which there is nothing is left out.
pub(crate) struct Expected<'a> {
    /// Digest of the runtime data.
    pub report_data: Option<&'a [u8]>,
    /// Digest of the initdata.
    pub init_data: Option<&'a [u8]>,
}

/// What verified evidence says of one part.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The kind of part that was attested, `cpu` or `gpu`: submodules are named after it.
    pub class: &'static str,
    /// The claims. `report_data` and `init_data` are among them if the verifier vouches for them.
    pub claims: Map<String, Value>,
}

impl Verifier {
    /// The verifier of a TEE.
    ///
    /// # Errors
    /// [`Error::SampleDisabled`], [`Error::Unknown`].
    pub fn of(tee: Tee, enabled: Enabled) -> Result<Self, Error> {
        match tee {
            Tee::Sample if enabled.sample => Ok(Self::Sample),
            Tee::SampleDevice if enabled.sample => Ok(Self::SampleDevice),
            Tee::Sample | Tee::SampleDevice => Err(Error::SampleDisabled),
            other => Err(Error::Unknown(other)),
        }
    }

    /// Checks evidence, which may be of several parts.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::Mismatch`].
    pub fn verify(self, evidence: &Value, expected: &Expected<'_>) -> Result<Vec<Verified>, Error> {
        match self {
            Self::Sample => sample::verify(evidence, expected),
            Self::SampleDevice => sample_device::verify(evidence, expected),
        }
        .map(|verified| vec![verified])
    }
}

/// The claim, as a JSON pointer into a TEE's claims, that the shipped policies compare with a reference value.
pub(crate) fn claim_of(tee: &str, reference_value: &str) -> String {
    let claim = match (tee, reference_value) {
        ("sample", "major_version") => "platform_version/major",
        ("sample", "minimum_minor_version") => "platform_version/minor",
        ("sampledevice", "device_svn") => "svn",
        ("snp", "snp_launch_measurement") => "measurement",
        ("snp", "snp_bootloader") | ("az-snp-vtpm", "tcb_bootloader") => "reported_tcb_bootloader",
        ("snp", "snp_microcode") | ("az-snp-vtpm", "tcb_microcode") => "reported_tcb_microcode",
        ("snp", "snp_snp_svn") | ("az-snp-vtpm", "tcb_snp") => "reported_tcb_snp",
        ("snp", "snp_tee_svn") | ("az-snp-vtpm", "tcb_tee") => "reported_tcb_tee",
        ("snp", "snp_smt_enabled") | ("az-snp-vtpm", "smt_enabled") => "platform_smt_enabled",
        ("snp", "snp_tsme_enabled") | ("az-snp-vtpm", "tsme_enabled") => "platform_tsme_enabled",
        ("snp", "snp_guest_abi_major") | ("az-snp-vtpm", "abi_major") => "policy_abi_major",
        ("snp", "snp_guest_abi_minor") | ("az-snp-vtpm", "abi_minor") => "policy_abi_minor",
        ("snp", "snp_single_socket") | ("az-snp-vtpm", "single_socket") => "policy_single_socket",
        ("snp", "snp_smt_allowed") | ("az-snp-vtpm", "smt_allowed") => "policy_smt_allowed",
        ("tdx" | "az-tdx-vtpm", "mr_td") => "quote/body/mr_td",
        ("tdx" | "az-tdx-vtpm", "xfam") => "quote/body/xfam",
        ("tdx", "rtmr_1") => "quote/body/rtmr_1",
        ("tdx", "rtmr_2") => "quote/body/rtmr_2",
        ("az-snp-vtpm", "snp_pcr11") | ("az-tdx-vtpm", "tdx_pcr11") => "tpm/pcr11",
        ("tpm", "tpm_pcr11") => "pcr11",
        ("tpm", "trusted_aks") => "ak_public",
        ("hygondcu", "dcu_measure") => "body/measure",
        ("nvidia-dpu", "dpu_fwid") => "accumulated_fwid",
        ("nvidia-dpu", "dpu_device_serial") => "device_serial",
        (_, name) => name,
    };
    format!("/{claim}")
}

/// Why evidence was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(
        "evidence of the sample TEE is not accepted, since anyone can make it; for tests, set sample_verifier = true \
         under [attestation_service] in the Trustee's configuration"
    )]
    SampleDisabled,
    #[error("this Trustee has no verifier for the TEE {0}: this release has none")]
    Unknown(Tee),
    #[error("the evidence is malformed: {0}")]
    Malformed(&'static str),
    #[error("the evidence's {claim} is not the one of this session")]
    Mismatch { claim: &'static str, actual: String, expected: String },
}
