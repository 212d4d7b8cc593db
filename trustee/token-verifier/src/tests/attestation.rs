//! Attestation tokens: the keys they bring, and those that sets have.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::signer::{Kind, Signer, encode, set};
use super::{Hands, NOW};
use crate::error::Error;
use crate::{AttestationTokens, AttestationTrust};

fn claims() -> Value {
    json!({ "exp": NOW + 300, "iss": "CoCo-Attestation-Service", "submods": {} })
}

/// Tokens of a JWK set in a file, and the folder it is in.
async fn with_set(keys: &[Value]) -> (AttestationTokens, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    fs::write(&path, set(keys)).unwrap();
    let trust = AttestationTrust { jwk_sets: vec![format!("file://{}", path.display())], ..Default::default() };
    (AttestationTokens::with(trust, Hands::new().keeping()).await.unwrap(), folder)
}

#[tokio::test]
async fn a_token_is_good_by_the_name_of_its_key_or_by_the_key_itself() {
    let (signer, stranger) = (Signer::new(Kind::P256), Signer::new(Kind::P256));
    let (tokens, _folder) = with_set(&[Signer::new(Kind::Rsa).named_jwk("other"), signer.named_jwk("k")]).await;
    let own = |signer: &Signer| json!({ "jwk": signer.jwk() });

    assert_eq!(tokens.verify(&signer.token(json!({ "kid": "k" }), &claims())).await.unwrap(), claims());
    assert!(tokens.verify(&signer.token(own(&signer), &claims())).await.is_ok());
    for (token, expected) in [
        (stranger.token(json!({ "kid": "k" }), &claims()), "Signature"),
        (stranger.token(json!({ "kid": "none" }), &claims()), "UnknownKey"),
        (stranger.token(own(&stranger), &claims()), "UnknownKey"),
        (stranger.token(own(&signer), &claims()), "Signature"),
        (stranger.token(json!({ "jwk": stranger.jwk(), "kid": "k" }), &claims()), "UnknownKey"),
        (signer.token(json!({ "jwk": { "kty": "oct", "k": "AAAA" } }), &claims()), "HeaderKey"),
        (signer.token_as(&json!({ "alg": "HS256", "kid": "k" }), "HS256", &claims()), "Algorithm"),
        (signer.token_as(&json!({ "alg": "none", "jwk": signer.jwk() }), "none", &claims()), "Algorithm"),
        (signer.token_as(&json!({ "alg": "RS256", "jwk": signer.jwk() }), "ES256", &claims()), "Algorithm"),
    ] {
        assert_eq!(format!("{:?}", tokens.verify(&token).await.unwrap_err()), expected);
    }
}

#[tokio::test]
async fn a_token_is_good_for_a_minute_more() {
    let signer = Signer::new(Kind::P384);
    let (tokens, _folder) = with_set(&[signer.jwk()]).await;
    let expiring = |exp: u64| signer.token(json!({}), &json!({ "exp": exp }));
    assert!(tokens.verify(&expiring(NOW - 59)).await.is_ok());
    assert!(matches!(tokens.verify(&expiring(NOW - 60)).await, Err(Error::Expired)));
    assert!(matches!(tokens.verify(&signer.token(json!({}), &json!({}))).await, Err(Error::Times)));
}

#[tokio::test]
async fn whoever_wants_it_trusts_every_key() {
    let trust = AttestationTrust { insecure_header_jwk: true, ..Default::default() };
    let tokens = AttestationTokens::with(trust, Hands::new().keeping()).await.unwrap();
    for kind in [Kind::P256, Kind::P384, Kind::Ed25519, Kind::Rsa] {
        let signer = Signer::new(kind);
        assert!(tokens.verify(&signer.token(json!({ "jwk": signer.jwk() }), &claims())).await.is_ok(), "{kind:?}");
    }
    let (signer, other) = (Signer::new(Kind::P256), Signer::new(Kind::P256));
    let token = signer.token(json!({ "jwk": other.jwk() }), &claims());
    assert!(matches!(tokens.verify(&token).await, Err(Error::Signature)));
    assert!(matches!(tokens.verify(&signer.token(json!({}), &claims())).await, Err(Error::UnknownKey)));
}

#[tokio::test]
async fn trusting_nobody_is_refused() {
    let result = AttestationTokens::with(AttestationTrust::default(), Hands::new().keeping()).await;
    assert!(matches!(result, Err(Error::NoTrust)));
}

proptest! {
    #[test]
    fn no_token_makes_it_panic(
        text in "\\PC{0,100}",
        header in "\\PC{0,100}",
        (kty, crv) in ("EC|RSA|OKP", "P-256|P-384|Ed25519"),
        (x, y, signature) in ("[A-Za-z0-9_-]{0,90}", "[A-Za-z0-9_-]{0,90}", "[A-Za-z0-9_-]{0,90}"),
        x5c in proptest::collection::vec("[A-Za-z0-9+/]{0,80}", 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let trust = AttestationTrust { insecure_header_jwk: true, ..Default::default() };
        let tokens = runtime.block_on(AttestationTokens::with(trust, Hands::new().keeping())).unwrap();
        let jwk = json!({ "kty": kty, "crv": crv, "x": x, "y": y, "n": x, "e": y, "x5c": x5c });
        let full = json!({ "alg": "ES256", "jwk": jwk }).to_string();
        for token in [
            text.clone(),
            format!("{}.{}.{signature}", encode(header.as_bytes()), encode(text.as_bytes())),
            format!("{}.{}.{signature}", encode(full.as_bytes()), encode(text.as_bytes())),
        ] {
            prop_assert!(runtime.block_on(tokens.verify(&token)).is_err());
        }
    }
}
