//! Tokens of administrators: algorithms, claims, and several providers.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::issuer::Issuer;
use super::signer::{Kind, Signer, encode, set};
use super::{Hands, NOW};
use crate::error::Error;
use crate::{AdminTokens, IdentityProvider, KeySource, Kind as ErrorKind};

const KINDS: [Kind; 4] = [Kind::P256, Kind::P384, Kind::Ed25519, Kind::Rsa];
const ALGORITHMS: [&str; 9] = ["ES256", "ES384", "EdDSA", "RS256", "RS384", "RS512", "PS256", "HS256", "none"];

fn claims() -> Value {
    json!({ "exp": NOW + 1, "role": "admin", "sub": "kim", "iss": "issuer", "aud": ["audience"] })
}

fn provider(source: KeySource) -> IdentityProvider {
    IdentityProvider { issuer: None, audience: None, source }
}

fn pem_file(folder: &TempDir, signer: &Signer) -> KeySource {
    let path = folder.path().join(format!("{:?}.pem", signer.kind));
    fs::write(&path, signer.pem()).unwrap();
    KeySource::Pem(path)
}

fn set_file(folder: &TempDir, text: &str) -> KeySource {
    let path = folder.path().join("keys.json");
    fs::write(&path, text).unwrap();
    KeySource::JwkSet(format!("file://{}", path.display()))
}

async fn tokens(providers: Vec<IdentityProvider>) -> AdminTokens {
    AdminTokens::with(providers, &Hands::new().keeping()).await.unwrap()
}

/// The refusal inside of what upstream's users look for.
async fn refusal(tokens: &AdminTokens, token: &str) -> Error {
    let error = tokens.verify(token).await.unwrap_err();
    assert!(error.to_string().starts_with("Cannot verify token with any of the issuers: "), "{error}");
    match error {
        Error::Issuers(cause) => *cause,
        other => other,
    }
}

fn fits(kind: Kind, algorithm: &str) -> bool {
    match kind {
        Kind::P256 => algorithm == "ES256",
        Kind::P384 => algorithm == "ES384",
        Kind::Ed25519 => algorithm == "EdDSA",
        Kind::Rsa => matches!(algorithm, "RS256" | "RS384" | "RS512" | "PS256"),
    }
}

#[tokio::test]
async fn the_key_decides_the_algorithm_and_the_token_can_only_agree() {
    let folder = tempfile::tempdir().unwrap();
    for kind in KINDS {
        let signer = Signer::new(kind);
        let by_pem = tokens(vec![provider(pem_file(&folder, &signer))]).await;
        let by_set = tokens(vec![provider(set_file(&folder, &set(&[signer.named_jwk("k")])))]).await;
        for said in ALGORITHMS {
            for done in ALGORITHMS.into_iter().filter(|done| fits(kind, done) || matches!(*done, "HS256" | "none")) {
                let token = signer.token_as(&json!({ "alg": said, "kid": "k" }), done, &claims());
                let good = said == done && fits(kind, said);
                for tokens in [&by_pem, &by_set] {
                    let result = tokens.verify(&token).await;
                    assert_eq!(result.is_ok(), good, "{kind:?}: says {said}, is {done}: {result:?}");
                }
            }
        }
        for alg in ["", "HS384", "HS512", "es256", "NONE", "nOnE", "ES256K", "RS1", "PS384", "\u{0}ES256"] {
            let token = signer.token_as(&json!({ "alg": alg }), signer.algorithm(), &claims());
            assert!(matches!(refusal(&by_pem, &token).await, Error::Algorithm), "{alg:?}");
        }
        for alg in [json!(null), json!(["ES256"]), json!(0), json!({ "ES256": 1 })] {
            let token = signer.token_as(&json!({ "alg": alg }), signer.algorithm(), &claims());
            assert!(matches!(refusal(&by_pem, &token).await, Error::Form), "{alg}");
        }
    }
}

#[tokio::test]
async fn a_key_that_names_its_algorithm_is_good_for_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new(Kind::Rsa);
    let mut jwk = signer.named_jwk("k");
    jwk["alg"] = json!("PS256");
    let tokens = tokens(vec![provider(set_file(&folder, &set(&[jwk])))]).await;
    let token = |alg| signer.token_as(&json!({ "alg": alg, "kid": "k" }), alg, &claims());
    assert!(tokens.verify(&token("PS256")).await.is_ok());
    assert!(matches!(refusal(&tokens, &token("RS256")).await, Error::Algorithm));
}

#[tokio::test]
async fn claims_are_required_and_checked_without_leeway() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new(Kind::Ed25519);
    let source = pem_file(&folder, &signer);
    let strict = IdentityProvider { issuer: Some("issuer".into()), audience: Some("audience".into()), source };
    let tokens = tokens(vec![strict]).await;
    let changed = |member: &str, value: Value| {
        let mut claims = claims();
        claims[member] = value;
        signer.token(json!({}), &claims)
    };

    assert_eq!(tokens.verify(&signer.token(json!({}), &claims())).await.unwrap(), claims());
    assert!(matches!(refusal(&tokens, &changed("exp", json!(NOW))).await, Error::Expired));
    assert!(matches!(refusal(&tokens, &changed("exp", json!(null))).await, Error::Times));
    assert!(matches!(refusal(&tokens, &changed("nbf", json!(NOW + 61))).await, Error::NotYetValid));
    assert!(matches!(refusal(&tokens, &changed("iss", json!("other"))).await, Error::Issuer));
    assert!(matches!(refusal(&tokens, &changed("aud", json!(["other"]))).await, Error::Audience));
    assert!(matches!(refusal(&tokens, &signer.token(json!({}), &json!("claims"))).await, Error::Form));
    let stranger = Signer::new(Kind::Ed25519).token(json!({}), &claims());
    assert!(matches!(refusal(&tokens, &stranger).await, Error::UnknownKey));
}

#[tokio::test]
async fn one_of_several_providers_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (Signer::new(Kind::P256), Signer::new(Kind::Ed25519));
    let named = |issuer: &str, source| IdentityProvider { issuer: Some(issuer.into()), audience: None, source };
    let providers = vec![named("one", pem_file(&folder, &one)), named("issuer", pem_file(&folder, &other))];
    let tokens = tokens(providers).await;
    assert!(tokens.verify(&other.token(json!({}), &claims())).await.is_ok());
    // Each is good for its own issuer only.
    assert!(matches!(refusal(&tokens, &one.token(json!({}), &claims())).await, Error::Issuer));
}

#[tokio::test]
async fn a_kid_is_only_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (signer, other) = (Signer::new(Kind::P256), Signer::new(Kind::P256));
    let source = set_file(&folder, &set(&[other.named_jwk("other"), signer.named_jwk("k")]));
    let tokens = tokens(vec![provider(source)]).await;

    assert!(tokens.verify(&signer.token(json!({ "kid": "k" }), &claims())).await.is_ok());
    assert!(matches!(refusal(&tokens, &signer.token(json!({ "kid": "other" }), &claims())).await, Error::Signature));
    let long = "k".repeat(30_000);
    for kid in ["", "K", "../../../../etc/passwd", "k' OR '1'='1", "k\u{0}", "/dev/null", "${jndi:x}", &long] {
        let token = signer.token(json!({ "kid": kid }), &claims());
        assert!(matches!(refusal(&tokens, &token).await, Error::UnknownKey), "{kid}");
    }
    assert!(matches!(refusal(&tokens, &signer.token(json!({}), &claims())).await, Error::UnknownKey));
    assert!(matches!(refusal(&tokens, &signer.token(json!({ "kid": 7 }), &claims())).await, Error::Form));
}

#[tokio::test]
async fn a_header_points_nowhere_and_brings_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let (signer, stranger) = (Signer::new(Kind::P256), Signer::new(Kind::P256));
    let issuer = Issuer::start().await;
    issuer.serve("/keys", set(&[stranger.named_jwk("k")]));
    let keeping = issuer.keeping(&Hands::new());
    let tokens = AdminTokens::with(vec![provider(pem_file(&folder, &signer))], &keeping).await.unwrap();

    let url = format!("{}/keys", issuer.url);
    for header in [
        json!({ "kid": "k", "jku": url }),
        json!({ "kid": "k", "x5u": url }),
        json!({ "kid": url }),
        json!({ "jwk": stranger.jwk() }),
        json!({ "x5c": ["AAAA"] }),
    ] {
        let error = refusal(&tokens, &stranger.token(header, &claims())).await;
        assert!(matches!(error, Error::UnknownKey), "{error}");
    }
    assert_eq!(issuer.requests(), 0);
}

#[tokio::test]
async fn odd_tokens_are_refused_for_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let signer = Signer::new(Kind::P256);
    let tokens = tokens(vec![provider(pem_file(&folder, &signer))]).await;
    let good = signer.token(json!({}), &claims());
    let [header, payload, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let twice = encode(br#"{"alg":"none","alg":"ES256"}"#);
    let deep = encode(format!("{{\"alg\":\"ES256\",\"x\":{}", "[".repeat(20_000)).as_bytes());
    for (token, expected) in [
        (String::new(), "Form"),
        ("..".to_owned(), "Form"),
        ("a.b.c".to_owned(), "Form"),
        (format!("{header}.{payload}"), "Form"),
        (format!("{header}.{payload}.*"), "Form"),
        (format!(" {good}"), "Form"),
        (format!("{twice}.{payload}.{signature}"), "Form"),
        (format!("{deep}.{payload}.{signature}"), "Form"),
        (format!("{header}.{payload}."), "UnknownKey"),
        (format!("{header}.{}.{signature}", encode(b"{}")), "UnknownKey"),
        (format!("{header}.{payload}.{}", "A".repeat(1400)), "Signature"),
        (format!("{}.{payload}.{signature}", "A".repeat((64 << 10) + 1)), "TooLarge"),
        ("x".repeat((1 << 20) + 1), "TooLarge"),
        (signer.token(json!({ "crit": ["exp"], "exp": 1 }), &claims()), "Critical"),
        (signer.token(json!({ "crit": ["b64"], "b64": false }), &claims()), "Critical"),
    ] {
        let error = refusal(&tokens, &token).await;
        assert_eq!(format!("{error:?}"), expected, "{:.100}", token);
        assert_eq!(error.kind(), ErrorKind::Refused);
    }
}

#[tokio::test]
async fn keys_that_can_not_be_had_stop_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let http = || crate::Http::new(None).unwrap();
    let absent = KeySource::Pem(PathBuf::from("/nowhere/key.pem"));
    let empty = set_file(&folder, "{\"keys\":[]}");
    for (source, expected) in [
        (absent, "/nowhere/key.pem"),
        (empty, "no key"),
        (KeySource::JwkSet("http://127.0.0.1/keys".into()), "is no place of keys"),
        (KeySource::JwkSet("/etc/keys.json".into()), "is no place of keys"),
        (KeySource::PemUrl("http://127.0.0.1/key.pem".into()), "is no place of keys"),
        (KeySource::PemUrl("file:///nowhere/key.pem".into()), "/nowhere/key.pem"),
    ] {
        let error = AdminTokens::new(vec![provider(source)], http(), Hands::new().clock()).await.err().unwrap();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.kind(), ErrorKind::Configuration);
    }
    assert!(matches!(AdminTokens::new(vec![], http(), Hands::new().clock()).await, Err(Error::NoProviders)));
}
