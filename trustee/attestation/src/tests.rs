//! The service as a key broker uses it: from evidence to token.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wire::rcar::{InitDataBody, RuntimeData, TeeEvidence};
use wire::reference_value::Message;

use super::*;

struct Bench {
    service: AttestationService,
    values: ReferenceValues,
    seconds: Arc<AtomicU64>,
}

impl Bench {
    async fn new(sample: bool) -> Self {
        let seconds = Arc::new(AtomicU64::new(1_000_000));
        let clock = Clock::set_by(seconds.clone());
        let store = Store::memory().await.unwrap();
        let values = ReferenceValues::load(store.clone(), clock.clone()).await.unwrap();
        let settings = Settings { enabled: Enabled { sample }, token_lifetime: Duration::from_secs(300) };
        let service = AttestationService::load(store, values.clone(), settings, clock).await.unwrap();
        Self { service, values, seconds }
    }

    async fn register(&self, values: Value) {
        let payload = STANDARD.encode(values.to_string());
        let message = Message { version: "0.1.0".to_owned(), kind: "sample".to_owned(), payload };
        self.values.register(&message).await.unwrap();
    }

    fn claims(&self, attestation: &Attestation) -> Value {
        let appraisal = self.service.appraise(Tee::Sample, attestation).unwrap();
        self.service.verify(&appraisal.token).unwrap()
    }
}

fn attestation() -> Attestation {
    let runtime_data =
        RuntimeData { nonce: "bm9uY2U=".to_owned(), tee_pubkey: json!({ "kty": "EC", "unknown member": 1 }) };
    let report_data = STANDARD.encode(runtime_data.report_data("", HashAlgorithm::Sha384).unwrap());
    let primary_evidence = json!({ "svn": "1", "report_data": report_data });
    let tee_evidence = TeeEvidence { primary_evidence, additional_evidence: String::new() };
    Attestation { init_data: None, runtime_data, tee_evidence }
}

fn good_values() -> Value {
    json!({ "launch_digest": ["abcde"], "svn": ["1"], "major_version": 1, "minimum_minor_version": 2 })
}

#[tokio::test]
async fn evidence_is_affirmed_once_its_reference_values_are_registered() {
    let bench = Bench::new(true).await;
    let claims = bench.claims(&attestation());
    let part = &claims["submods"]["cpu0"];
    assert_eq!(part["ear.status"], "contraindicated");
    assert_eq!(part["ear.trustworthiness-vector"]["executables"], 33);
    assert_eq!(part["ear.trustworthiness-vector"]["hardware"], 97);
    assert_eq!(part["ear.trustworthiness-vector"]["configuration"], 2);

    bench.register(good_values()).await;
    let claims = bench.claims(&attestation());
    let part = &claims["submods"]["cpu0"];
    assert_eq!(part["ear.status"], "affirming");
    assert_eq!(part["ear.trustworthiness-vector"]["executables"], 3);
    assert_eq!(part["ear.appraisal-policy-id"], "default");
    let evidence = &part["ear.veraison.annotated-evidence"];
    assert_eq!(evidence["sample"]["svn"], "1");
    assert_eq!(evidence["sample"].get("report_data"), None);
    assert_eq!(evidence["runtime_data_claims"]["tee-pubkey"]["unknown member"], 1);
    assert_eq!(evidence.get("init_data"), None);

    bench.seconds.fetch_add(300, Ordering::Relaxed);
    let appraisal = bench.service.appraise(Tee::Sample, &attestation()).unwrap();
    bench.seconds.fetch_add(300, Ordering::Relaxed);
    assert!(matches!(bench.service.verify(&appraisal.token), Err(token::Error::Expired)));
}

#[tokio::test]
async fn a_missing_minimum_affirms_nothing() {
    let bench = Bench::new(true).await;
    bench.register(json!({ "launch_digest": ["abcde"], "svn": ["1"], "major_version": 1 })).await;
    assert_eq!(bench.claims(&attestation())["submods"]["cpu0"]["ear.trustworthiness-vector"]["hardware"], 97);
}

#[tokio::test]
async fn initdata_and_its_containers_reach_the_token() {
    let bench = Bench::new(true).await;
    let body = r#"version = "0.1.0"
algorithm = "sha256"
[data]
"cdh.toml" = 'socket = "unix:///x"'
"policy.rego" = '''package agent_policy
policy_data := {"containers": [{"OCI": {
    "Annotations": {"io.kubernetes.cri.image-name": "bitnami/nginx:latest"}, "Process": {"User": {"UID": 1001}}}}]}
'''
"#;
    let init_data = Some(InitDataBody { format: "toml".to_owned(), body: body.to_owned() });
    let claims = bench.claims(&Attestation { init_data, ..attestation() });
    let part = &claims["submods"]["cpu0"];
    let evidence = &part["ear.veraison.annotated-evidence"];
    assert_eq!(evidence["init_data"], STANDARD.encode(HashAlgorithm::Sha256.digest(body.as_bytes())));
    assert_eq!(evidence["init_data_claims"]["cdh.toml"]["socket"], "unix:///x");
    assert_eq!(evidence["init_data_claims"].get("policy.rego"), None);
    assert_eq!(
        part["ear.trustee.identifiers"],
        json!({ "validated": { "container_images": ["bitnami/nginx:latest"], "container_uids": [1001] } })
    );
}

#[tokio::test]
async fn what_is_not_bound_to_the_session_is_refused() {
    let bench = Bench::new(true).await;
    let mut other_nonce = attestation();
    other_nonce.runtime_data.nonce = "b3RoZXI=".to_owned();
    let mut other_key = attestation();
    other_key.runtime_data.tee_pubkey = json!({ "kty": "EC" });
    for changed in [other_nonce, other_key] {
        let error = bench.service.appraise(Tee::Sample, &changed).err().unwrap();
        assert!(matches!(error, Error::Evidence(verifier::Error::Mismatch { claim: "report_data", .. })), "{error}");
    }

    let mut devices = attestation();
    devices.tee_evidence.additional_evidence = "{}".to_owned();
    assert!(matches!(bench.service.appraise(Tee::Sample, &devices), Err(Error::AdditionalEvidence)));
    let off = Bench::new(false).await;
    let refusal = off.service.appraise(Tee::Sample, &attestation()).err().unwrap().to_string();
    assert!(refusal.contains("sample_verifier = true"), "{refusal}");
}

#[tokio::test]
async fn a_policy_that_answers_nonsense_is_an_error_and_no_panic() {
    let bench = Bench::new(true).await;
    for (rules, expected) in [
        ("trust_claims := {\"hardwear\": 2}", "hardwear"),
        ("trust_claims := {\"hardware\": 258}", "no integer from -128 to 127"),
        ("trust_claims := 2", "must be an object"),
        ("extensions := [{\"name\": \"ear.status\", \"value\": \"affirming\"}]", "extensions"),
        ("trust_claims := {\"hardware\": query_reference_value(1)}", "takes the name"),
    ] {
        bench.service.set_policy("default_cpu", format!("package policy\n{rules}")).await.unwrap();
        let error = bench.service.appraise(Tee::Sample, &attestation()).err().unwrap().to_string();
        assert!(error.contains(expected), "{rules}: {error}");
    }

    bench.service.set_policy("default_cpu", "package policy".to_owned()).await.unwrap();
    assert_eq!(bench.claims(&attestation())["submods"]["cpu0"]["ear.status"], "none");
    assert!(matches!(bench.service.set_policy("default_cpu", "nonsense".to_owned()).await, Err(Error::Policy(_))));
    for id in ["", "a/b", "../x", &"x".repeat(65)] {
        let set = bench.service.set_policy(id, "package policy".to_owned()).await;
        assert!(matches!(set, Err(Error::PolicyId(_))), "{id}");
    }
}

#[tokio::test]
async fn differences_name_claims_values_and_reference_values() {
    let bench = Bench::new(true).await;
    bench.register(json!({ "launch_digest": ["other"], "svn": ["1"], "major_version": 1 })).await;
    let claims = bench.claims(&attestation());
    let differences = bench.service.differences(&claims);

    let found = |claim: &str| differences.iter().find(|difference| difference.claim.ends_with(claim)).unwrap();
    assert_eq!(found("ear.status").actual, "contraindicated");
    assert_eq!(found("ear.trustworthiness-vector/executables").actual, 33);
    assert_eq!(found("sample/launch_digest").actual, "abcde");
    assert_eq!(found("sample/launch_digest").expected, json!(["other"]));
    assert_eq!(found("sample/launch_digest").reference_value.as_deref(), Some("launch_digest"));
    assert_eq!(found("sample/platform_version/minor").expected, Value::Null);
    assert!(!differences.iter().any(|difference| difference.claim.ends_with("sample/svn")));

    bench.register(good_values()).await;
    assert_eq!(bench.service.differences(&bench.claims(&attestation())), []);
}
