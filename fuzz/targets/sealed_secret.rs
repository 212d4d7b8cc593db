//! Sealed secrets as a cluster hands them in, their payloads, and the keys that are said to have signed them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::sealed_secret::{KeyId, Payload, SealedSecret, SealingKey, VerifyingKey};

fuzz_target!(|bytes: &[u8]| {
    let key = VerifyingKey::parse(bytes);
    let _ = SealingKey::parse(bytes);
    if let Ok(payload) = Payload::parse(bytes) {
        let json = payload.to_json().expect("what was read can be written");
        assert!(Payload::parse(&json).is_ok());
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = KeyId::parse(text);
    let _ = Payload::parse_unverified(text);
    if let (Ok(secret), Ok(key)) = (SealedSecret::parse(text), key) {
        let _ = secret.verify(&key);
    }
});
