//! Keys that change while they are used: at addresses and in files.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::issuer::Issuer;
use super::signer::{Kind, Signer, set};
use super::{Hands, NOW};
use crate::error::Error;
use crate::http::Http;
use crate::live::{Keeping, Pace};
use crate::{AdminTokens, AttestationTokens, AttestationTrust, IdentityProvider, KeySource, Kind as ErrorKind};

const DAY: u64 = 24 * 3600;

async fn with_set(place: String, keeping: Keeping) -> AttestationTokens {
    let trust = AttestationTrust { jwk_sets: vec![place], ..Default::default() };
    AttestationTokens::with(trust, keeping).await.unwrap()
}

fn token(signer: &Signer, kid: &str) -> String {
    signer.token(json!({ "kid": kid }), &json!({ "exp": NOW + 10 * DAY }))
}

async fn verdict(tokens: &AttestationTokens, token: &str) -> String {
    tokens.verify(token).await.map_or_else(|e| format!("{e:?}"), |_| "good".to_owned())
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it() {
    let (old, new) = (Signer::new(Kind::P256), Signer::new(Kind::P256));
    let (issuer, hands) = (Issuer::start().await, Hands::new());
    issuer.serve("/keys", set(&[old.named_jwk("old")]));
    let tokens = Arc::new(with_set(format!("{}/keys", issuer.url), issuer.keeping(&hands)).await);

    // The first token waits for the first answer.
    assert_eq!(verdict(&tokens, &token(&old, "old")).await, "good");
    assert_eq!((issuer.requests(), tokens.generation()), (1, 1));
    issuer.serve("/keys", set(&[old.named_jwk("old"), new.named_jwk("new")]));
    // Too soon after the last answer.
    assert_eq!(verdict(&tokens, &token(&new, "new")).await, "UnknownKey");
    assert_eq!(issuer.requests(), 1);

    hands.move_by(30);
    let mut many = JoinSet::new();
    for _ in 0..50 {
        let (tokens, token) = (tokens.clone(), token(&new, "new"));
        many.spawn(async move { verdict(&tokens, &token).await });
    }
    assert!(many.join_all().await.iter().all(|verdict| verdict == "good"));
    assert_eq!((issuer.requests(), tokens.generation()), (2, 2));

    // Names that nobody has are looked for once in 30 seconds, and the same keys change nothing.
    for kid in ["x", "y", "z"] {
        assert_eq!(verdict(&tokens, &token(&new, kid)).await, "UnknownKey");
    }
    hands.move_by(30);
    for kid in ["x", "y", "z"] {
        assert_eq!(verdict(&tokens, &token(&new, kid)).await, "UnknownKey");
    }
    assert_eq!((issuer.requests(), tokens.generation()), (3, 2));

    // A key that was taken out is good no more.
    issuer.serve("/keys", set(&[new.named_jwk("new")]));
    hands.move_by(30);
    assert_eq!(verdict(&tokens, &token(&new, "x")).await, "UnknownKey");
    assert_eq!(verdict(&tokens, &token(&old, "old")).await, "UnknownKey");
}

#[tokio::test]
async fn a_key_without_a_name_is_fetched_when_it_is_not_known() {
    let (old, new) = (Signer::new(Kind::P256), Signer::new(Kind::Ed25519));
    let (issuer, hands) = (Issuer::start().await, Hands::new());
    let tokens = with_set(format!("{}/keys", issuer.url), issuer.keeping(&hands)).await;
    for signer in [&old, &new] {
        issuer.serve("/keys", set(&[signer.jwk()]));
        hands.move_by(30);
        let claims = json!({ "exp": NOW + DAY });
        assert_eq!(verdict(&tokens, &signer.token(json!({}), &claims)).await, "good");
        assert_eq!(verdict(&tokens, &signer.token(json!({ "jwk": signer.jwk() }), &claims)).await, "good");
    }
}

#[tokio::test]
async fn an_issuer_names_its_keys() {
    let signer = Signer::new(Kind::Rsa);
    let issuer = Issuer::start().await;
    let configuration = |uri: &str| json!({ "issuer": "x", "jwks_uri": uri }).to_string();
    issuer.serve("/realm/.well-known/openid-configuration", configuration(&format!("{}/certs", issuer.url)));
    issuer.serve("/certs", set(&[signer.named_jwk("k")]));
    issuer.serve("/plain/.well-known/openid-configuration", configuration("http://127.0.0.1/certs"));
    issuer.redirect("/elsewhere", "http://127.0.0.1/certs");
    issuer.redirect("/moved", "/certs");

    for (path, expected) in [
        ("/realm", "good"),
        ("/realm/", "good"),
        ("/moved", "good"),
        ("/plain", "Unavailable"),
        ("/elsewhere", "Unavailable"),
        ("/absent", "Unavailable"),
    ] {
        let provider = IdentityProvider {
            issuer: None,
            audience: None,
            source: KeySource::JwkSet(format!("{}{path}", issuer.url)),
        };
        let tokens = AdminTokens::with(vec![provider], &issuer.keeping(&Hands::new())).await.unwrap();
        let verdict = match tokens.verify(&token(&signer, "k")).await {
            Ok(_) => "good".to_owned(),
            Err(Error::Issuers(e)) => format!("{e:?}"),
            Err(e) => panic!("{e:?}"),
        };
        assert_eq!(verdict, expected, "{path}");
    }
}

#[tokio::test]
async fn old_keys_are_used_for_a_day_while_there_are_no_new_ones() {
    let signer = Signer::new(Kind::P256);
    let (issuer, hands) = (Issuer::start().await, Hands::new());
    issuer.serve("/keys", set(&[signer.named_jwk("k")]));
    let tokens = with_set(format!("{}/keys", issuer.url), issuer.keeping(&hands)).await;
    assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "good");

    let large = set(&vec![Value::from("x".repeat(1 << 10)); 1 << 10]);
    let many = set(&vec![signer.jwk(); 257]);
    for bad in [&large, &many, "{}", "", "<html>"] {
        issuer.serve("/keys", bad.to_owned());
        hands.move_by(30);
        // Nobody can tell whether this key is good now.
        assert_eq!(verdict(&tokens, &token(&signer, "new")).await, "Unavailable");
        assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "good");
    }
    issuer.fail("/keys");
    hands.move_by(DAY - 4 * 30);
    assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "good");
    hands.move_by(1);
    let error = tokens.verify(&token(&signer, "k")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);

    issuer.serve("/keys", set(&[signer.named_jwk("k")]));
    hands.move_by(30);
    assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "good");
}

#[tokio::test]
async fn answers_are_asked_for_again_when_they_are_due() {
    let issuer = Issuer::start().await;
    let usual = Duration::from_secs(3600);
    for (cache_control, pace) in [
        ("max-age=0", Pace { shortest: Duration::from_millis(1), ..Pace::default() }),
        (
            "max-age=99999999999",
            Pace { longest: Duration::from_millis(1), shortest: Duration::ZERO, ..Pace::default() },
        ),
        ("private", Pace { usual: Duration::from_millis(1), ..Pace::default() }),
    ] {
        issuer.serve_for("/keys", set(&[Signer::new(Kind::P256).jwk()]), cache_control);
        let keeping = Keeping { pace, ..issuer.keeping(&Hands::new()) };
        let tokens = with_set(format!("{}/keys", issuer.url), keeping).await;
        tokens.jwk_sets[0].after_loads(3).await;
    }

    issuer.fail("/keys");
    let pace = Pace { retry: Duration::from_millis(1), usual, ..Pace::default() };
    let tokens = with_set(format!("{}/keys", issuer.url), Keeping { pace, ..issuer.keeping(&Hands::new()) }).await;
    tokens.jwk_sets[0].after_loads(3).await;
    assert!(tokens.jwk_sets[0].is_failing());
}

#[tokio::test]
async fn servers_that_can_not_be_trusted_or_do_not_answer_give_no_keys() {
    let signer = Signer::new(Kind::P256);
    let hands = Hands::new();
    let issuer = Issuer::start().await;
    issuer.serve("/keys", set(&[signer.named_jwk("k")]));

    // Its CA is not known.
    let tokens = with_set(format!("{}/keys", issuer.url), hands.keeping()).await;
    assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "Unavailable");
    assert_eq!(issuer.requests(), 0);

    // Nobody is there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let tokens = with_set(format!("https://{closed}/keys"), hands.keeping()).await;
    assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "Unavailable");

    // Somebody is there and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = Http::with_timeout(None, Duration::from_millis(100)).unwrap();
    let place = format!("https://{}/keys", silent.local_addr().unwrap());
    let tokens = with_set(place, Keeping::new(http, hands.clock())).await;
    assert_eq!(verdict(&tokens, &token(&signer, "k")).await, "Unavailable");
}

#[tokio::test]
async fn files_are_taken_over_when_they_are_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Signer::new(Kind::P256), Signer::new(Kind::Rsa));
    let path = folder.path().join("keys.json");
    let replace = |text: &str| {
        let other = folder.path().join("keys.json.new");
        fs::write(&other, text).unwrap();
        fs::rename(&other, &path).unwrap();
    };
    replace(&set(&[old.named_jwk("k")]));
    let hands = Hands::new();
    let tokens = with_set(format!("file://{}", path.display()), hands.keeping()).await;
    assert_eq!(verdict(&tokens, &token(&old, "k")).await, "good");
    let before = tokens.generation();

    replace(&set(&[new.named_jwk("k")]));
    tokens.jwk_sets[0].after_loads(2).await;
    assert_eq!(verdict(&tokens, &token(&new, "k")).await, "good");
    assert_eq!(verdict(&tokens, &token(&old, "k")).await, "Algorithm");
    assert_eq!(tokens.generation(), before + 1);

    replace(&" ".repeat((1 << 20) + 1));
    tokens.jwk_sets[0].after_loads(3).await;
    assert_eq!(verdict(&tokens, &token(&new, "k")).await, "good");
    hands.move_by(DAY + 1);
    assert_eq!(verdict(&tokens, &token(&new, "k")).await, "Unavailable");

    replace(&set(&[old.named_jwk("k")]));
    tokens.jwk_sets[0].after_loads(4).await;
    assert_eq!(verdict(&tokens, &token(&old, "k")).await, "good");
}

#[tokio::test]
async fn an_administrators_key_is_taken_over_when_it_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Signer::new(Kind::Ed25519), Signer::new(Kind::P384));
    let path = folder.path().join("public.pem");
    fs::write(&path, old.pem()).unwrap();
    let provider = IdentityProvider { issuer: None, audience: None, source: KeySource::Pem(path.clone()) };
    let tokens = AdminTokens::with(vec![provider], &Hands::new().keeping()).await.unwrap();
    assert!(tokens.verify(&token(&old, "any")).await.is_ok());

    let other = folder.path().join("new.pem");
    fs::write(&other, format!("{}{}", old.pem(), new.pem())).unwrap();
    fs::rename(&other, &path).unwrap();
    tokens.providers[0].keys.after_loads(2).await;

    assert!(tokens.verify(&token(&old, "any")).await.is_ok());
    assert!(tokens.verify(&token(&new, "any")).await.is_ok());
}

#[tokio::test]
async fn an_administrators_key_may_be_at_an_address() {
    let (old, new) = (Signer::new(Kind::Ed25519), Signer::new(Kind::P384));
    let (issuer, hands) = (Issuer::start().await, Hands::new());
    issuer.serve("/public.pem", old.pem());
    let source = KeySource::PemUrl(format!("{}/public.pem", issuer.url));
    let provider = IdentityProvider { issuer: None, audience: None, source };
    let tokens = AdminTokens::with(vec![provider], &issuer.keeping(&hands)).await.unwrap();
    let verdict = async |signer: &Signer| match tokens.verify(&token(signer, "any")).await {
        Ok(_) => "good".to_owned(),
        Err(Error::Issuers(e)) => format!("{e:?}"),
        Err(e) => panic!("{e:?}"),
    };
    assert_eq!(verdict(&old).await, "good");
    assert_eq!(verdict(&new).await, "UnknownKey");

    // What is no PEM of public keys, or too large, changes nothing, and nothing else is asked for in its place.
    issuer.serve("/public.pem/.well-known/openid-configuration", json!({ "jwks_uri": issuer.url }).to_string());
    for bad in [set(&[new.jwk()]), new.pair.serialize_pem(), String::new(), new.pem().repeat(10_000)] {
        let before = issuer.requests();
        issuer.serve("/public.pem", bad);
        hands.move_by(30);
        assert_eq!(verdict(&new).await, "Unavailable");
        assert_eq!(verdict(&old).await, "good");
        assert_eq!(issuer.requests(), before + 1);
    }

    issuer.serve("/public.pem", new.pem());
    hands.move_by(30);
    assert_eq!(verdict(&new).await, "good");
    hands.move_by(30);
    assert_eq!(verdict(&old).await, "UnknownKey");
}
