//! Certificate chains of attestation tokens.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, date_time_ymd};
use serde::Deserialize as _;
use serde_json::{Value, json};
use store::clock::Timestamp;

use super::signer::{Kind, Signer};
use super::{Hands, NOW};
use crate::chain::{self, Anchors};
use crate::jwk::Jwk;
use crate::{AttestationTokens, AttestationTrust};

/// A CA or a signer, with what it takes to issue more.
pub(super) struct Party {
    pub signer: Signer,
    parameters: CertificateParams,
    pub certificate: Certificate,
}

impl Party {
    pub fn root(name: &str) -> Self {
        Self::self_signed(Signer::new(Kind::P256), authority(name))
    }

    pub fn self_signed(signer: Signer, parameters: CertificateParams) -> Self {
        let certificate = parameters.self_signed(&signer.pair).unwrap();
        Self { signer, parameters, certificate }
    }

    pub fn issue(&self, kind: Kind, parameters: CertificateParams) -> Self {
        let signer = Signer::new(kind);
        let issuer: Issuer<'_, &KeyPair> = Issuer::from_params(&self.parameters, &self.signer.pair);
        let certificate = parameters.signed_by(&signer.pair, &issuer).unwrap();
        Self { signer, parameters, certificate }
    }
}

pub(super) fn named(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    parameters
}

pub(super) fn authority(name: &str) -> CertificateParams {
    let mut parameters = named(name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters
}

pub(super) fn expired(mut parameters: CertificateParams) -> CertificateParams {
    parameters.not_after = date_time_ymd(2026, 1, 1);
    parameters
}

fn x5c(chain: &[&Party]) -> Value {
    chain.iter().map(|party| STANDARD.encode(party.certificate.der())).collect()
}

/// A token that brings the signer's key with a chain.
pub(super) fn token(signer: &Signer, x5c: Value) -> String {
    let mut jwk = signer.jwk();
    jwk["x5c"] = x5c;
    signer.token(json!({ "jwk": jwk }), &json!({ "exp": NOW + 300 }))
}

/// What comes of a token where some certificates are trusted.
async fn verdict(trusted: &[&Party], token: &str) -> String {
    let pems: Vec<_> = trusted.iter().map(|party| party.certificate.pem()).collect();
    verdict_by(&pems, token).await
}

/// What comes of a token where some certificates in PEM are trusted.
pub(super) async fn verdict_by(pems: &[String], token: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut certificates = Vec::new();
    for (index, pem) in pems.iter().enumerate() {
        let path = folder.path().join(format!("{index}.pem"));
        fs::write(&path, pem).unwrap();
        certificates.push(path);
    }
    let trust = AttestationTrust { certificates, ..Default::default() };
    let tokens = AttestationTokens::with(trust, Hands::new().keeping()).await.unwrap();
    tokens.verify(token).await.map_or_else(|e| e.to_string(), |_| "good".to_owned())
}

#[tokio::test]
async fn a_chain_to_a_trusted_certificate_makes_a_key_good() {
    let (root, other) = (Party::root("root"), Party::root("other"));
    let between = root.issue(Kind::P384, authority("between"));
    for kind in [Kind::P256, Kind::P384, Kind::Ed25519, Kind::Rsa] {
        let signer = between.issue(kind, named("signer"));
        let good = token(&signer.signer, x5c(&[&signer, &between]));
        assert_eq!(verdict(&[&other, &root], &good).await, "good", "{kind:?}");
        // A CA below the root may be trusted without it.
        assert_eq!(verdict(&[&between], &token(&signer.signer, x5c(&[&signer]))).await, "good");
        let full = token(&signer.signer, x5c(&[&signer, &other, &root, &between]));
        assert_eq!(verdict(&[&root], &full).await, "good");

        let untrusted = "no trusted certificate issued it";
        assert!(verdict(&[&other], &good).await.contains(untrusted));
        assert!(verdict(&[&root], &token(&signer.signer, x5c(&[&signer]))).await.contains(untrusted));
        // A chain says nothing about another key.
        let stranger = Signer::new(kind);
        assert!(verdict(&[&root], &token(&stranger, x5c(&[&signer, &between]))).await.contains("of another key"));
        assert!(verdict(&[&root], &token(&signer.signer, x5c(&[&between, &signer]))).await.contains("of another key"));
    }
}

#[tokio::test]
async fn a_signer_may_be_trusted_itself() {
    let signer = Party::self_signed(Signer::new(Kind::P256), named("signer"));
    let other = Party::self_signed(Signer::new(Kind::P256), named("signer"));
    let good = token(&signer.signer, x5c(&[&signer]));
    assert_eq!(verdict(&[&signer], &good).await, "good");
    assert!(verdict(&[&other], &good).await.contains("no trusted certificate issued it"));
    // It is no CA, so it vouches for nobody else.
    let below = signer.issue(Kind::P256, named("below"));
    assert!(verdict(&[&signer], &token(&below.signer, x5c(&[&below]))).await.contains("no trusted certificate"));
    let late = Party::self_signed(Signer::new(Kind::P256), expired(named("signer")));
    assert!(verdict(&[&late], &token(&late.signer, x5c(&[&late]))).await.contains("expired"));
}

#[tokio::test]
async fn what_a_certificate_says_of_itself_counts() {
    let root = Party::root("root");
    let refused = async |trusted: &Party, chain: &[&Party], expected: &str| {
        let verdict = verdict(&[trusted], &token(&chain[0].signer, x5c(chain))).await;
        assert!(verdict.contains(expected), "{verdict}");
    };

    let late = root.issue(Kind::P256, expired(named("late")));
    refused(&root, &[&late], "expired").await;
    let late = root.issue(Kind::P256, expired(authority("late")));
    refused(&root, &[&late.issue(Kind::P256, named("signer")), &late], "Expired").await;
    let late = Party::self_signed(Signer::new(Kind::P256), expired(authority("root")));
    refused(&late, &[&late.issue(Kind::P256, named("signer"))], "no trusted certificate").await;

    let no_ca = root.issue(Kind::P256, named("no CA"));
    refused(&root, &[&no_ca.issue(Kind::P256, named("signer")), &no_ca], "EndEntityUsedAsCa").await;
    let mut only_signs = authority("root");
    only_signs.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let only_signs = Party::self_signed(Signer::new(Kind::P256), only_signs);
    refused(&only_signs, &[&only_signs.issue(Kind::P256, named("signer"))], "no trusted certificate").await;

    let mut short = authority("short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = Party::self_signed(Signer::new(Kind::P256), short);
    let between = short.issue(Kind::P256, authority("between"));
    let direct = short.issue(Kind::P256, named("direct"));
    assert_eq!(verdict(&[&short], &token(&direct.signer, x5c(&[&direct]))).await, "good");
    refused(&short, &[&between.issue(Kind::P256, named("signer")), &between], "PathLenConstraintViolated").await;
}

#[tokio::test]
async fn a_chain_that_is_none_is_refused() {
    let root = Party::root("root");
    let signer = root.issue(Kind::P256, named("signer"));
    let der = STANDARD.encode(signer.certificate.der());
    let trailing = STANDARD.encode([signer.certificate.der().as_ref(), b"x"].concat());
    for (x5c, expected) in [
        (json!(null), "not signed with a trusted key"),
        (json!([]), "no certificate, or more than 8"),
        (json!(vec![&der; 9]), "no certificate, or more than 8"),
        (json!([""]), "malformed"),
        (json!(["*"]), "malformed"),
        (json!(["AAAA"]), "malformed"),
        (json!([trailing]), "malformed"),
        (json!([7]), "compact JWS"),
        (json!("x"), "compact JWS"),
    ] {
        let verdict = verdict(&[&root], &token(&signer.signer, x5c)).await;
        assert!(verdict.contains(expected), "{verdict}");
    }
    let lines = json!([der.as_bytes().chunks(64).map(|l| String::from_utf8_lossy(l)).collect::<Vec<_>>().join("\n")]);
    assert_eq!(verdict(&[&root], &token(&signer.signer, lines)).await, "good");
}

/// Upstream's scenarios: key with chain, trusted certificates, and whether the key is good.
#[test]
fn upstreams_scenarios_come_out_the_same() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/token-jwk");
    if !folder.is_dir() {
        println!("skipped: there is no {}", folder.display());
        return;
    }
    for (scenario, good) in [(1, true), (2, false), (3, false), (4, false), (5, true), (6, true), (7, true)] {
        let jwk = fs::read(folder.join(format!("scenario0{scenario}-jwk.json"))).unwrap();
        let jwk = Jwk::deserialize(&serde_json::from_slice::<Value>(&jwk).unwrap()).unwrap();
        let trusted = fs::read(folder.join(format!("scenario0{scenario}-trust.pem"))).unwrap();
        let trusted = Anchors::from_pem(&trusted).unwrap();
        let key = jwk.verifying_key().unwrap().key;
        let x5c = jwk.x5c.unwrap_or_default();
        let result = chain::check(&x5c, &key, std::iter::once(&trusted), Timestamp::from_unix(NOW));
        assert_eq!(result.is_ok(), good, "scenario {scenario}: {result:?}");
    }
}
