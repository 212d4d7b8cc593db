//! Guests: handshake, secrets, refusals.

use super::*;

#[tokio::test]
async fn an_attested_guest_gets_its_secret_by_cookie_and_by_token() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow if data[\"resource-path\"] == [\"a\", \"b\", \"c\"]").await;
    assert_eq!(bench.administer("POST", "resource/a/b/c", "a secret").await.status, StatusCode::OK);
    let (guest, token) = Guest::attested(&bench).await;

    let answer = guest.get(&bench, "a/b/c").await;
    assert_eq!(guest.open(&answer), b"a secret");
    let bearer = format!("Bearer {token}");
    let answer = bench.send("GET", "//kbs/v0//resource/a/b/c", &[("authorization", &bearer)], "").await;
    assert_eq!(guest.open(&answer), b"a secret");
    let again = guest.attest(&bench, &guest.attestation()).await;
    assert_eq!(again.json()["token"], token.as_str());
    assert_eq!(pair(&again), guest.cookie);

    let events: Vec<_> = bench.audit().iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["administration", "administration", "attestation", "release", "release"]);
    assert_eq!(bench.audit()[2]["token"], bench.audit()[3]["token"]);
    assert!(!std::fs::read_to_string(bench.directory.path().join("audit.jsonl")).unwrap().contains("a secret"));
}

#[tokio::test]
async fn any_replica_serves_any_step() {
    let (first, sealed) = (Bench::new().await, b"a secret");
    first.set_resource_policy("allow := true").await;
    first.administer("POST", "resource/a/b/c", sealed.as_slice()).await;
    let second = first.replica(true).await;

    let guest = Guest::challenged(&first).await;
    let attested = guest.attest(&second, &guest.attestation()).await;
    let guest = Guest { cookie: pair(&attested), ..guest };
    assert_eq!(guest.open(&guest.get(&first, "a/b/c").await), sealed);
}

#[tokio::test]
async fn a_handshake_that_does_not_fit_is_refused() {
    let bench = Bench::new().await;
    let auth = async |body: Value| bench.send("POST", "/kbs/v0/auth", &[], body.to_string()).await.refusal();
    for (request, status, variant) in [
        (json!({ "version": "0.4.1", "tee": "sample" }), 400, "RcarAuthFailed"),
        (json!({ "version": "0.1.0", "tee": "sample" }), 400, "RcarAuthFailed"),
        (json!({ "version": "0.4.0", "tee": "abacus" }), 400, "RcarAuthFailed"),
        (json!({ "version": "0.4.0", "tee": "se" }), 403, "RcarAuthFailed"),
        (json!({}), 400, "RcarAuthFailed"),
        (json!([[[]]]), 400, "RcarAuthFailed"),
    ] {
        let (actual, kind, detail) = auth(request.clone()).await;
        assert_eq!((actual, kind.as_str()), (status, variant), "{request}: {detail}");
    }

    let guest = Guest::challenged(&bench).await;
    let good = guest.attestation();
    let mut other_nonce = good.clone();
    other_nonce.runtime_data.nonce = STANDARD.encode([0; 32]);
    assert_eq!(guest.attest(&bench, &other_nonce).await.refusal().0, 401);
    for bad_key in [json!({ "kty": "EC" }), json!(null), json!({ "kty": "oct", "k": "AAAA" })] {
        let mut attestation = good.clone();
        attestation.runtime_data.tee_pubkey = bad_key;
        assert_eq!(guest.attest(&bench, &attestation).await.refusal().0, 400);
    }
    let without = bench.send("POST", "/kbs/v0/attest", &[], serde_json::to_vec(&good).unwrap()).await;
    assert_eq!(without.refusal().0, 401);
    let deep = format!("{{\"runtime-data\":{}", "[".repeat(100_000));
    assert_eq!(bench.send("POST", "/kbs/v0/attest", &[("cookie", &guest.cookie)], deep).await.refusal().0, 400);

    bench.pass(300);
    let (status, _, detail) = guest.attest(&bench, &good).await.refusal();
    assert_eq!(status, 401);
    assert!(detail.contains("expired"), "{detail}");
}

#[tokio::test]
async fn wrong_evidence_is_explained_to_the_owner_only() {
    let bench = Bench::new().await;
    let guest = Guest::challenged(&bench).await;
    let mut attestation = guest.attestation();
    let expected = attestation.tee_evidence.primary_evidence["report_data"].clone();
    attestation.tee_evidence.primary_evidence["report_data"] = json!(STANDARD.encode([1; 48]));

    let (status, variant, detail) = guest.attest(&bench, &attestation).await.refusal();
    assert_eq!((status, variant.as_str()), (403, "RcarAttestFailed"));
    assert!(!detail.contains(expected.as_str().unwrap()), "{detail}");
    let explained = bench.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!(explained["stage"], "attestation");
    assert_eq!(explained["claims"][0]["claim"], "report_data");
    assert_eq!(explained["claims"][0]["expected"], expected);

    let off = bench.replica(false).await;
    let auth = json!({ "version": "0.4.0", "tee": "sample" }).to_string();
    let (status, _, detail) = off.send("POST", "/kbs/v0/auth", &[], auth).await.refusal();
    assert_eq!(status, 403);
    assert!(detail.contains("sample_verifier = true"), "{detail}");
    let guest = Guest::challenged(&bench).await;
    assert_eq!(guest.attest(&off, &guest.attestation()).await.refusal().0, 403);
}

#[tokio::test]
async fn a_refusal_by_policy_names_the_claims_that_differ() {
    let bench = Bench::new().await;
    bench.administer("POST", "resource/a/b/c", "a secret").await;
    let (guest, _) = Guest::attested(&bench).await;

    let (status, variant, detail) = guest.get(&bench, "a/b/c").await.refusal();
    assert_eq!((status, variant.as_str()), (403, "PolicyDeny"));
    let explained = bench.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!((&explained["stage"], &explained["resource"]), (&json!("resource policy"), &json!("a/b/c")));
    let claims = explained["claims"].as_array().unwrap();
    assert!(claims.iter().any(|claim| claim["reference_value"] == "launch_digest" && claim["actual"] == "abcde"));

    bench
        .set_resource_policy(
            "allow := false\nexpected := [{\"claim\": \"/submods/cpu0/ear.status\", \"values\": [\"affirming\"]}]",
        )
        .await;
    let (_, _, detail) = guest.get(&bench, "a/b/c").await.refusal();
    assert!(!detail.contains("affirming"), "{detail}");
    let explained = bench.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!(
        explained["claims"],
        json!([{ "claim": "/submods/cpu0/ear.status", "actual": "contraindicated", "expected": ["affirming"] }])
    );

    bench
        .set_resource_policy(
            "allow if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a + b == 0 }",
        )
        .await;
    assert_eq!(guest.get(&bench, "a/b/c").await.refusal().0, 403);
    assert!(!bench.audit().iter().any(|line| line["event"] == "release"));
    assert_eq!(bench.administer("GET", "explain/0000", "").await.refusal().0, 404);
}

#[tokio::test]
async fn resources_need_a_fresh_token_and_a_plain_name() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    let (guest, token) = Guest::attested(&bench).await;

    for (path, status) in
        [("a/b/c", 404), ("a/b", 400), ("a/b/c/d", 400), ("a/b/..", 400), ("../b/c", 400), ("a/b/%2e", 400)]
    {
        assert_eq!(guest.get(&bench, path).await.refusal().0, status, "{path}");
    }
    let challenged = Guest::challenged(&bench).await;
    assert_eq!(challenged.get(&bench, "a/b/c").await.refusal().0, 401);
    assert_eq!(bench.send("GET", "/kbs/v0/resource/a/b/c", &[], "").await.refusal().0, 401);
    let [header, payload, _]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let none = URL_SAFE_NO_PAD.encode("{\"alg\":\"none\"}");
    for forged in [format!("{none}.{payload}."), format!("{header}.{payload}.AAAA"), "x".to_owned()] {
        let bearer = format!("Bearer {forged}");
        let answer = bench.send("GET", "/kbs/v0/resource/a/b/c", &[("authorization", &bearer)], "").await;
        assert_eq!(answer.refusal().0, 401);
    }

    bench.administer("POST", "resource/a/b/c", "a secret").await;
    assert_eq!(guest.get(&bench, "a/b/c").await.status, StatusCode::OK);
    bench.pass(300);
    assert_eq!(guest.get(&bench, "a/b/c").await.refusal().0, 401);
}

#[tokio::test]
async fn an_attestation_that_is_sent_again_is_marked() {
    let bench = Bench::new().await;
    let guest = Guest::challenged(&bench).await;
    for _ in 0..2 {
        assert_eq!(guest.attest(&bench, &guest.attestation()).await.status, StatusCode::OK);
    }
    let lines = bench.audit();
    assert_eq!((lines[0].get("replayed"), &lines[1]["replayed"]), (None, &json!(true)));
    assert_eq!(lines[0]["session"], lines[1]["session"]);
}

#[tokio::test]
async fn a_guest_selects_the_policy_that_it_is_appraised_under() {
    let bench = Bench::new().await;
    let tight = json!({ "policy_id": "tight_cpu", "policy": URL_SAFE_NO_PAD.encode("package policy") });
    bench.administer("POST", "attestation-policy", tight.to_string()).await;
    let select = |selector: Value| json!({ "attestation-policy-selector": selector });
    let guest = Guest::challenged_with(&bench, select(json!("strict"))).await;
    let answer = guest.attest(&bench, &guest.attestation()).await;
    let token = answer.json()["token"].as_str().unwrap().to_owned();
    let claims = wire::token::unverified_claims(&token).unwrap();
    assert_eq!(claims["submods"]["cpu0"]["ear.appraisal-policy-id"], "tight");
    assert_eq!(bench.audit().last().unwrap()["policy"], "tight");

    for selector in [json!("other"), json!(7)] {
        let request = json!({ "version": "0.4.0", "tee": "sample", "extra-params": select(selector) });
        let (status, variant, _) = bench.send("POST", "/kbs/v0/auth", &[], request.to_string()).await.refusal();
        assert_eq!((status, variant.as_str()), (400, "RcarAuthFailed"));
    }
}

#[tokio::test]
async fn any_replica_explains_a_refusal() {
    let first = Bench::new().await;
    let second = first.replica(true).await;
    let (guest, _) = Guest::attested(&first).await;
    let (_, _, detail) = guest.get(&first, "a/b/c").await.refusal();
    let explained = second.administer("GET", &format!("explain/{}", reference(&detail)), "").await.json();
    assert_eq!(explained["stage"], "resource policy");
    first.pass(25 * 60 * 60);
    guest.get(&first, "a/b/c").await;
}

#[tokio::test]
async fn a_token_too_long_for_a_cookie_serves_at_any_replica_until_it_ends() {
    let first = Bench::new().await;
    first.set_resource_policy("allow := true").await;
    first.administer("POST", "resource/a/b/c", "a secret").await;
    let second = first.replica(true).await;
    let guest = Guest::challenged(&first).await;
    let filler = "x".repeat(6_000);
    let body = format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\nfiller = \"{filler}\"\n");
    let mut attestation = serde_json::to_value(guest.attestation()).unwrap();
    attestation["init-data"] = json!({ "format": "toml", "body": body });
    let attestation: Attestation = serde_json::from_value(attestation).unwrap();

    let attested = guest.attest(&first, &attestation).await;
    let token = attested.json()["token"].as_str().unwrap().to_owned();
    assert!(token.len() > 2_900 && pair(&attested).len() < 3_000);
    let guest = Guest { cookie: pair(&attested), ..guest };
    assert_eq!(guest.open(&guest.get(&second, "a/b/c").await), b"a secret");
    first.pass(301);
    assert_eq!(guest.get(&second, "a/b/c").await.refusal().0, 401);
}

#[tokio::test]
async fn a_cookie_of_a_retired_key_opens_no_session() {
    let bench = Bench::new().await;
    let guest = Guest::challenged(&bench).await;
    bench.pass(15 * 24 * 60 * 60);
    let (status, variant, detail) = guest.attest(&bench, &guest.attestation()).await.refusal();
    assert_eq!((status, variant.as_str()), (401, "RcarAttestFailed"));
    assert!(detail.contains("POST /kbs/v0/auth"), "{detail}");
}

/// Whatever is sent, the answer says what is wrong, and the next guest is served.
#[tokio::test]
async fn malformed_messages_are_refused_and_nothing_else_suffers() {
    let bench = Bench::new().await;
    let guest = Guest::challenged(&bench).await;
    let deep = "[".repeat(500);
    let bodies: [&[u8]; 6] = [b"", b"{", b"\xff\xfe", b"{\"version\": 7}", b"null", deep.as_bytes()];
    for body in bodies {
        let auth = bench.send("POST", "/kbs/v0/auth", &[], body.to_vec()).await.refusal();
        assert_eq!((auth.0, auth.1.as_str()), (400, "RcarAuthFailed"), "{body:?}");
        let attest = bench.send("POST", "/kbs/v0/attest", &[("cookie", &guest.cookie)], body.to_vec()).await.refusal();
        assert_eq!((attest.0, attest.1.as_str()), (400, "RcarAttestFailed"), "{body:?}");
        let policy = bench.administer("POST", "resource-policy", body.to_vec()).await.refusal();
        assert_eq!(policy.0, 400, "{body:?}");
        let values = bench.administer("POST", "reference-value", body.to_vec()).await.refusal();
        assert_eq!(values.0, 400, "{body:?}");
    }
    for policy_text in ["import data.other\nallow := true", "allow if allow", "f(x) := f(x)\nallow if f(1)"] {
        let set = bench.administer("POST", "resource-policy", policy(policy_text)).await.refusal();
        assert_eq!((set.0, set.1.as_str()), (400, "ParsePolicyError"), "{policy_text}");
    }
    assert_eq!(guest.attest(&bench, &guest.attestation()).await.status, StatusCode::OK);
}

/// Guests of Intel Trust Authority are told the hash that it expects of their TEE, and others are sent away.
#[tokio::test]
async fn the_hash_algorithm_is_the_one_that_the_service_expects() {
    let settings = attestation_api::IntelSettings {
        base_url: "https://ita.example".to_owned(),
        api_key: zeroize::Zeroizing::new("key".to_owned()),
        policy_ids: Vec::new(),
        allow_unmatched_policy: false,
    };
    let service = attestation_api::IntelTrustAuthority::new(settings).unwrap();
    let bench = Bench::by(Service::Intel(service)).await;
    let auth = async |tee: &str, offered: Value| {
        let request =
            json!({ "version": "0.4.0", "tee": tee, "extra-params": { "supported-hash-algorithms": offered } });
        bench.send("POST", "/kbs/v0/auth", &[], request.to_string()).await
    };
    for (tee, expected) in [("tdx", "sha512"), ("sgx", "sha256"), ("az-tdx-vtpm", "sha256")] {
        let challenge = auth(tee, json!(["sha256", "sha384", "sha512"])).await.json();
        assert_eq!(challenge["extra-params"]["selected-hash-algorithm"], expected, "{tee}");
        assert_eq!(auth(tee, json!(["sha384"])).await.refusal().0, 400, "{tee}");
    }
    assert_eq!(auth("snp", json!(["sha384"])).await.refusal().0, 403);
}

#[tokio::test]
async fn every_kind_of_key_gets_its_secret() {
    use wire::jwe::KeyAlgorithm;
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    bench.administer("POST", "resource/a/b/c", "a secret").await;
    let fetch = async |jwk: Value| {
        let guest = Guest::challenged(&bench).await;
        let runtime_data = RuntimeData { nonce: guest.nonce.clone(), tee_pubkey: jwk };
        let report_data = STANDARD.encode(runtime_data.report_data("", HashAlgorithm::Sha384).unwrap());
        let mut attestation = guest.attestation();
        attestation.runtime_data = runtime_data;
        attestation.tee_evidence.primary_evidence["report_data"] = json!(report_data);
        let attested = guest.attest(&bench, &attestation).await;
        assert_eq!(attested.status, StatusCode::OK, "{}", String::from_utf8_lossy(&attested.body));
        let guest = Guest { cookie: pair(&attested), ..guest };
        serde_json::from_slice::<Jwe>(&guest.get(&bench, "a/b/c").await.body).unwrap()
    };
    for algorithm in KeyAlgorithm::ALL {
        let key = TeeKey::generate_for(algorithm).unwrap();
        let sealed = fetch(key.public_jwk().unwrap()).await;
        assert_eq!(key.open(&sealed).unwrap().as_slice(), b"a secret", "{algorithm:?}");
    }

    let mut jwk = TeeKey::generate_for(KeyAlgorithm::RsaOaep256).unwrap().public_jwk().unwrap();
    jwk["alg"] = json!("RSA1_5");
    let guest = Guest::challenged(&bench).await;
    let mut attestation = guest.attestation();
    attestation.runtime_data.tee_pubkey = jwk;
    assert_eq!(guest.attest(&bench, &attestation).await.refusal().0, 400, "RSA1_5 is off unless it is allowed");
}

/// A token is taken without a second verification only if it is, byte for byte, one that was signed here.
#[tokio::test]
async fn a_token_like_one_that_was_issued_is_verified() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    bench.administer("POST", "resource/a/b/c", "a secret").await;
    let (_, token) = Guest::attested(&bench).await;
    let signature = token.rfind('.').unwrap() + 1;
    let other = if token.as_bytes()[signature] == b'A' { 'B' } else { 'A' };
    let forged = format!("{}{other}{}", &token[..signature], &token[signature + 1..]);
    let fetch = async |token: &str| {
        let bearer = format!("Bearer {token}");
        bench.send("GET", "/kbs/v0/resource/a/b/c", &[("authorization", &bearer)], "").await.status.as_u16()
    };
    assert_eq!((fetch(&forged).await, fetch(&token).await), (401, 200));
    bench.pass(300);
    assert_eq!(fetch(&token).await, 401);
}
