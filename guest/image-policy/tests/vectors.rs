//! Policies, stores and signatures that others made, where they are at hand.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use image_policy::{Document, Image, Policy, SignatureSources, SourceError};
use oci_spec::image::{Descriptor, Digest};
use serde_json::{Value, json};

/// The folder of signatures; nothing, with the reason printed, where it isn't.
fn vectors() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/image-signature");
    match folder.exists() {
        true => Some(folder),
        false => {
            eprintln!("skipped: {} is not there", folder.display());
            None
        }
    }
}

/// Documents and lookaside stores in memory.
struct Sources {
    documents: HashMap<&'static str, Vec<u8>>,
    lookaside: HashMap<String, Vec<u8>>,
}

#[async_trait]
impl SignatureSources for Sources {
    async fn document(&self, uri: &str) -> Result<Vec<u8>, SourceError> {
        self.documents.get(uri).cloned().ok_or_else(|| "there is no such document".into())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, SourceError> {
        Ok(self.lookaside.get(url).cloned())
    }

    async fn manifest(&self, _version: &str) -> Result<Option<Document>, SourceError> {
        Ok(None)
    }

    async fn blob(&self, _digest: &Digest) -> Result<Vec<u8>, SourceError> {
        Err("there is no such blob".into())
    }

    async fn referrers(&self, _digest: &Digest, _artifact_type: &str) -> Result<Vec<Descriptor>, SourceError> {
        Ok(Vec::new())
    }
}

/// Judges an image of which only a digest is known, as if it were an index.
async fn check(
    policy: &Policy,
    reference: &str,
    digest: &str,
    sources: &Sources,
    now: SystemTime,
) -> Result<String, String> {
    let (reference, index) = (reference.parse().unwrap(), digest.parse().unwrap());
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"{}");
    let manifest = format!("sha256:{}", hex::encode(hash)).parse().unwrap();
    let image =
        Image { reference: &reference, manifest_digest: &manifest, index_digest: Some(&index), manifest_bytes: b"{}" };
    let verdict = policy.check(&image, sources, now).await.map_err(|e| e.to_string())?;
    Ok(verdict.accepted[0].signer.clone().unwrap_or_default())
}

#[test]
fn policies_and_stores_of_others_are_read() {
    let Some(folder) = vectors() else { return };
    for name in ["policy.json", "simple-signing-scheme/security_policy.json"] {
        Policy::parse(&fs::read(folder.join(name)).unwrap()).unwrap();
    }
    for name in [
        "merged_result/res1.yaml",
        "merged_result/res3.yaml",
        "test_case_1/1.yaml",
        "test_case_1/2.yaml",
        "test_case_2/2.yaml",
        "test_case_3/2.yaml",
        "get_base_url/res.yaml",
        "../simple-signing-scheme/sigstore_config.yaml",
    ] {
        let policy = Policy::parse(br#"{"default":[{"type":"reject"}]}"#).unwrap();
        policy.with_lookaside(&fs::read(folder.join("sigstore_config").join(name)).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn public_keys_of_others_are_read_as_they_are_and_in_base64() {
    let Some(folder) = vectors() else { return };
    let sources = Sources { documents: HashMap::new(), lookaside: HashMap::new() };
    for name in ["cosign1.pub", "cosign2.pub", "cosign3.pub", "nv.pub"] {
        let pem = fs::read_to_string(folder.join("cosign").join(name)).unwrap();
        for data in [BASE64_STANDARD.encode(&pem), pem] {
            let policy = json!({"default": [{"type": "sigstoreSigned", "keyData": data}]});
            let policy = Policy::parse(policy.to_string().as_bytes()).unwrap();
            let digest = format!("sha256:{}", "0".repeat(64));
            let refusal =
                check(&policy, "registry.example/app", &digest, &sources, SystemTime::now()).await.unwrap_err();
            assert!(refusal.contains("no signature was found beside the image"), "{name}: {refusal}");
        }
    }
}

#[tokio::test]
async fn real_simple_signatures_are_accepted_while_their_key_is_valid() {
    let Some(folder) = vectors() else { return };
    let folder = folder.join("simple-signing-scheme");
    let mut lookaside = HashMap::new();
    let archive = fs::File::open(folder.join("signatures.tar")).unwrap();
    let archive = flate2::read::GzDecoder::new(archive);
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut bytes) = (entry.path().unwrap().display().to_string(), Vec::new());
        entry.read_to_end(&mut bytes).unwrap();
        lookaside.insert(format!("https://store.example/{path}"), bytes);
    }
    let keys = fs::read(folder.join("pubkey.gpg")).unwrap();
    let sources =
        Sources { documents: HashMap::from([("/run/image-security/simple_signing/pubkey.gpg", keys)]), lookaside };
    let policy = fs::read(folder.join("security_policy.json")).unwrap();
    let json: Value = serde_json::from_slice(&policy).unwrap();
    let scopes = json["transports"]["docker"].as_object().unwrap();
    let repository = scopes.keys().min_by_key(|scope| scope.len()).unwrap();
    let policy = Policy::parse(&policy).unwrap();
    let policy = policy.with_lookaside(b"default-docker:\n  lookaside: https://store.example\n").unwrap();
    let judge = async |tag: &str, digest: &str, days: u64| {
        let reference = format!("{repository}:{tag}");
        let now = UNIX_EPOCH + Duration::from_secs(days * 86_400);
        check(&policy, &reference, digest, &sources, now).await
    };
    // 2021-12-01; the key was made in September 2021 for a year.
    const IN_TIME: u64 = 18_962;
    let digest = "sha256:febcf61cd6e1ac9628f6ac14fa40836d16f3c6ddef3b303ff0321606e55ddd0b";

    let signer = judge("signed", digest, IN_TIME).await.unwrap();
    assert!(signer.ends_with("/signature-1, by key 67B24AACC459679E0283D7EE58F6ED07EEA6B429"), "{signer}");
    let refusal = judge("signed", digest, IN_TIME + 400).await.unwrap_err();
    assert!(refusal.contains("key 67B24AACC459679E0283D7EE58F6ED07EEA6B429 expired"), "{refusal}");
    let other = "sha256:7250923ba3543110040462388756ef099331822c6172a050b12c7a38361ea46f";
    let refusal = judge("other_signed", other, IN_TIME).await.unwrap_err();
    assert!(refusal.contains("signed by a key that the policy doesn't have"), "{refusal}");
    let unknown = format!("sha256:{}", "0".repeat(64));
    let refusal = judge("unsigned", &unknown, IN_TIME).await.unwrap_err();
    assert!(refusal.contains("no signature was found in https://store.example"), "{refusal}");
}
