//! Payloads of reference value messages, in every form: JSON, SWID, CoRIM, in-toto.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use reference_values::extract;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    for kind in ["sample", "swid", "corim", "in-toto"] {
        read(kind, bytes);
    }
    read("in-toto", &envelope(bytes));
    read("corim", &sign1(bytes));
});

fn read(kind: &str, payload: &[u8]) {
    if let Ok(extract) = extract(kind, payload) {
        assert!((1..=1000).contains(&extract.values.len()));
    }
}

/// A statement in an envelope (DSSE).
fn envelope(statement: &[u8]) -> Vec<u8> {
    let signatures = json!([{ "keyid": "", "sig": "AAAA" }]);
    let payload = STANDARD.encode(statement);
    let envelope =
        json!({ "payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": signatures });
    envelope.to_string().into_bytes()
}

/// A manifest in a COSE_Sign1: tag and array, protected header, unprotected one, payload, signature.
fn sign1(manifest: &[u8]) -> Vec<u8> {
    let length = (manifest.len() as u32).to_be_bytes();
    let header = b"\x58\x19\xa2\x01\x26\x03\x74application/rim+cbor";
    [b"\xd2\x84", &header[..], b"\xa0", b"\x5a", &length, manifest, b"\x41\x00"].concat()
}
