//! Evidence of a TPM 2.0.

use serde::{Deserialize, Serialize};

/// A quote, with the key that signed it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TpmEvidence {
    /// The quote.
    pub tpm_quote: TpmQuote,
    /// The attestation key: `SubjectPublicKeyInfo` in DER, in standard base64.
    pub ak_public: String,
}

/// A quote over PCRs 0 to 23 of the SHA-256 bank.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TpmQuote {
    /// A marshalled `TPMT_SIGNATURE` in standard base64.
    pub signature: String,
    /// A marshalled `TPMS_ATTEST` in standard base64.
    pub message: String,
    /// The PCRs in hexadecimal.
    pub pcrs: Vec<String>,
}
