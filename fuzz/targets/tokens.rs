//! Tokens of administrators and attestation services, with the keys and certificates that they bring.
#![no_main]

use std::sync::LazyLock;

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fuzz::{clock, folder, runtime};
use libfuzzer_sys::fuzz_target;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use serde_json::{Map, Value, json};
use token_verifier::{AdminTokens, AttestationTokens, AttestationTrust, Http, IdentityProvider, KeySource};
use tokio::runtime::Runtime;

static TRUST: LazyLock<Trust> = LazyLock::new(Trust::new);

/// Verifiers of one signer, and what it signs with.
struct Trust {
    runtime: Runtime,
    admin: AdminTokens,
    by_certificate: AttestationTokens,
    by_own_key: AttestationTokens,
    signing: Ed25519KeyPair,
    public: Vec<u8>,
    certificate: Vec<u8>,
    authority: Vec<u8>,
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(token) = std::str::from_utf8(bytes) {
        TRUST.verify(token);
    }
    if let Some(token) = TRUST.signed(bytes) {
        TRUST.verify(&token);
    }
});

impl Trust {
    fn new() -> Self {
        let (root, signer) = (key_pair(), key_pair());
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_certificate = authority.self_signed(&root).expect("a certificate");
        let parameters = CertificateParams::new(Vec::new()).expect("parameters");
        let certificate = parameters.signed_by(&signer, &Issuer::from_params(&authority, &root));

        let folder = folder("tokens");
        let (key, certificates) = (folder.join("key.pem"), folder.join("certificates.pem"));
        std::fs::write(&key, signer.public_key_pem()).expect("a file");
        std::fs::write(&certificates, root_certificate.pem()).expect("a file");
        let http = Http::new(None).expect("a client");
        let runtime = runtime();
        let (admin, by_certificate, by_own_key) = runtime.block_on(async {
            let provider = IdentityProvider { issuer: None, audience: None, source: KeySource::Pem(key) };
            let certified = AttestationTrust { certificates: vec![certificates], ..Default::default() };
            let own = AttestationTrust { insecure_header_jwk: true, ..Default::default() };
            (
                AdminTokens::new(vec![provider], http.clone(), clock()).await.expect("a key"),
                AttestationTokens::new(certified, http.clone(), clock()).await.expect("a certificate"),
                AttestationTokens::new(own, http, clock()).await.expect("no file"),
            )
        });
        Self {
            runtime,
            admin,
            by_certificate,
            by_own_key,
            signing: Ed25519KeyPair::from_pkcs8(signer.serialized_der()).expect("a key"),
            public: signer.public_key_raw().to_vec(),
            certificate: certificate.expect("a certificate").der().to_vec(),
            authority: root_certificate.der().to_vec(),
        }
    }

    fn verify(&self, token: &str) {
        self.runtime.block_on(async {
            let _ = self.admin.verify(token).await;
            let _ = self.by_certificate.verify(token).await;
            let _ = self.by_own_key.verify(token).await;
        });
    }

    /// A token with a header, claims and a change of the signer's certificate, separated by line ends: behind a right
    /// signature is more to reach.
    fn signed(&self, bytes: &[u8]) -> Option<String> {
        let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
        let mut header: Map<String, Value> = serde_json::from_slice(parts.next()?).ok()?;
        let (claims, change) = (parts.next()?, parts.next().unwrap_or_default());
        header.insert("alg".to_owned(), Value::from("EdDSA"));
        if let Some(Value::Object(jwk)) = header.get_mut("jwk") {
            let chain = [self.changed_certificate(change), self.authority.clone()].map(|der| STANDARD.encode(der));
            let members = [("kty", json!("OKP")), ("crv", json!("Ed25519")), ("x5c", json!(chain))];
            jwk.extend(members.map(|(name, value)| (name.to_owned(), value)));
            jwk.insert("x".to_owned(), Value::from(URL_SAFE_NO_PAD.encode(&self.public)));
        }
        let header = URL_SAFE_NO_PAD.encode(Value::Object(header).to_string());
        let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = self.signing.try_sign(signed.as_bytes()).expect("a signature");
        Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The signer's certificate with other bytes from some place on.
    fn changed_certificate(&self, change: &[u8]) -> Vec<u8> {
        let mut der = self.certificate.clone();
        if let Some((at, bytes)) = change.split_first_chunk() {
            let at = usize::from(u16::from_be_bytes(*at)) % der.len();
            for (old, new) in der[at..].iter_mut().zip(bytes) {
                *old = *new;
            }
        }
        der
    }
}

fn key_pair() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).expect("randomness")
}
