//! Evidence as it travels in the `primary_evidence` member of an attestation, one type per TEE.

mod register;

use serde::{Deserialize, Serialize};

pub use register::RegisterAlgorithm;

/// Evidence of the sample TEE: it proves nothing and exists for machines without hardware.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SampleEvidence {
    /// Security version number, "1" in every guest today.
    pub svn: String,
    /// The report data in standard base64.
    pub report_data: String,
}
