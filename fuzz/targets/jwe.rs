//! Guests' public keys as Trustee reads them, and sealed secrets as guests read them.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use wire::jwe::{Jwe, KeyAlgorithm, TeeKey, TeePublicKey};

static KEYS: LazyLock<[TeeKey; 4]> =
    LazyLock::new(|| KeyAlgorithm::ALL.map(|algorithm| TeeKey::generate_for(algorithm).expect("randomness")));

fuzz_target!(|bytes: &[u8]| {
    if let Ok(jwe) = serde_json::from_slice(bytes) {
        open(&jwe);
    }
    // A header and a wrapped key, separated by a line end, since hardly any input would be base64 in JSON.
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let [protected, encrypted_key] = [(); 2].map(|()| URL_SAFE_NO_PAD.encode(parts.next().unwrap_or_default()));
    let [iv, ciphertext, tag] = [12, 6, 16].map(|length| URL_SAFE_NO_PAD.encode(vec![0; length]));
    open(&Jwe { protected, encrypted_key, iv, ciphertext, tag, aad: None });

    if let Ok(jwk) = serde_json::from_slice(bytes) {
        for allow_rsa1_5 in [false, true] {
            if let Ok(key) = TeePublicKey::from_jwk_with(&jwk, allow_rsa1_5) {
                let _ = key.seal(b"secret");
            }
        }
    }
});

/// Nothing was sealed to any of them.
fn open(jwe: &Jwe) {
    assert!(KEYS.iter().all(|key| key.open(jwe).is_err()));
}
