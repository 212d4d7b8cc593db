//! Evidence of several parts, and in other forms than a guest's.

use super::*;

#[tokio::test]
async fn devices_are_parts_of_their_own() {
    let bench = Bench::new().await;
    bench.register(good_values());
    let composite = attestation_with(&["sampledevice", "sample"]);
    // The second "sample" is bound like a device, and counts on from the first.
    let claims = bench.claims(&composite).await;
    assert_eq!(members(&claims["submods"]), ["cpu0", "cpu1", "gpu0"]);
    let gpu = &claims["submods"]["gpu0"];
    assert_eq!(gpu["ear.status"], "contraindicated");
    let evidence = &gpu["ear.veraison.annotated-evidence"];
    assert_eq!(members(evidence), ["report_data", "runtime_data_claims", "sampledevice"]);
    assert_eq!(members(&evidence["runtime_data_claims"]), ["nonce", "tee-pubkey"]);
    assert_eq!(claims["submods"]["cpu0"]["ear.status"], "affirming");

    let appraisal = bench.service.appraise(Tee::Sample, &composite, "default").await.unwrap();
    assert_eq!(appraisal.status, Tier::Contraindicated);
    let differences = bench.service.differences(&claims);
    let svn = differences.iter().find(|it| it.reference_value.as_deref() == Some("device_svn")).unwrap();
    assert_eq!(svn.claim, "/submods/gpu0/ear.veraison.annotated-evidence/sampledevice/svn");

    bench.register(json!({ "device_svn": ["1"] }));
    let claims = bench.claims(&composite).await;
    assert_eq!(claims["submods"]["gpu0"]["ear.trustworthiness-vector"]["hardware"], 2);
    assert_eq!(claims["submods"]["gpu0"]["ear.status"], "warning");
}

#[tokio::test]
async fn devices_that_are_altered_replayed_or_unknown_are_refused() {
    let bench = Bench::new().await;
    let mismatch = |error: Error| matches!(error, Error::Evidence(verifier::Error::Mismatch { .. }));

    // Without the space that was signed: the text counts, not what it means.
    let mut respaced = attestation_with(&["sampledevice"]);
    respaced.tee_evidence.additional_evidence.remove(0);
    assert!(mismatch(bench.refusal(&respaced, "default").await));

    let mut left_out = attestation_with(&["sampledevice"]);
    left_out.tee_evidence.additional_evidence.clear();
    assert!(mismatch(bench.refusal(&left_out, "default").await));

    // A device's evidence of another session, which the guest itself vouches for.
    let mut replayed = attestation_with(&["sampledevice"]);
    let other = STANDARD.encode([7; 48]);
    replayed.tee_evidence.additional_evidence =
        json!({ "sampledevice": { "svn": "1", "report_data": other } }).to_string();
    let bound =
        replayed.runtime_data.report_data(&replayed.tee_evidence.additional_evidence, rcar::HashAlgorithm::Sha384);
    replayed.tee_evidence.primary_evidence["report_data"] = Value::from(STANDARD.encode(bound.unwrap()));
    assert!(mismatch(bench.refusal(&replayed, "default").await));

    let many: Map<String, Value> = (0..17).map(|i| (format!("device{i}"), Value::Null)).collect();
    for (additional, reason) in [
        ("[]".to_owned(), "not a JSON object"),
        ("{".to_owned(), "not a JSON object"),
        ("{\"toaster\": {}}".to_owned(), "toaster"),
        (Value::Object(many).to_string(), "17"),
    ] {
        let mut sent = attestation();
        sent.tee_evidence.additional_evidence = additional;
        let refused = bench.refusal(&sent, "default").await;
        assert!(refused.kind() == Kind::BadRequest && refused.to_string().contains(reason), "{refused}");
    }
    let hardware = bench.refusal(&attestation_with(&["nvidia"]), "default").await;
    assert!(matches!(hardware, Error::Evidence(verifier::Error::Unknown(Tee::Nvidia))), "{hardware}");
}

#[tokio::test]
async fn a_terse_token_leaves_the_devices_evidence_out() {
    let store = Store::memory().await.unwrap();
    let bench = Bench::with(&store, Settings { verbose: false, ..Settings::default() }).await;
    let claims = bench.claims(&attestation_with(&["sampledevice"])).await;
    let evidence = &claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"];
    assert_eq!(members(&evidence["runtime_data_claims"]), ["nonce", "tee-pubkey"]);
}

#[tokio::test]
async fn runtime_data_and_initdata_may_be_raw() {
    let bench = Bench::new().await;
    for (hash, bound) in [
        (HashAlgorithm::Sha256, HashAlgorithm::Sha256.digest(b"raw")),
        (HashAlgorithm::Sha512, HashAlgorithm::Sha512.digest(b"raw")),
        (HashAlgorithm::Sm3, HashAlgorithm::Sm3.digest(b"raw")),
    ] {
        let part = Part {
            tee: Tee::Sample,
            evidence: json!({ "svn": "1", "report_data": STANDARD.encode(bound) }),
            runtime_data: RuntimeData::Raw(b"raw".to_vec()),
            hash,
            init_data: InitDataInput::Digest(vec![7; 32]),
        };
        let policy_id = "default".to_owned();
        let appraisal = bench
            .service
            .evaluate(Evaluation { parts: vec![part.clone()], policy_id: policy_id.clone() })
            .await
            .unwrap();
        let claims = bench.service.verify(&appraisal.token).unwrap();
        let evidence = &claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"];
        assert_eq!(evidence["runtime_data_claims"], Value::Null);
        assert_eq!(evidence["init_data_claims"], Value::Null);
        assert_eq!(evidence["init_data"], STANDARD.encode([7; 32]));
        assert_eq!(appraisal.init_data, Some(STANDARD.encode([7; 32])));

        let unbound = Part { runtime_data: RuntimeData::None, init_data: InitDataInput::None, ..part.clone() };
        bench.service.evaluate(Evaluation { parts: vec![unbound], policy_id: policy_id.clone() }).await.unwrap();
        let other = Part { runtime_data: RuntimeData::Raw(b"other".to_vec()), ..part };
        assert!(bench.service.evaluate(Evaluation { parts: vec![other], policy_id }).await.is_err());
    }
    let nothing = Evaluation { parts: Vec::new(), policy_id: "default".to_owned() };
    assert!(matches!(bench.service.evaluate(nothing).await, Err(Error::NoEvidence)));
}
