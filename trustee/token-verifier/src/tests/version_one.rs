//! Signers whose certificates are of X.509 version 1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, IsCa, SigningKey as _};
use serde_json::Value;
use store::clock::Timestamp;
use x509_parser::asn1_rs::{Any, BitString, Sequence, ToDer as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer as _;

use super::chains::{Party, authority, expired, named, token, verdict_by};
use super::signer::{Kind, Signer};
use crate::chain::{self, Anchors};
use crate::error::Error;
use crate::key::PublicKey;

/// The certificate of a party without its version and its extensions, signed by another party, or by itself.
fn version_one(party: &Party, issuer: &Party) -> Vec<u8> {
    without(&[0, 3], party, issuer)
}

/// The certificate of a party without the fields that have those tags, signed by another party, or by itself.
fn without(tags: &[u32], party: &Party, issuer: &Party) -> Vec<u8> {
    let der = party.certificate.der();
    let (_, parsed) = X509Certificate::from_der(der).unwrap();
    let old: &[u8] = parsed.tbs_certificate.as_ref();
    let (_, fields) = Sequence::from_der(old).unwrap();
    let mut left: &[u8] = &fields.content;
    let mut kept = Vec::new();
    while !left.is_empty() {
        let (rest, field) = Any::from_der(left).unwrap();
        if !(field.header.is_contextspecific() && tags.contains(&field.tag().0)) {
            kept.extend_from_slice(&left[..left.len() - rest.len()]);
        }
        left = rest;
    }
    let body = sequence(&[&kept]);
    let signature = issuer.signer.pair.sign(&body).unwrap();
    let (_, whole) = Sequence::from_der(der).unwrap();
    let (_, algorithm) = Any::from_der(&whole.content[old.len()..]).unwrap();
    let algorithm = sequence(&[algorithm.data]);
    sequence(&[&body, &algorithm, &BitString::new(0, &signature).to_der_vec().unwrap()])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    Sequence::new(parts.concat().into()).to_der_vec().unwrap()
}

fn der(party: &Party) -> Vec<u8> {
    party.certificate.der().to_vec()
}

fn x5c(chain: &[Vec<u8>]) -> Value {
    chain.iter().map(|der| STANDARD.encode(der)).collect()
}

fn pem_of(der: &[u8]) -> String {
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", STANDARD.encode(der))
}

/// What comes of a token with a chain where one certificate is trusted.
async fn verdict(trusted: &[u8], signer: &Signer, chain: &[Vec<u8>]) -> String {
    verdict_by(&[pem_of(trusted)], &token(signer, x5c(chain))).await
}

#[tokio::test]
async fn a_signer_of_version_one_is_good_if_a_trusted_ca_issued_it() {
    let root = Party::root("root");
    for kind in [Kind::P256, Kind::P384, Kind::Ed25519, Kind::Rsa] {
        let direct = root.issue(kind, named("signer"));
        let chain = [version_one(&direct, &root)];
        assert_eq!(verdict(&der(&root), &direct.signer, &chain).await, "good", "{kind:?}");

        let between = root.issue(kind, authority("between"));
        let below = between.issue(Kind::P256, named("signer"));
        let chain = [version_one(&below, &between), der(&between), der(&root)];
        assert_eq!(verdict(&der(&root), &below.signer, &chain).await, "good", "{kind:?}");
        assert_eq!(verdict(&der(&between), &below.signer, &chain).await, "good", "{kind:?}");
        let verdict = verdict(&der(&root), &below.signer, &chain[..1]).await;
        assert!(verdict.contains("no trusted certificate issued it"), "{verdict}");
    }
}

#[tokio::test]
async fn a_signer_of_version_one_is_judged_like_any_other() {
    let (root, namesake, other) = (Party::root("root"), Party::root("root"), Party::root("other"));
    let signer = root.issue(Kind::P256, named("signer"));
    let good = version_one(&signer, &root);
    let refused = async |trusted: &Party, signer: &Signer, chain: &[Vec<u8>], expected: &str| {
        let verdict = verdict(&der(trusted), signer, chain).await;
        assert!(verdict.contains(expected), "{expected}: {verdict}");
    };

    refused(&root, &Signer::new(Kind::P256), std::slice::from_ref(&good), "of another key").await;
    // The name alone and the signature alone are not enough.
    refused(&namesake, &signer.signer, std::slice::from_ref(&good), "InvalidSignatureForPublicKey").await;
    refused(&root, &signer.signer, &[version_one(&signer, &signer)], "InvalidSignatureForPublicKey").await;
    refused(&other, &signer.signer, &[version_one(&signer, &other)], "no trusted certificate issued it").await;
    let late = root.issue(Kind::P256, expired(named("late")));
    refused(&root, &late.signer, &[version_one(&late, &root)], "expired").await;

    // The CAs between it and a trusted one are judged as ever.
    let late = root.issue(Kind::P256, expired(authority("late")));
    let below = late.issue(Kind::P256, named("signer"));
    refused(&root, &below.signer, &[version_one(&below, &late), der(&late)], "Expired").await;
    let no_ca = root.issue(Kind::P256, named("no CA"));
    let below = no_ca.issue(Kind::P256, named("signer"));
    refused(&root, &below.signer, &[version_one(&below, &no_ca), der(&no_ca)], "EndEntityUsedAsCa").await;
    let mut short = authority("short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = Party::self_signed(Signer::new(Kind::P256), short);
    let between = short.issue(Kind::P256, authority("between"));
    let below = between.issue(Kind::P256, named("signer"));
    refused(&short, &below.signer, &[version_one(&below, &between), der(&between)], "PathLenConstraintViolated").await;
}

#[tokio::test]
async fn a_signature_is_good_for_the_version_that_was_signed() {
    let root = Party::root("root");
    let signer = root.issue(Kind::P256, named("signer"));
    let old = version_one(&signer, &root);
    let (_, parsed) = X509Certificate::from_der(&old).unwrap();
    let shown = crate::version_one::VersionOne::new(&old.clone().into(), &parsed).unwrap().shown.to_vec();
    let (_, new) = X509Certificate::from_der(&shown).unwrap();
    let signature =
        |certificate: &X509Certificate<'_>| BitString::new(0, &certificate.signature_value.data).to_der_vec().unwrap();
    let (_, issued) = X509Certificate::from_der(signer.certificate.der()).unwrap();
    let (_, whole) = Sequence::from_der(&old).unwrap();
    let body: &[u8] = parsed.tbs_certificate.as_ref();
    let (_, algorithm) = Any::from_der(&whole.content[body.len()..]).unwrap();
    let algorithm = sequence(&[algorithm.data]);
    let stolen = sequence(&[body, &algorithm, &signature(&issued)]);

    assert_eq!(new.signature_value, parsed.signature_value);
    assert_eq!(verdict(&der(&root), &signer.signer, &[old]).await, "good");
    for forged in [shown, stolen] {
        let verdict = verdict(&der(&root), &signer.signer, &[forged]).await;
        assert!(verdict.contains("InvalidSignatureForPublicKey"), "{verdict}");
    }
}

#[tokio::test]
async fn a_certificate_of_version_one_vouches_for_nobody_else() {
    let root = Party::root("root");
    let untrusted = "no trusted certificate issued it";

    // As the trusted one.
    let below = root.issue(Kind::P256, named("signer"));
    let old_root = version_one(&root, &root);
    assert_eq!(verdict(&old_root, &root.signer, std::slice::from_ref(&old_root)).await, "good");
    for chain in [vec![der(&below)], vec![version_one(&below, &root)], vec![der(&below), old_root.clone()]] {
        let verdict = verdict(&old_root, &below.signer, &chain).await;
        assert!(verdict.contains(untrusted), "{verdict}");
    }
    // One that says that it is a CA's, which can't be said in version 1.
    let odd = without(&[0], &root, &root);
    assert_eq!(Anchors::from_pem(pem_of(&odd).as_bytes()), Err("a certificate in it is malformed"));
    let verdict_of_odd = verdict(&der(&root), &root.signer, &[odd]).await;
    assert!(verdict_of_odd.contains("CaUsedAsEndEntity"), "{verdict_of_odd}");

    // As one between.
    let between = root.issue(Kind::P256, authority("between"));
    let below = between.issue(Kind::P256, named("signer"));
    for old_between in [version_one(&between, &root), without(&[0], &between, &root)] {
        for signer in [der(&below), version_one(&below, &between)] {
            let verdict = verdict(&der(&root), &below.signer, &[signer, old_between.clone()]).await;
            assert!(verdict.contains(untrusted) || verdict.contains("UnsupportedCertVersion"), "{verdict}");
        }
    }
}

/// A signer's certificate and its CA's as `openssl req -x509` and `openssl x509 -req -extensions req_ext` make them.
#[test]
fn what_openssl_makes_without_extensions_is_good() {
    let pem = include_bytes!("version_one.pem");
    let chain: Vec<_> = Pem::iter_from_buffer(pem).map(|block| block.unwrap().contents).collect();
    let (_, signer) = X509Certificate::from_der(&chain[0]).unwrap();
    let key = PublicKey::from_spki(signer.public_key()).unwrap();
    let x5c: Vec<_> = chain.iter().map(|der| STANDARD.encode(der)).collect();
    let trusted = Anchors::from_pem(pem_of(&chain[1]).as_bytes()).unwrap();
    let at = |seconds| chain::check(&x5c, &key, std::iter::once(&trusted), Timestamp::from_unix(seconds));

    assert!(at(ISSUED).is_ok() && at(EXPIRES).is_ok());
    for seconds in [ISSUED - 1, EXPIRES + 1] {
        assert!(matches!(at(seconds), Err(Error::Chain(_))));
    }
    for index in 0..chain[0].len() {
        for bit in 0..8 {
            let mut changed = chain[0].clone();
            changed[index] ^= 1 << bit;
            let x5c = [STANDARD.encode(&changed), x5c[1].clone()];
            let result = chain::check(&x5c, &key, std::iter::once(&trusted), Timestamp::from_unix(ISSUED));
            assert!(matches!(result, Err(Error::Chain(_))), "bit {bit} of byte {index}");
        }
    }
}

/// 2026-11-25, 04:32:21.
const ISSUED: u64 = 1_795_581_141;
/// 2126-10-31, 04:32:21.
const EXPIRES: u64 = ISSUED + 36_499 * 24 * 3600;
