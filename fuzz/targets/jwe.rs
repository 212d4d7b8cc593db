//! Guests' public keys as Trustee reads them, and sealed secrets as guests read them.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use libfuzzer_sys::fuzz_target;
use wire::jwe::{EcdhCurve, Jwe, MlKemKey, RsaKey, TeeKey, TeePublicKey};

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    p256: TeeKey::generate().expect("randomness"),
    p521: TeeKey::generate_on(EcdhCurve::P521).expect("randomness"),
    ml_kem: MlKemKey::generate().expect("randomness"),
    rsa: rsa(),
});

struct Keys {
    p256: TeeKey,
    p521: TeeKey,
    ml_kem: MlKemKey,
    rsa: RsaKey,
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(jwe) = serde_json::from_slice(bytes) {
        KEYS.open(&jwe);
    }
    // A header and a wrapped key, separated by a line end, since hardly any input would be base64 in JSON.
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let [protected, encrypted_key] = [(); 2].map(|()| URL_SAFE_NO_PAD.encode(parts.next().unwrap_or_default()));
    let [iv, ciphertext, tag] = [12, 6, 16].map(|length| URL_SAFE_NO_PAD.encode(vec![0; length]));
    KEYS.open(&Jwe { protected, encrypted_key, iv, ciphertext, tag, aad: None });

    if let Ok(jwk) = serde_json::from_slice(bytes) {
        for allow_rsa1_5 in [false, true] {
            if let Ok(key) = TeePublicKey::from_jwk_with(&jwk, allow_rsa1_5) {
                let _ = key.seal(b"secret");
            }
        }
    }
});

impl Keys {
    /// Nothing was sealed to any of them.
    fn open(&self, jwe: &Jwe) {
        assert!(self.p256.open(jwe).is_err());
        assert!(self.p521.open(jwe).is_err());
        assert!(self.ml_kem.open(jwe).is_err());
        assert!(self.rsa.open(jwe).is_err());
    }
}

fn rsa() -> RsaKey {
    let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("randomness");
    let der: Pkcs8V1Der<'_> = key.as_der().expect("a key");
    let body = STANDARD.encode(&der.as_ref()[PKCS8_HEAD..]);
    RsaKey::from_pkcs1_pem(&format!("-----BEGIN RSA PRIVATE KEY-----\n{body}\n-----END RSA PRIVATE KEY-----"))
        .expect("a key")
}

/// What PKCS#8 has before PKCS#1, for a key of 2048 bits.
const PKCS8_HEAD: usize = 26;
