//! Evidence of NVIDIA's devices: GPUs and switches, and BlueField data processing units.

use serde::{Deserialize, Serialize};

/// Reports of all GPUs and switches.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NvidiaEvidence {
    /// One entry a device.
    pub device_evidence_list: Vec<NvidiaDevice>,
}

/// The report of a GPU or switch.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NvidiaDevice {
    /// `HOPPER`, `BLACKWELL` or, for a switch, `LS10`.
    pub arch: String,
    /// The device's id, or `unknown`.
    pub uuid: String,
    /// The SPDM measurement exchange in standard base64.
    pub evidence: String,
    /// The certificate chain: PEM in standard base64.
    pub certificate: String,
}

/// Evidence of data processing units.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NvidiaDpuEvidence {
    /// 1.
    pub version: u32,
    /// One entry a unit.
    pub devices: Vec<NvidiaDpuDevice>,
}

/// A unit's DICE certificates, and what their key signed. Byte strings are standard base64.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NvidiaDpuDevice {
    /// `bluefield3`.
    pub architecture: String,
    /// The certificate of the key that the firmware's measurements gave, in DER.
    pub alias_cert: String,
    /// The certificate of the unit's own key, in DER.
    pub device_id_cert: String,
    /// ECDSA P-384 with SHA-384 over the report data, padded with zeros to 64 bytes: both numbers, 48 bytes each.
    pub report_data_signature: String,
}
