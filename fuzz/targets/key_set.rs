//! Keys and certificates of tokens' issuers, as JWK sets and in PEM.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use fuzz::{clock, folder, runtime};
use libfuzzer_sys::fuzz_target;
use token_verifier::{AdminTokens, AttestationTokens, AttestationTrust, Http, IdentityProvider, KeySource};
use tokio::runtime::Runtime;

static PLACE: LazyLock<(Runtime, Http, PathBuf)> =
    LazyLock::new(|| (runtime(), Http::new(None).expect("a client"), folder("key_set").join("keys")));

fuzz_target!(|bytes: &[u8]| {
    let (runtime, http, file) = &*PLACE;
    std::fs::write(file, bytes).expect("a file");
    let address = format!("file://{}", file.canonicalize().expect("the file").display());
    runtime.block_on(async {
        for source in [KeySource::Pem(file.clone()), KeySource::JwkSet(address)] {
            let provider = IdentityProvider { issuer: None, audience: None, source };
            let _ = AdminTokens::new(vec![provider], http.clone(), clock()).await;
        }
        let trust = AttestationTrust { certificates: vec![file.clone()], ..Default::default() };
        let _ = AttestationTokens::new(trust, http.clone(), clock()).await;
    });
});
