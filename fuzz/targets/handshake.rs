//! Messages of the attestation handshake, from either side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::rcar::{Attestation, Challenge, HashAlgorithm, Request};

fuzz_target!(|json: &[u8]| {
    let _ = serde_json::from_slice::<Request>(json);
    if let Ok(challenge) = serde_json::from_slice::<Challenge>(json) {
        let _ = challenge.hash_algorithm();
    }
    if let Ok(attestation) = serde_json::from_slice::<Attestation>(json) {
        let evidence = &attestation.tee_evidence.additional_evidence;
        let _ = attestation.runtime_data.report_data(evidence, HashAlgorithm::Sha384);
    }
});
