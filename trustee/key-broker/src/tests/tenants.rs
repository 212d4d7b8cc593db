//! Tenants: each reaches what is its own, and learns nothing about the others.

use super::*;

#[tokio::test]
async fn a_tenant_reaches_its_own_and_nothing_else() {
    let bench = Bench::new().await;
    let as_blue =
        async |method: &str, path: &str, body: String| bench.administer_as("blue", method, path, &[], body).await;
    let message = |name: &str| {
        json!({ "type": "sample", "payload": STANDARD.encode(json!({ name: 1 }).to_string()) }).to_string()
    };
    let attestation_policy =
        |id: &str| json!({ "policy_id": id, "policy": URL_SAFE_NO_PAD.encode("package policy") }).to_string();
    bench.administer("POST", "resource/red/b/c", "of red").await;
    bench.administer("POST", "resource/free/b/c", "of nobody").await;
    bench.administer("POST", "reference-value", message("red/svn")).await;
    for (method, path, body, status) in [
        ("POST", "resource/blue/b/c", "x".to_owned(), 200),
        ("POST", "resource/red/b/c", "x".to_owned(), 403),
        ("HEAD", "resource/red/b/c", String::new(), 403),
        ("DELETE", "resource/free/b/c", String::new(), 403),
        ("POST", "resource-policy", policy("allow := true"), 200),
        ("GET", "resource-policy/blue", String::new(), 200),
        ("GET", "resource-policy/resource-policy", String::new(), 403),
        ("POST", "resource-policy/red", policy("allow := true"), 403),
        ("POST", "attestation-policy", attestation_policy("blue_cpu"), 200),
        ("POST", "attestation-policy", attestation_policy("default_cpu"), 403),
        ("GET", "attestation-policy/default_cpu", String::new(), 403),
        ("POST", "reference-value", message("blue/svn"), 200),
        ("POST", "reference-value", message("svn"), 403),
        ("GET", "reference-value/red/svn", String::new(), 403),
        ("DELETE", "reference-value/red/svn", String::new(), 403),
        ("GET", "audit", String::new(), 403),
    ] {
        let answer = as_blue(method, path, body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
    }
    for (path, expected) in [
        ("resource", json!(["blue/b/c"])),
        ("resource?repository=red", json!([])),
        ("resource-policy", json!(["blue"])),
        ("attestation-policy", json!(["blue_cpu"])),
    ] {
        assert_eq!(as_blue("GET", path, String::new()).await.json(), expected, "{path}");
    }
    let values = as_blue("GET", "reference-value", String::new()).await.json();
    assert_eq!(values.as_array().unwrap().len(), 1);
    assert_eq!(values[0]["name"], "blue/svn");
}

#[tokio::test]
async fn a_tenants_policy_alone_decides_about_its_resources() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow := true").await;
    bench.administer("POST", "resource/blue/b/c", "of blue").await;
    let (guest, _) = Guest::attested(&bench).await;
    let (status, _, detail) = guest.get(&bench, "blue/b/c").await.refusal();
    assert_eq!(status, 403);

    let explain = format!("explain/{}", reference(&detail));
    assert_eq!(bench.administer_as("red", "GET", &explain, &[], "").await.refusal().0, 404);
    assert_eq!(bench.administer_as("blue", "GET", &explain, &[], "").await.json()["resource"], "blue/b/c");

    let own = policy("allow if input.submods.cpu0[\"ear.appraisal-policy-id\"] == \"blue\"");
    bench.administer_as("blue", "POST", "resource-policy", &[], own).await;
    assert_eq!(guest.get(&bench, "blue/b/c").await.refusal().0, 403);
    let appraisal = json!({ "policy_id": "blue_cpu", "policy": URL_SAFE_NO_PAD.encode("package policy") });
    bench.administer_as("blue", "POST", "attestation-policy", &[], appraisal.to_string()).await;
    let selector = json!({ "attestation-policy-selector": "blue" });
    let guest = Guest::challenged_with(&bench, selector).await;
    let attested = guest.attest(&bench, &guest.attestation()).await;
    let guest = Guest { cookie: pair(&attested), ..guest };
    assert_eq!(guest.open(&guest.get(&bench, "blue/b/c").await), b"of blue");
}

/// A policy that affirms everything is its tenant's own affair.
#[tokio::test]
async fn what_one_tenant_affirms_opens_nothing_of_others() {
    let bench = Bench::new().await;
    bench.set_resource_policy("allow if input.submods.cpu0[\"ear.status\"] == \"affirming\"").await;
    bench.administer("POST", "resource/free/b/c", "of nobody").await;
    let lax = "package policy\ntrust_claims := {\"hardware\": 2, \"executables\": 3, \"configuration\": 2}";
    let lax = json!({ "policy_id": "blue_cpu", "policy": URL_SAFE_NO_PAD.encode(lax) }).to_string();
    assert_eq!(bench.administer_as("blue", "POST", "attestation-policy", &[], lax).await.status, StatusCode::OK);

    let guest = Guest::challenged_with(&bench, json!({ "attestation-policy-selector": "blue" })).await;
    let attested = guest.attest(&bench, &guest.attestation()).await;
    let token = attested.json()["token"].as_str().unwrap().to_owned();
    let claims = wire::token::unverified_claims(&token).unwrap();
    assert_eq!(claims["submods"]["cpu0"]["ear.status"], "affirming");
    let guest = Guest { cookie: pair(&attested), ..guest };
    for path in ["free/b/c", "red/b/c"] {
        assert_eq!(guest.get(&bench, path).await.refusal().0, 403, "{path}");
    }
    let refused = bench.audit().into_iter().rev().find(|line| line["event"] == "refusal").unwrap();
    assert!(refused["cause"].as_str().unwrap().contains("another tenant"), "{refused}");
}
