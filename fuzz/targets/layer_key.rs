//! What an image's annotations and a key provider's client say about a layer's key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::key_provider;
use wire::layer::{AnnotationPacket, PrivateOptions, PublicOptions};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(packet) = AnnotationPacket::parse(bytes) {
        let _ = packet.unwrap(&[0; 32]);
    }
    let _ = PrivateOptions::parse(bytes);
    let _ = key_provider::parse_unwrap(bytes);
    let _ = key_provider::parse_unwrap_output(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = PublicOptions::from_annotation(text);
    }
});
