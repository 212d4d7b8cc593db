//! Administrators: who may, what they set, and what is refused.

use super::*;

#[tokio::test]
async fn administration_needs_a_token_and_is_put_on_record() {
    let bench = Bench::new().await;
    let post =
        async |headers: &[(&str, &str)]| bench.send("POST", "/kbs/v0/resource/a/b/c", headers, "x").await.refusal().0;
    assert_eq!(post(&[]).await, 401);
    let guest_role = bench.token(&json!({ "exp": START + 9, "role": "guest" }));
    assert_eq!(post(&[("authorization", guest_role.as_str())]).await, 403);
    assert_eq!(bench.audit().len(), 1);
    assert_eq!(bench.audit()[0]["event"], "administration-refused");

    let values = STANDARD.encode("{\"svn\": [\"1\"]}");
    let message = json!({ "version": "0.1.0", "type": "sample", "payload": values }).to_string();
    let attestation_policy =
        json!({ "type": "rego", "policy_id": "default_cpu", "policy": URL_SAFE_NO_PAD.encode("package policy") });
    for (method, path, body, status) in [
        ("POST", "reference-value", message, 200),
        ("GET", "reference-value/svn", String::new(), 200),
        ("GET", "reference-value/other", String::new(), 404),
        ("GET", "reference-value", String::new(), 200),
        ("DELETE", "reference-value/svn", String::new(), 200),
        ("DELETE", "reference-value/svn", String::new(), 404),
        ("POST", "attestation-policy", attestation_policy.to_string(), 200),
        ("POST", "attestation-policy", json!({ "policy": "cA" }).to_string(), 400),
        ("POST", "resource-policy", json!({ "policy": URL_SAFE_NO_PAD.encode("package x") }).to_string(), 400),
        ("POST", "resource-policy", json!({ "policy": "*" }).to_string(), 400),
        ("GET", "resource-policy", String::new(), 200),
        ("POST", "resource/a/b/c", "x".to_owned(), 200),
        ("DELETE", "resource/a/b/c", String::new(), 200),
        ("DELETE", "resource/a/b/c", String::new(), 404),
        ("POST", "resource/a/b", "x".to_owned(), 400),
        ("PUT", "resource/a/b/c", "x".to_owned(), 200),
        ("PATCH", "resource/a/b/c", "x".to_owned(), 405),
    ] {
        let answer = bench.administer(method, path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
    }
    let acts: Vec<_> = bench.audit().into_iter().skip(1).filter(|line| line["event"] == "administration").collect();
    assert_eq!(acts.len(), 9);
    assert!(acts.iter().all(|line| line["subject"] == "kim"));
    let failed = bench.audit().into_iter().filter(|line| line["event"] == "administration-failed").count();
    assert_eq!(failed, 3);
}

#[tokio::test]
async fn what_was_changed_meanwhile_is_not_overwritten() {
    let bench = Bench::new().await;
    for (path, first, second) in [
        ("resource/a/b/c", "one".to_owned(), "two".to_owned()),
        ("resource-policy/resource-policy", policy("allow := true"), policy("allow := false")),
        ("attestation-policy/default_cpu", policy("trust_claims := {}"), policy("extensions := []")),
    ] {
        let set = bench.administer("POST", path, first).await;
        assert_eq!(set.status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&set.body));
        let etag = set.etag.unwrap();
        let change = async |header: (&str, &str), method: &str| {
            bench.administer_as("admin", method, path, &[header], second.clone()).await.status.as_u16()
        };
        assert_eq!(change(("if-match", "\"dead\""), "POST").await, 412, "{path}");
        assert_eq!(change(("if-none-match", "*"), "POST").await, 412, "{path}");
        assert_eq!(change(("if-match", "*"), "POST").await, 400, "{path}");
        assert_eq!(change(("if-match", etag.as_str()), "POST").await, 200, "{path}");
        assert_eq!(change(("if-match", etag.as_str()), "POST").await, 412, "{path}");
        assert_eq!(change(("if-match", etag.as_str()), "DELETE").await, 412, "{path}");
    }
    let (_, values) = (0, STANDARD.encode("{\"svn\": 1}"));
    let message = json!({ "type": "sample", "payload": values }).to_string();
    let etag = bench.administer("GET", "reference-value", "").await.etag.unwrap();
    let register = async |header: (&str, &str)| {
        bench.administer_as("admin", "POST", "reference-value", &[header], message.clone()).await.status.as_u16()
    };
    assert_eq!(register(("if-match", etag.as_str())).await, 200);
    assert_eq!(register(("if-match", etag.as_str())).await, 412);
    assert_eq!(register(("if-none-match", "*")).await, 412);
}

#[tokio::test]
async fn an_etag_is_had_without_the_secret() {
    let bench = Bench::new().await;
    let set = bench.administer("POST", "resource/a/b/c", "a secret").await;
    let head = bench.administer("HEAD", "resource/a/b/c", "").await;
    assert_eq!((head.status, head.etag), (StatusCode::OK, set.etag));
    assert!(head.body.is_empty());
    assert_eq!(bench.administer("HEAD", "resource/a/b/d", "").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn policies_are_listed_read_and_rolled_back() {
    let bench = Bench::new().await;
    for (path, id) in [("resource-policy", "resource-policy"), ("attestation-policy", "default_cpu")] {
        let one = format!("{path}/{id}");
        let shipped = bench.administer("GET", &one, "").await;
        let ids = bench.administer("GET", path, "").await.json();
        assert!(ids.as_array().unwrap().contains(&json!(id)), "{ids}");
        let first = bench.administer("POST", &one, policy("allow := true")).await.etag.unwrap();
        bench.administer("POST", &one, policy("allow := false")).await;
        assert_eq!(bench.administer("GET", &one, "").await.body, "package policy\nallow := false");

        let version = first.trim_matches('"');
        let old = bench.administer("GET", &format!("{one}?version={version}"), "").await;
        assert_eq!(old.body, "package policy\nallow := true");
        let back = bench.administer("POST", &format!("{one}?rollback={version}"), "").await;
        assert_eq!(back.status, StatusCode::OK);
        assert_eq!(bench.administer("GET", &one, "").await.body, "package policy\nallow := true");
        let history = bench.administer("GET", &format!("{one}?history"), "").await.json();
        // The shipped attestation policies are in no store until they are changed.
        assert!(history.as_array().unwrap().len() >= 3, "{history}");
        for bad in ["?version=ffff", "?version=x", "?rollback=ffff"] {
            let method = if bad.starts_with("?r") { "POST" } else { "GET" };
            assert_eq!(bench.administer(method, &format!("{one}{bad}"), "").await.refusal().0, 404, "{bad}");
        }

        assert_eq!(bench.administer("DELETE", &one, "").await.status, StatusCode::OK);
        assert_eq!(bench.administer("GET", &one, "").await.body, shipped.body);
        assert_eq!(bench.administer("GET", &format!("{path}/other"), "").await.refusal().0, 404);
    }
}

#[tokio::test]
async fn a_role_does_what_its_rule_allows() {
    let bench = Bench::new().await;
    bench.administer("POST", "resource/a/b/c", "x").await;
    let reader = async |method: &str, path: &str| bench.administer_as("reader", method, path, &[], "").await;
    assert_eq!(reader("GET", "resource").await.json(), json!(["a/b/c"]));
    assert_eq!(reader("GET", "resource?repository=b").await.json(), json!([]));
    let (status, variant, detail) = reader("DELETE", "resource/a/b/c").await.refusal();
    assert_eq!((status, variant.as_str()), (403, "AdminAuthAccess"));
    assert!(detail.contains("Role reader not allowed"), "{detail}");
    assert_eq!(reader("GET", "audit").await.status, StatusCode::OK);
}

#[tokio::test]
async fn algorithms_of_tokens_can_t_be_confused() {
    let bench = Bench::new().await;
    let claims = json!({ "exp": START + 9, "role": "admin" });
    let none =
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = EncodingKey::from_secret(bench.owner.public.as_bytes());
    let hmac = encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    for forged in [none, hmac, "a.b.c".to_owned()] {
        let bearer = format!("Bearer {forged}");
        let answer = bench.send("GET", "/kbs/v0/resource", &[("authorization", &bearer)], "").await;
        let (status, _, detail) = answer.refusal();
        assert_eq!(status, 401);
        assert!(detail.contains("Cannot verify token with any of the issuers"), "{detail}");
    }
    let expired = bench.token(&json!({ "exp": START, "role": "admin" }));
    assert_eq!(bench.send("GET", "/kbs/v0/resource", &[("authorization", &expired)], "").await.refusal().0, 401);
}

#[tokio::test]
async fn a_backup_holds_the_secrets_sealed() {
    let bench = Bench::new().await;
    bench.administer("POST", "resource/a/b/c", "a secret of some length").await;
    let backup = bench.administer("GET", "backup", "").await;
    assert_eq!(backup.status, StatusCode::OK, "{}", String::from_utf8_lossy(&backup.body));
    assert!(!backup.body.windows(8).any(|window| window == b"a secret"));
    assert_eq!(bench.administer_as("blue", "GET", "backup", &[], "").await.refusal().0, 403);
}

#[tokio::test]
async fn what_others_verify_tokens_with_is_published() {
    let bench = Bench::new().await;
    let jwks = bench.send("GET", "/.well-known/jwks.json", &[], "").await.json();
    assert_eq!(jwks["keys"][0]["alg"], "ES256");
    let discovery = bench.send("GET", "/.well-known/openid-configuration", &[("host", "kbs.example")], "").await.json();
    assert_eq!(discovery["jwks_uri"], "https://kbs.example/.well-known/jwks.json");
    // As it comes over HTTP/2.
    let absolute = bench.send("GET", "https://kbs.example:8080/.well-known/openid-configuration", &[], "").await.json();
    assert_eq!(absolute["issuer"], "https://kbs.example:8080");
}

#[tokio::test]
async fn what_happens_is_counted() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    bench.administer("POST", "resource/a/b/c", "x").await;
    let (guest, _) = Guest::attested(&bench).await;
    guest.get(&bench, "a/b/c").await;
    let metrics = bench.send("GET", "/metrics", &[], "").await.body;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in [
        "kbs_auth_requests_total 1",
        "kbs_attestation_successes_total{tee_type=\"sample\"} 1",
        "kbs_resource_reads_total 1",
        "kbs_resource_writes_total 1",
        "kbs_policy_approvals_total 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn what_is_not_there_or_too_large_is_refused_by_its_status() {
    let bench = Bench::new().await;
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/kbs/v0", 404),
        ("GET", "/kbs/v1/auth", 404),
        ("GET", "/kbs/v0/auth", 405),
        ("GET", "/kbs/v0/nebula-ca/credential", 404),
        ("POST", "/healthz", 405),
        ("GET", "/kbs/v0/auth/more", 404),
    ] {
        assert_eq!(bench.send(method, path, &[], "").await.refusal().0, status, "{method} {path}");
    }
    let large = vec![b' '; (2 << 20) + 1];
    assert_eq!(bench.send("POST", "/kbs/v0/auth", &[], large).await.refusal().0, 413);
    let announced = bench.send("POST", "/kbs/v0/auth", &[("content-length", "99999999")], "").await;
    assert_eq!(announced.refusal().0, 413);
}

#[tokio::test]
async fn without_its_store_a_broker_says_so() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    let (guest, _) = Guest::attested(&bench).await;
    assert_eq!(bench.send("GET", "/readyz", &[], "").await.status, StatusCode::OK);
    bench.store.close().await;
    assert_eq!(bench.send("GET", "/readyz", &[], "").await.refusal().0, 503);
    assert_eq!(bench.send("GET", "/healthz", &[], "").await.status, StatusCode::OK);
    assert_eq!(guest.get(&bench, "a/b/c").await.refusal().0, 503);
    assert_eq!(bench.administer("POST", "resource/a/b/c", "x").await.refusal().0, 503);
}
