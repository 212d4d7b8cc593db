//! The service as a key broker uses it: from evidence to token.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Map;
use tokio::time::timeout;
use wire::rcar::{self, InitDataBody, RuntimeData as RcarData, TeeEvidence};

use super::*;

mod composite;

/// Reference values that a test sets.
#[derive(Default)]
struct Values(RwLock<BTreeMap<String, Value>>);

impl Source for Values {
    fn query(&self, name: &str) -> Result<Option<Value>, reference_values::Error> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned())
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

struct Bench {
    service: Arc<AttestationService>,
    values: Arc<Values>,
    seconds: Arc<AtomicU64>,
}

impl Bench {
    async fn new() -> Self {
        Self::with(&Store::memory().await.unwrap(), Settings::default()).await
    }

    async fn with(store: &Store, settings: Settings) -> Self {
        let settings = Settings { enabled: Enabled { sample: true }, ..settings };
        Self::exactly(store, settings).await
    }

    async fn exactly(store: &Store, settings: Settings) -> Self {
        let seconds = Arc::new(AtomicU64::new(1_000_000));
        let (clock, values) = (Clock::set_by(seconds.clone()), Arc::new(Values::default()));
        let service = AttestationService::load(store.clone(), values.clone(), settings, clock).await.unwrap();
        Self { service, values, seconds }
    }

    fn register(&self, values: Value) {
        let Value::Object(values) = values else { panic!("reference values have names") };
        self.values.0.write().unwrap().extend(values);
    }

    async fn claims(&self, attestation: &Attestation) -> Value {
        let appraisal = self.service.appraise(Tee::Sample, attestation, "default").await.unwrap();
        self.service.verify(&appraisal.token).unwrap()
    }

    async fn refusal(&self, attestation: &Attestation, policy_id: &str) -> Error {
        self.service.appraise(Tee::Sample, attestation, policy_id).await.unwrap_err()
    }
}

/// Evidence as a guest makes it, with the evidence of its devices.
fn attestation_with(devices: &[&str]) -> Attestation {
    let runtime_data =
        RcarData { nonce: "bm9uY2U=".to_owned(), tee_pubkey: json!({ "kty": "EC", "unknown member": 1 }) };
    let of = |digest: Vec<u8>| json!({ "svn": "1", "report_data": STANDARD.encode(digest) });
    let device = runtime_data.device_report_data(rcar::HashAlgorithm::Sha384).unwrap();
    let devices: Map<String, Value> = devices.iter().map(|name| ((*name).to_owned(), of(device.clone()))).collect();
    // Spaces that no canonical form has: the text counts as it is.
    let additional_evidence = if devices.is_empty() {
        String::new()
    } else {
        format!(" {}", serde_json::to_string_pretty(&devices).unwrap())
    };
    let primary = runtime_data.report_data(&additional_evidence, rcar::HashAlgorithm::Sha384).unwrap();
    Attestation {
        init_data: None,
        runtime_data,
        tee_evidence: TeeEvidence { primary_evidence: of(primary), additional_evidence },
    }
}

fn attestation() -> Attestation {
    attestation_with(&[])
}

fn good_values() -> Value {
    json!({ "launch_digest": ["abcde"], "svn": ["1"], "major_version": 1, "minimum_minor_version": 2 })
}

fn members(value: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn evidence_is_affirmed_once_its_reference_values_are_registered() {
    let bench = Bench::new().await;
    let claims = bench.claims(&attestation()).await;
    let part = &claims["submods"]["cpu0"];
    assert_eq!(part["ear.status"], "contraindicated");
    assert_eq!(part["ear.trustworthiness-vector"]["executables"], 33);
    assert_eq!(part["ear.trustworthiness-vector"]["hardware"], 97);
    assert_eq!(part["ear.trustworthiness-vector"]["configuration"], 2);

    bench.register(good_values());
    let claims = bench.claims(&attestation()).await;
    let part = &claims["submods"]["cpu0"];
    assert_eq!(part["ear.status"], "affirming");
    assert_eq!(part["ear.trustworthiness-vector"]["executables"], 3);
    let evidence = &part["ear.veraison.annotated-evidence"];
    assert_eq!(evidence["sample"]["svn"], "1");
    assert_eq!(evidence["sample"].get("report_data"), None);
    assert_eq!(evidence["runtime_data_claims"]["tee-pubkey"]["unknown member"], 1);
    assert_eq!(evidence.get("init_data"), None);

    let appraisal = bench.service.appraise(Tee::Sample, &attestation(), "default").await.unwrap();
    assert_eq!((appraisal.status, appraisal.expiry.unix()), (Tier::Affirming, 1_000_300));
    bench.seconds.fetch_add(300, Ordering::Relaxed);
    assert!(matches!(bench.service.verify(&appraisal.token), Err(token::Error::Expired)));
}

#[tokio::test]
async fn a_token_has_exactly_the_members_of_an_ear() {
    let bench = Bench::new().await;
    let appraisal = bench.service.appraise(Tee::Sample, &attestation(), "default").await.unwrap();
    let parts: Vec<&str> = appraisal.token.split('.').collect();
    let header: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[0]).unwrap()).unwrap();
    assert_eq!(members(&header), ["alg", "jwk", "kid", "typ"]);
    assert_eq!((header["typ"].as_str(), header["alg"].as_str()), (Some("JWT"), Some("ES256")));
    assert_eq!(members(&header["jwk"]), ["alg", "crv", "kty", "x", "y"]);
    assert_eq!((header["jwk"]["kty"].as_str(), header["jwk"]["crv"].as_str()), (Some("EC"), Some("P-256")));
    assert_eq!(URL_SAFE_NO_PAD.decode(parts[2]).unwrap().len(), 64);

    let claims = bench.service.verify(&appraisal.token).unwrap();
    assert_eq!(members(&claims), ["ear.verifier-id", "eat_profile", "exp", "iat", "iss", "jti", "submods"]);
    assert_eq!(claims["eat_profile"], "tag:github.com,2024:confidential-containers/Trustee");
    assert_eq!((claims["iat"].as_u64(), claims["exp"].as_u64()), (Some(1_000_000), Some(1_000_300)));
    assert_eq!(claims["iss"], "CoCo-Attestation-Service");
    assert_eq!(
        claims["ear.verifier-id"],
        json!({ "developer": "https://confidentialcontainers.org", "build": "attestation-service 0.1.0" })
    );
    let part = &claims["submods"]["cpu0"];
    assert_eq!(
        members(part),
        ["ear.appraisal-policy-id", "ear.status", "ear.trustworthiness-vector", "ear.veraison.annotated-evidence"]
    );
    assert_eq!(part["ear.appraisal-policy-id"], "default");
    assert_eq!(
        part["ear.trustworthiness-vector"],
        json!({
            "instance-identity": 0, "configuration": 2, "executables": 33, "file-system": 0, "hardware": 97,
            "runtime-opaque": 0, "storage-opaque": 0, "sourced-data": 0,
        })
    );
    let evidence = &part["ear.veraison.annotated-evidence"];
    assert_eq!(members(evidence), ["report_data", "runtime_data_claims", "sample"]);
    assert_eq!(members(&evidence["runtime_data_claims"]), ["additional-evidence", "nonce", "tee-pubkey"]);
    let again = bench.claims(&attestation()).await;
    assert_ne!(again["jti"], claims["jti"]);

    let jwks = bench.service.jwks();
    assert_eq!(members(&jwks["keys"][0]), ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    assert_eq!(jwks["keys"][0]["kid"], header["kid"]);
    let discovery = bench.service.openid_configuration("https://kbs.test/");
    assert_eq!(discovery["jwks_uri"], "https://kbs.test/.well-known/jwks.json");
}

#[tokio::test]
async fn a_missing_minimum_affirms_nothing() {
    let bench = Bench::new().await;
    bench.register(json!({ "launch_digest": ["abcde"], "svn": ["1"], "major_version": 1 }));
    let claims = bench.claims(&attestation()).await;
    assert_eq!(claims["submods"]["cpu0"]["ear.trustworthiness-vector"]["hardware"], 97);
}

#[tokio::test]
async fn initdata_and_its_containers_reach_the_token() {
    let bench = Bench::new().await;
    let body = r#"version = "0.1.0"
algorithm = "sha256"
[data]
"cdh.toml" = 'socket = "unix:///x"'
"policy.rego" = '''package agent_policy
policy_data := {"containers": [{"OCI": {
    "Annotations": {"io.kubernetes.cri.image-name": "bitnami/nginx:latest"}, "Process": {"User": {"UID": 1001}}}}]}
'''
"#;
    let sent = |format: &str| Attestation {
        init_data: Some(InitDataBody { format: format.to_owned(), body: body.to_owned() }),
        ..attestation()
    };
    let claims = bench.claims(&sent("toml")).await;
    let part = &claims["submods"]["cpu0"];
    let evidence = &part["ear.veraison.annotated-evidence"];
    assert_eq!(evidence["init_data"], STANDARD.encode(HashAlgorithm::Sha256.digest(body.as_bytes())));
    assert_eq!(evidence["init_data_claims"]["cdh.toml"]["socket"], "unix:///x");
    assert_eq!(evidence["init_data_claims"].get("policy.rego"), None);
    assert_eq!(
        part["ear.trustee.identifiers"],
        json!({ "validated": { "container_images": ["bitnami/nginx:latest"], "container_uids": [1001] } })
    );
    assert!(matches!(bench.refusal(&sent("json"), "default").await, Error::InitData(InitDataError::Format(_))));
}

#[tokio::test]
async fn what_is_not_bound_to_the_session_is_refused() {
    let bench = Bench::new().await;
    let mut other_nonce = attestation();
    other_nonce.runtime_data.nonce = "b3RoZXI=".to_owned();
    let mut other_key = attestation();
    other_key.runtime_data.tee_pubkey = json!({ "kty": "EC" });
    for changed in [other_nonce, other_key] {
        let error = bench.refusal(&changed, "default").await;
        assert!(matches!(error, Error::Evidence(verifier::Error::Mismatch { claim: "report_data", .. })), "{error}");
        assert_eq!(error.kind(), Kind::Forbidden);
        assert!(error.difference().is_some());
    }
    let off = Bench::exactly(&Store::memory().await.unwrap(), Settings::default()).await;
    let refusal = off.refusal(&attestation(), "default").await.to_string();
    assert!(refusal.contains("sample_verifier = true"), "{refusal}");
    assert!(off.service.supports(Tee::SampleDevice).is_err() && off.service.supports(Tee::Snp).is_err());
}

#[tokio::test]
async fn challenges_are_random_and_secure_execution_has_none() {
    let bench = Bench::new().await;
    let challenge = bench.service.challenge(Tee::Tdx, "").unwrap();
    assert_eq!((challenge.len(), STANDARD.decode(&challenge).unwrap().len()), (44, 32));
    assert_ne!(bench.service.challenge(Tee::Tdx, "").unwrap(), challenge);
    assert!(matches!(bench.service.challenge(Tee::Se, ""), Err(Error::Challenge(Tee::Se))));
}

#[tokio::test]
async fn the_policy_that_is_asked_for_decides() {
    let bench = Bench::new().await;
    let unknown = bench.refusal(&attestation(), "tenant").await;
    assert!(matches!(&unknown, Error::NoPolicy(id) if id == "tenant_cpu"), "{unknown}");
    assert_eq!(unknown.kind(), Kind::BadRequest);

    let text = "package policy\ntrust_claims := {\"hardware\": h}\n\
        h := 2 if input.sample.svn in query_reference_value(\"tenant.svn\")";
    bench.service.set_policy("tenant_cpu", text.to_owned(), If::Absent).await.unwrap();
    let appraisal = bench.service.appraise(Tee::Sample, &attestation(), "tenant").await.unwrap();
    assert_eq!(appraisal.status, Tier::None);
    let claims = bench.service.verify(&appraisal.token).unwrap();
    assert_eq!(claims["submods"]["cpu0"]["ear.appraisal-policy-id"], "tenant");
    let differences = bench.service.differences(&claims);
    assert!(differences.iter().any(|it| it.reference_value.as_deref() == Some("tenant.svn")), "{differences:?}");
    assert!(bench.service.policies().iter().any(|info| info.id == "tenant_cpu" && info.version > 0));
}

#[tokio::test]
async fn a_policy_that_answers_nonsense_is_an_error_and_no_panic() {
    let bench = Bench::new().await;
    for (rules, expected) in [
        ("trust_claims := {\"hardwear\": 2}", "hardwear"),
        ("trust_claims := {\"hardware\": 258}", "no integer from -128 to 127"),
        ("trust_claims := 2", "must be an object"),
        ("extensions := [{\"name\": \"ear.status\", \"value\": \"affirming\"}]", "extensions"),
        ("extensions := [{\"name\": \"ear.trustee.x\"}]", "extensions"),
        ("trust_claims := {\"hardware\": query_reference_value(1)}", "takes the name"),
    ] {
        bench.service.set_policy("default_cpu", format!("package policy\n{rules}"), If::Any).await.unwrap();
        let error = bench.refusal(&attestation(), "default").await;
        assert!(error.to_string().contains(expected) && error.kind() == Kind::Internal, "{rules}: {error}");
    }

    bench.service.set_policy("default_cpu", "package policy".to_owned(), If::Any).await.unwrap();
    assert_eq!(bench.claims(&attestation()).await["submods"]["cpu0"]["ear.status"], "none");
    let refused = bench.service.set_policy("default_cpu", "nonsense".to_owned(), If::Any).await.unwrap_err();
    assert_eq!(refused.kind(), Kind::BadRequest);
    assert!(bench.service.delete_policy("default_cpu", If::Any).await.unwrap());
    assert_eq!(bench.claims(&attestation()).await["submods"]["cpu0"]["ear.status"], "contraindicated");
}

#[tokio::test]
async fn two_services_on_one_store_are_one() {
    let store = Store::memory().await.unwrap();
    let (one, other) = (Bench::with(&store, Settings::default()).await, Bench::with(&store, Settings::default()).await);
    let appraisal = one.service.appraise(Tee::Sample, &attestation(), "default").await.unwrap();
    other.service.verify(&appraisal.token).unwrap();

    // What one is told, the other does, without being asked.
    let before = other.service.generation();
    one.service.rotate_signing_key().await.unwrap();
    one.service.set_policy("mine_cpu", "package policy".to_owned(), If::Any).await.unwrap();
    let heard = async {
        while other.service.generation() == before
            || other.service.appraise(Tee::Sample, &attestation(), "mine").await.is_err()
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), heard).await.unwrap();
    let appraisal = one.service.appraise(Tee::Sample, &attestation(), "default").await.unwrap();
    other.service.verify(&appraisal.token).unwrap();
    assert_eq!(other.service.jwks()["keys"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_due_key_is_replaced_when_the_next_token_is_issued() {
    let bench = Bench::new().await;
    let keys = || bench.service.jwks()["keys"].as_array().unwrap().len();
    bench.claims(&attestation()).await;
    bench.seconds.fetch_add(31 * 24 * 3600, Ordering::Relaxed);
    bench.claims(&attestation()).await;
    let rotated = async {
        while keys() == 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), rotated).await.unwrap();
}

#[tokio::test]
async fn differences_name_claims_values_and_reference_values() {
    let bench = Bench::new().await;
    bench.register(json!({ "launch_digest": ["other"], "svn": ["1"], "major_version": 1 }));
    let claims = bench.claims(&attestation()).await;
    let differences = bench.service.differences(&claims);

    let found = |claim: &str| differences.iter().find(|difference| difference.claim.ends_with(claim)).unwrap();
    assert_eq!(found("ear.status").actual, "contraindicated");
    assert_eq!(found("ear.trustworthiness-vector/executables").actual, 33);
    assert_eq!(found("sample/launch_digest").actual, "abcde");
    assert_eq!(found("sample/launch_digest").expected, json!(["other"]));
    assert_eq!(found("sample/launch_digest").reference_value.as_deref(), Some("launch_digest"));
    assert_eq!(found("sample/platform_version/minor").expected, Value::Null);
    assert!(!differences.iter().any(|difference| difference.claim.ends_with("sample/svn")));

    bench.register(good_values());
    assert_eq!(bench.service.differences(&bench.claims(&attestation()).await), []);
}

#[tokio::test]
async fn a_policy_that_takes_its_time_gives_its_answer_all_the_same() {
    let bench = Bench::new().await;
    let policy = "package policy\nfound if { some a in numbers.range(1, 100); some b in numbers.range(1, 100); a + b == 200 }\n\
                  trust_claims := {\"executables\": 3} if found";
    bench.service.set_policy("slow_cpu", policy.to_owned(), If::Any).await.unwrap();
    let evaluation = Evaluation::of(Tee::Sample, &attestation(), "slow").unwrap();
    assert!(bench.service.evaluate_here(evaluation.clone(), Pace::Prompt).is_err(), "it is not done in a millisecond");

    let appraisal = bench.service.evaluate(evaluation).await.unwrap();

    assert_eq!(appraisal.status, Tier::Affirming);
}

#[test]
fn only_little_evidence_without_certificates_is_light() {
    let light = |evidence: Value, tee: Tee| {
        let part = Part {
            tee,
            evidence,
            runtime_data: RuntimeData::None,
            hash: HashAlgorithm::Sha384,
            init_data: InitDataInput::None,
        };
        Evaluation { parts: vec![part], policy_id: "default".to_owned() }.is_light()
    };
    assert!(light(json!({ "svn": "1" }), Tee::Sample));
    assert!(!light(json!({ "svn": "1" }), Tee::Snp), "its chain takes a millisecond");
    assert!(!light(json!({ "svn": "1".repeat(20_000) }), Tee::Sample));
    assert!(!light(Value::Array(vec![Value::Null; 20_000]), Tee::Sample));
}

/// Prints what one appraisal takes; nothing is decided by it.
#[tokio::test(flavor = "multi_thread")]
async fn an_appraisal_takes_microseconds() {
    const TIMES: u32 = 2_000;
    let bench = Bench::new().await;
    bench.register(good_values());
    let attestation = attestation();
    let evaluation = Evaluation::of(Tee::Sample, &attestation, "default").unwrap();
    let start = Instant::now();
    for _ in 0..TIMES {
        bench.service.evaluate_here(evaluation.clone(), Pace::Patient).unwrap();
    }
    let here = start.elapsed() / TIMES;
    let start = Instant::now();
    for _ in 0..TIMES {
        bench.service.appraise(Tee::Sample, &attestation, "default").await.unwrap();
    }
    println!("appraisal: {here:?} alone, {:?} as a request", start.elapsed() / TIMES);
}
