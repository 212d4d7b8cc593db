//! Images that skopeo and cosign signed, in a real registry, judged by the policy.

#![allow(clippy::unwrap_used)]

mod lab;

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use image_policy::{Error, Policy, SignatureSources};
use lab::{Lab, Manifest, Storage};
use newer_debian::NewerDebian;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use serde_json::{Value, json};

fn policy(requirement: &Value) -> Policy {
    Policy::parse(json!({"default": [requirement]}).to_string().as_bytes()).unwrap()
}

async fn check(policy: &Policy, manifest: &Manifest, sources: &dyn SignatureSources) -> Result<String, String> {
    match policy.check(&manifest.image(), sources, SystemTime::now()).await {
        Ok(verdict) => Ok(verdict.accepted[0].signer.clone().unwrap()),
        Err(Error::Refused(refusal)) => Err(refusal.to_string()),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_skopeo_signs_is_accepted_from_a_folder_and_from_a_server() {
    let Some(lab) = Lab::new(&["gpg"]) else { return };
    for name in ["signer@example.org", "other@example.org"] {
        let options = ["--batch", "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", "never"];
        lab.run(Command::new("gpg").args(options));
        lab.run(Command::new("gpg").args(["--batch", "--output", name, "--export", name]));
    }
    let store = lab.path("lookaside");
    let config = format!("default-docker:\n  sigstore-staging: file://{}\n", store.display());
    fs::write(lab.path("registries.d/default.yaml"), config).unwrap();
    lab.skopeo(&["--sign-by", "signer@example.org"]);
    let (manifest, sources) = (lab.manifest(), Storage::of(&lab));
    let requirement = |key: &str, identity: Value| json!({"type": "signedBy", "keyType": "GPGKeys", "keyPath": key, "signedIdentity": identity});
    let exact = json!({"type": "matchRepoDigestOrExact"});

    for (base, place) in [
        (format!("file://{}", store.display()), store.display().to_string()),
        ("https://lookaside.example".to_owned(), "https://lookaside.example".to_owned()),
    ] {
        let judge = async |key: &str, identity: Value| {
            let lookaside = format!("docker:\n  {}:\n    lookaside: {base}\n", manifest.reference.registry());
            let policy = policy(&requirement(key, identity)).with_lookaside(lookaside.as_bytes()).unwrap();
            check(&policy, &manifest, &sources).await
        };
        let signer = judge("signer@example.org", exact.clone()).await.unwrap();
        assert!(signer.starts_with(&place) && signer.contains("/signature-1, by key "), "{signer}");
        let refusal = judge("other@example.org", exact.clone()).await.unwrap_err();
        assert!(refusal.contains("signed by a key that the policy doesn't have"), "{refusal}");
        let elsewhere = json!({"type": "exactRepository", "dockerRepository": "elsewhere.example/app"});
        let refusal = judge("signer@example.org", elsewhere).await.unwrap_err();
        assert!(refusal.contains("which the policy's signedIdentity doesn't accept here"), "{refusal}");
    }
    let refusal = check(&policy(&requirement("signer@example.org", exact)), &manifest, &sources).await.unwrap_err();
    assert!(refusal.contains("no lookaside store is configured"), "{refusal}");
}

#[tokio::test]
async fn what_cosign_signs_is_accepted_whatever_others_sign_beside_it() {
    let debian = match NewerDebian::get() {
        Ok(debian) => debian,
        Err(reason) => return eprintln!("skipped: cosign can't be had: {reason}"),
    };
    let Some(lab) = Lab::new(&["openssl"]) else { return };
    let manifest = lab.manifest();
    let target = format!("{}/{}@{}", manifest.reference.registry(), manifest.reference.repository(), manifest.digest);
    let keys = ["other", "p256", "ed25519"];
    for name in ["other", "p256"] {
        lab.run(debian.command("cosign").args(["generate-key-pair", "--output-key-prefix", name]));
    }
    lab.run(Command::new("openssl").args(["genpkey", "-algorithm", "ED25519", "-out", "ed25519.pem"]));
    let import = ["import-key-pair", "--key", "ed25519.pem", "--output-key-prefix", "ed25519"];
    lab.run(debian.command("cosign").args(import));
    let requirement = |name: &str| {
        json!({"type": "sigstoreSigned", "keyPath": format!("{name}.pub"),
               "signedIdentity": {"type": "matchRepository"}})
    };
    let judge = async |name: &str| check(&policy(&requirement(name)), &manifest, &Storage::of(&lab)).await;
    let refusal = judge("p256").await.unwrap_err();
    assert!(refusal.contains("no signature was found beside the image"), "{refusal}");

    for name in keys {
        let mut sign = debian.command("cosign");
        sign.args(["sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--key", &format!("{name}.key")]);
        if name == "other" {
            sign.args(["--sign-container-identity", "elsewhere.example/app"]);
        }
        lab.run(sign.arg(&target));
        match name {
            "other" => assert!(judge(name).await.unwrap_err().contains("names the image \"elsewhere.example/app\"")),
            _ => assert!(judge(name).await.unwrap().contains(".sig, layer "), "{name}"),
        }
    }
    // It still lies between those of others.
    judge("p256").await.unwrap();
}

#[tokio::test]
async fn what_openssl_signs_with_keys_that_cosign_knows_is_accepted() {
    let Some(lab) = Lab::new(&["openssl"]) else { return };
    let manifest = lab.manifest();
    let payload = json!({"critical": {"identity": {"docker-reference": "any.example/app"}, "optional": null,
        "image": {"docker-manifest-digest": manifest.digest}, "type": "cosign container image signature"}});
    let payload = payload.to_string().replace(r#","optional":null"#, "");
    fs::write(lab.path("payload"), &payload).unwrap();
    for (name, options) in [
        ("p256", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        ("p384", &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        ("rsa", &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]),
    ] {
        lab.run(Command::new("openssl").arg("genpkey").args(options).args(["-out", name]));
        lab.run(Command::new("openssl").args(["pkey", "-in", name, "-pubout", "-out", "key.pub"]));
        lab.run(Command::new("openssl").args(["dgst", "-sha256", "-sign", name, "-out", "signature", "payload"]));
        let signature = BASE64_STANDARD.encode(fs::read(lab.path("signature")).unwrap());
        let mut sources = Storage::of(&lab);
        sources.tag(&manifest.digest, payload.clone().into_bytes(), &signature);
        let policy = policy(&json!({"type": "sigstoreSigned", "keyPath": "key.pub"}));
        check(&policy, &manifest, &sources).await.unwrap();
    }
}

#[tokio::test]
async fn cosigns_bundles_are_accepted_if_they_are_signatures() {
    let debian = match NewerDebian::get() {
        Ok(debian) => debian,
        Err(reason) => return eprintln!("skipped: cosign can't be had: {reason}"),
    };
    let Some(lab) = Lab::new(&[]) else { return };
    let manifest = lab.manifest();
    let target = format!("{}/{}@{}", manifest.reference.registry(), manifest.reference.repository(), manifest.digest);
    lab.run(debian.command("cosign").arg("generate-key-pair"));
    let requirement = json!({"type": "sigstoreSigned", "keyPath": "cosign.pub"});
    fs::write(lab.path("predicate.json"), "{}").unwrap();
    let attest = |predicate: &str| {
        let mut attest = debian.command("cosign");
        attest.args(["attest", "--yes", "--tlog-upload=false", "--allow-http-registry", "--new-bundle-format"]);
        attest.args(["--key", "cosign.key", "--predicate", "predicate.json", "--type", predicate]).arg(&target);
        lab.run(&mut attest);
    };

    attest("https://example.org/scanned");
    let refusal = check(&policy(&requirement), &manifest, &Storage::of(&lab)).await.unwrap_err();
    assert!(refusal.contains("a statement of type \"https://example.org/scanned\""), "{refusal}");

    fs::write(lab.path("manifest.json"), &manifest.bytes).unwrap();
    let mut sign = debian.command("cosign");
    sign.args(["sign-blob", "--yes", "--tlog-upload=false", "--new-bundle-format", "--key", "cosign.key"]);
    lab.run(sign.args(["--bundle", "bundle.json", "manifest.json"]));
    let mut sources = Storage::of(&lab);
    sources.refer(fs::read(lab.path("bundle.json")).unwrap());
    check(&policy(&requirement), &manifest, &sources).await.unwrap();

    attest("https://sigstore.dev/cosign/sign/v1");
    let mut named = requirement.clone();
    named["signedIdentity"] = json!({"type": "matchRepository"});
    let signer = check(&policy(&named), &manifest, &Storage::of(&lab)).await.unwrap();
    assert!(signer.starts_with("bundle sha256:"), "{signer}");
}

#[tokio::test]
async fn cosigns_signature_with_a_certificate_of_an_own_authority_is_accepted() {
    let debian = match NewerDebian::get() {
        Ok(debian) => debian,
        Err(reason) => return eprintln!("skipped: cosign can't be had: {reason}"),
    };
    let Some(lab) = Lab::new(&["openssl"]) else { return };
    let manifest = lab.manifest();
    let target = format!("{}/{}@{}", manifest.reference.registry(), manifest.reference.repository(), manifest.digest);
    lab.run(Command::new("openssl").args(["genpkey", "-algorithm", "ED25519", "-out", "key.pem"]));
    lab.run(debian.command("cosign").args(["import-key-pair", "--key", "key.pem", "--output-key-prefix", "cosign"]));
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(lab.path("key.pem")).unwrap()).unwrap();
    let root_key = rcgen::KeyPair::generate().unwrap();
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let mut signer = CertificateParams::new(Vec::new()).unwrap();
    signer.subject_alt_names = vec![SanType::Rfc822Name("dev@example.org".try_into().unwrap())];
    signer.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let signer_pem = signer.signed_by(&key, &Issuer::new(root, root_key)).unwrap().pem();
    fs::write(lab.path("root.pem"), &root_pem).unwrap();
    fs::write(lab.path("signer.pem"), &signer_pem).unwrap();
    let mut sign = debian.command("cosign");
    sign.args(["sign", "--yes", "--tlog-upload=false", "--allow-http-registry", "--key", "cosign.key"]);
    lab.run(sign.args(["--certificate", "signer.pem", "--certificate-chain", "root.pem"]).arg(&target));

    for (email, expected) in [("dev@example.org", Ok(())), ("mallory@example.org", Err("names \"dev@example.org\""))] {
        let pki = json!({"caRootsData": BASE64_STANDARD.encode(&root_pem), "subjectEmail": email});
        let policy = policy(&json!({"type": "sigstoreSigned", "pki": pki}));
        match (check(&policy, &manifest, &Storage::of(&lab)).await, expected) {
            (Ok(signer), Ok(())) => assert!(signer.ends_with("by dev@example.org"), "{signer}"),
            (Err(refusal), Err(reason)) => assert!(refusal.contains(reason), "{refusal}"),
            (outcome, _) => panic!("{outcome:?}"),
        }
    }
    // rcgen's certificates end in the year 4096.
    let later = SystemTime::now() + Duration::from_secs(3000 * 366 * 86_400);
    let pki = json!({"caRootsData": BASE64_STANDARD.encode(&root_pem), "subjectEmail": "dev@example.org"});
    let policy = policy(&json!({"type": "sigstoreSigned", "pki": pki}));
    assert!(policy.check(&manifest.image(), &Storage::of(&lab), later).await.is_err());
}
