//! Evidence of Intel SGX.

use serde::{Deserialize, Serialize};

/// A quote of an enclave.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SgxEvidence {
    /// The DCAP quote in standard base64.
    pub quote: String,
}
