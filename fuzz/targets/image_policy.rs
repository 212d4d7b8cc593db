//! Policies about images' signatures, where signatures lie, and where images come from.
#![no_main]

use image_policy::Policy;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(policy) = Policy::parse(bytes) {
        let _ = policy.needs_no_signature();
        let _ = policy.with_lookaside(bytes);
    }
    if let Ok(policy) = Policy::parse(br#"{"default": [{"type": "reject"}]}"#) {
        let _ = policy.with_lookaside(bytes);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = image::RegistryConfig::parse(text);
    }
});
