//! Evidence of Arm CCA.

use serde::{Deserialize, Serialize};

/// A CCA attestation token.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CcaEvidence {
    /// The token in CBOR, an array of numbers in JSON.
    pub token: Vec<u8>,
}
