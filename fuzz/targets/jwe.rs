//! Guests' public keys as Trustee reads them, and sealed secrets as guests read them.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use wire::jwe::{Jwe, TeeKey, TeePublicKey};

static KEY: LazyLock<TeeKey> = LazyLock::new(|| TeeKey::generate().expect("randomness"));

fuzz_target!(|json: &[u8]| {
    if let Ok(jwe) = serde_json::from_slice::<Jwe>(json) {
        let _ = KEY.open(&jwe);
    }
    if let Ok(jwk) = serde_json::from_slice(json) {
        if let Ok(key) = TeePublicKey::from_jwk(&jwk) {
            let _ = key.seal(b"secret");
        }
    }
});
