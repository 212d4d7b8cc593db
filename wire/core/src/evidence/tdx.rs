//! Evidence of Intel TDX.

use serde::{Deserialize, Serialize};

/// A quote of a trust domain.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TdxEvidence {
    /// The event logs of firmware and agent in standard base64, if the guest has any.
    pub cc_eventlog: Option<String>,
    /// The DCAP quote in standard base64.
    pub quote: String,
}
