//! Evidence of IBM Secure Execution: the verifier sends a request, which only the Ultravisor can answer.

use serde::{Deserialize, Serialize};

/// What the verifier asks for; it comes as the challenge's nonce. Byte strings are standard base64.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SeRequest {
    /// The attestation request control block.
    pub request_blob: String,
    /// Length of the measurement in bytes.
    pub measurement_size: u32,
    /// Length of the additional data in bytes.
    pub additional_size: u32,
    /// Goes back as it is.
    pub encr_measurement_key: String,
    /// Goes back as it is.
    pub encr_request_nonce: String,
    /// Goes back as it is.
    pub image_hdr_tags: String,
    /// The hash that binds the handshake, which the guest adds to the verifier's request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_data_digest: Option<String>,
}

/// The Ultravisor's answer. Every member is standard base64.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct SeEvidence {
    /// The measurement: an HMAC that the verifier can compute as well.
    pub measurement: String,
    /// What the request's flags asked for beside it.
    pub additional_data: String,
    /// The digest of the handshake, padded with zeros to 64 bytes.
    pub user_data: String,
    /// The guest's configuration unique id, 16 bytes.
    pub cuid: String,
    /// As in the request.
    pub encr_measurement_key: String,
    /// As in the request.
    pub encr_request_nonce: String,
    /// As in the request.
    pub image_hdr_tags: String,
}
