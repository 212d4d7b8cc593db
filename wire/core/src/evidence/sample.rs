//! Evidence of the sample TEE and its device.

use serde::{Deserialize, Serialize};

/// Evidence of the sample TEE: it proves nothing and exists for machines without hardware.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SampleEvidence {
    /// Security version number, "1" in every guest today; "2" for the device.
    pub svn: String,
    /// The report data in standard base64.
    pub report_data: String,
}
