//! What is to be appraised, as it travels: the messages of gRPC and the documents of REST.
//!
//! A TEE's evidence is JSON in base64url without padding in both; runtime data and initdata are text or base64url.

use attestation::{Evaluation, HashAlgorithm, InitDataInput, Part, RuntimeData};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;
use wire::rcar;
use wire_grpc::attestation::individual_attestation_request::{InitData, RuntimeData as Runtime};
use wire_grpc::attestation::{AttestationRequest, IndividualAttestationRequest};

/// Reads a request of gRPC.
///
/// # Errors
/// [`Malformed`], which says what is wrong with which part.
pub(crate) fn from_grpc(request: AttestationRequest) -> Result<Evaluation, Malformed> {
    let parts = request.verification_requests.into_iter().map(GrpcPart).map(TryInto::try_into);
    evaluation(parts.collect(), request.policy_ids)
}

/// The request of gRPC that asks for an evaluation.
pub(crate) fn to_grpc(evaluation: &Evaluation) -> AttestationRequest {
    let verification_requests = evaluation.parts.iter().map(|part| IndividualAttestationRequest {
        tee: part.tee.to_string(),
        evidence: URL_SAFE_NO_PAD.encode(part.evidence.to_string()),
        runtime_data: match &part.runtime_data {
            RuntimeData::None => None,
            RuntimeData::Raw(bytes) => Some(Runtime::RawRuntimeData(URL_SAFE_NO_PAD.encode(bytes))),
            RuntimeData::Structured(value) => Some(Runtime::StructuredRuntimeData(value.to_string())),
        },
        init_data: match &part.init_data {
            InitDataInput::None => None,
            InitDataInput::Digest(digest) => Some(InitData::InitDataDigest(URL_SAFE_NO_PAD.encode(digest))),
            InitDataInput::Toml(text) => Some(InitData::InitDataToml(text.clone())),
        },
        runtime_data_hash_algorithm: part.hash.to_string(),
    });
    AttestationRequest {
        verification_requests: verification_requests.collect(),
        policy_ids: vec![evaluation.policy_id.clone()],
    }
}

/// The body of `POST /attestation`.
#[derive(Deserialize)]
pub(crate) struct RestRequest {
    verification_requests: Vec<RestPart>,
    #[serde(default)]
    policy_ids: Vec<String>,
}

impl RestRequest {
    /// What it asks for.
    ///
    /// # Errors
    /// [`Malformed`], which says what is wrong with which part.
    pub(crate) fn evaluation(self) -> Result<Evaluation, Malformed> {
        let parts = self.verification_requests.into_iter().map(TryInto::try_into);
        evaluation(parts.collect(), self.policy_ids)
    }
}

/// Reads the text of a policy as both interfaces bring it.
///
/// # Errors
/// [`Malformed::Policy`].
pub(crate) fn policy_text(encoded: &str) -> Result<String, Malformed> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Malformed::Policy)?;
    String::from_utf8(bytes).map_err(|_| Malformed::Policy)
}

/// The form of a policy's text in which both interfaces bring it.
pub(crate) fn encoded_policy(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// Why a request can't be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("verification request {index}: {cause}")]
    Part { index: usize, cause: MalformedPart },
    #[error("the policy is not text in base64url without padding")]
    Policy,
    #[error("the challenge's request does not name its \"tee\"")]
    NoTee,
    #[error(transparent)]
    Tee(#[from] rcar::Error),
    #[error("the message is not JSON of a reference value message: {0}")]
    Message(serde_json::Error),
}

/// Why one piece of evidence can't be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MalformedPart {
    #[error(transparent)]
    Tee(#[from] rcar::Error),
    #[error(transparent)]
    HashAlgorithm(#[from] attestation::UnknownHashAlgorithm),
    #[error("{0} is not base64url without padding")]
    Base64(&'static str),
    #[error("{0} is not JSON: {1}")]
    Json(&'static str, serde_json::Error),
}

/// One piece of evidence of a request of gRPC.
struct GrpcPart(IndividualAttestationRequest);

impl TryFrom<GrpcPart> for Part {
    type Error = MalformedPart;

    fn try_from(GrpcPart(part): GrpcPart) -> Result<Self, MalformedPart> {
        let runtime_data = match part.runtime_data {
            None => RuntimeData::None,
            Some(Runtime::RawRuntimeData(raw)) => RuntimeData::Raw(base64url("raw runtime data", &raw)?),
            Some(Runtime::StructuredRuntimeData(text)) => {
                RuntimeData::Structured(json("structured runtime data", text.as_bytes())?)
            }
        };
        let init_data = match part.init_data {
            None => InitDataInput::None,
            Some(InitData::InitDataDigest(digest)) => InitDataInput::Digest(base64url("initdata digest", &digest)?),
            Some(InitData::InitDataToml(text)) => InitDataInput::Toml(text),
        };
        let evidence = json("evidence", &base64url("evidence", &part.evidence)?)?;
        let hash = hash_algorithm(&part.runtime_data_hash_algorithm)?;
        Ok(Self { tee: part.tee.parse()?, evidence, runtime_data, hash, init_data })
    }
}

/// One piece of evidence of a request of REST.
#[derive(Deserialize)]
struct RestPart {
    tee: String,
    evidence: String,
    #[serde(default)]
    runtime_data: Option<RestRuntimeData>,
    #[serde(default)]
    init_data: Option<RestInitData>,
    #[serde(default)]
    runtime_data_hash_algorithm: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RestRuntimeData {
    Raw(String),
    Structured(Value),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum RestInitData {
    InitDataDigest(String),
    InitDataToml(String),
}

impl TryFrom<RestPart> for Part {
    type Error = MalformedPart;

    fn try_from(part: RestPart) -> Result<Self, MalformedPart> {
        let runtime_data = match part.runtime_data {
            None => RuntimeData::None,
            Some(RestRuntimeData::Raw(raw)) => RuntimeData::Raw(base64url("raw runtime data", &raw)?),
            Some(RestRuntimeData::Structured(value)) => RuntimeData::Structured(value),
        };
        let init_data = match part.init_data {
            None => InitDataInput::None,
            Some(RestInitData::InitDataDigest(digest)) => InitDataInput::Digest(base64url("initdata digest", &digest)?),
            Some(RestInitData::InitDataToml(text)) => InitDataInput::Toml(text),
        };
        let evidence = json("evidence", &base64url("evidence", &part.evidence)?)?;
        let hash = hash_algorithm(part.runtime_data_hash_algorithm.as_deref().unwrap_or_default())?;
        Ok(Self { tee: part.tee.parse()?, evidence, runtime_data, hash, init_data })
    }
}

/// Of several policies the first one counts; without any it is the default one.
fn evaluation(parts: Vec<Result<Part, MalformedPart>>, policy_ids: Vec<String>) -> Result<Evaluation, Malformed> {
    let parts =
        parts.into_iter().enumerate().map(|(index, part)| part.map_err(|cause| Malformed::Part { index, cause }));
    let policy_id = policy_ids.into_iter().next().unwrap_or_else(|| DEFAULT_POLICY.to_owned());
    Ok(Evaluation { parts: parts.collect::<Result<_, _>>()?, policy_id })
}

fn hash_algorithm(name: &str) -> Result<HashAlgorithm, MalformedPart> {
    if name.is_empty() { Ok(HashAlgorithm::default()) } else { Ok(name.parse()?) }
}

fn base64url(member: &'static str, text: &str) -> Result<Vec<u8>, MalformedPart> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| MalformedPart::Base64(member))
}

fn json(member: &'static str, text: &[u8]) -> Result<Value, MalformedPart> {
    serde_json::from_slice(text).map_err(|e| MalformedPart::Json(member, e))
}

const DEFAULT_POLICY: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use wire::rcar::Tee;

    fn grpc_part(tee: &str, evidence: &str) -> IndividualAttestationRequest {
        IndividualAttestationRequest { tee: tee.to_owned(), evidence: evidence.to_owned(), ..Default::default() }
    }

    fn grpc(part: IndividualAttestationRequest) -> Result<Evaluation, Malformed> {
        from_grpc(AttestationRequest { verification_requests: vec![part], policy_ids: Vec::new() })
    }

    #[test]
    fn every_tee_has_its_name_in_both_interfaces() {
        for name in [
            "az-snp-vtpm",
            "az-tdx-vtpm",
            "cca",
            "csv",
            "hygondcu",
            "nvidia",
            "nvidia-dpu",
            "sample",
            "sampledevice",
            "se",
            "sgx",
            "snp",
            "tdx",
            "tpm",
        ] {
            let tee: Tee = name.parse().unwrap();
            assert_eq!(grpc(grpc_part(name, "e30")).unwrap().parts[0].tee, tee);
            let body = json!({ "verification_requests": [{ "tee": name, "evidence": "e30" }] });
            let request: RestRequest = serde_json::from_value(body).unwrap();
            assert_eq!(request.evaluation().unwrap().parts[0].tee, tee);
        }
    }

    #[test]
    fn what_is_left_out_takes_its_default() {
        let evaluation = grpc(grpc_part("snp", "e30")).unwrap();
        assert_eq!(evaluation.policy_id, "default");
        assert_eq!(evaluation.parts[0].hash, HashAlgorithm::Sha384);
        assert!(matches!(evaluation.parts[0].runtime_data, RuntimeData::None));
        assert!(matches!(evaluation.parts[0].init_data, InitDataInput::None));
    }

    #[test]
    fn the_first_policy_counts() {
        let policy_ids = vec!["first".to_owned(), "second".to_owned()];
        let request = AttestationRequest { verification_requests: vec![grpc_part("snp", "e30")], policy_ids };
        assert_eq!(from_grpc(request).unwrap().policy_id, "first");
    }

    #[test]
    fn an_upstream_shaped_rest_request_is_read() {
        let request: RestRequest = serde_json::from_value(json!({
            "verification_requests": [
                {
                    "tee": "snp",
                    "evidence": "eyJhIjoxfQ",
                    "runtime_data": { "structured": { "nonce": "n" } },
                    "init_data": { "init_data_toml": "version = \"0.1.0\"" },
                    "runtime_data_hash_algorithm": "sm3",
                },
                {
                    "tee": "nvidia",
                    "evidence": "e30",
                    "runtime_data": { "raw": "AQI" },
                    "init_data": { "init_data_digest": "AwQ" },
                },
                { "tee": "tpm", "evidence": "e30", "runtime_data": null, "init_data": null },
            ],
            "policy_ids": ["strict"],
        }))
        .unwrap();

        let evaluation = request.evaluation().unwrap();
        assert_eq!(evaluation.policy_id, "strict");
        let [cpu, gpu, tpm] = evaluation.parts.as_slice() else { panic!("three parts") };
        assert_eq!(cpu.evidence, json!({ "a": 1 }));
        assert_eq!(cpu.hash, HashAlgorithm::Sm3);
        assert!(matches!(&cpu.runtime_data, RuntimeData::Structured(value) if value["nonce"] == "n"));
        assert!(matches!(&cpu.init_data, InitDataInput::Toml(text) if text.starts_with("version")));
        assert!(matches!(&gpu.runtime_data, RuntimeData::Raw(bytes) if bytes == &[1, 2]));
        assert!(matches!(&gpu.init_data, InitDataInput::Digest(bytes) if bytes == &[3, 4]));
        assert!(matches!(tpm.runtime_data, RuntimeData::None));
    }

    #[test]
    fn bad_parts_are_named() {
        let deep = URL_SAFE_NO_PAD.encode("[".repeat(10_000));
        let not_text = URL_SAFE_NO_PAD.encode([b'"', 0xff, b'"']);
        let hash = |name: &str| IndividualAttestationRequest {
            runtime_data_hash_algorithm: name.to_owned(),
            ..grpc_part("snp", "e30")
        };
        let runtime = |data| IndividualAttestationRequest { runtime_data: Some(data), ..grpc_part("snp", "e30") };
        for (part, message) in [
            (grpc_part("Snp", "e30"), "\"Snp\" is not the name of a TEE"),
            (grpc_part("snp", "e30="), "evidence is not base64url"),
            (grpc_part("snp", "+/+/"), "evidence is not base64url"),
            (grpc_part("snp", ""), "evidence is not JSON"),
            (grpc_part("snp", &deep), "recursion limit"),
            (grpc_part("snp", &not_text), "evidence is not JSON"),
            (hash("md5"), "\"md5\" is not known"),
            (runtime(Runtime::RawRuntimeData("*".to_owned())), "raw runtime data is not base64url"),
            (runtime(Runtime::StructuredRuntimeData("{".to_owned())), "structured runtime data is not JSON"),
        ] {
            let error = grpc(part).err().unwrap().to_string();
            assert!(error.starts_with("verification request 0: ") && error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_policy_is_text_in_base64url() {
        assert_eq!(policy_text(&encoded_policy("package policy\n# ü")).unwrap(), "package policy\n# ü");
        assert!(policy_text("cGFja2FnZQ==").is_err());
        assert!(policy_text(&URL_SAFE_NO_PAD.encode([0xff])).is_err());
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(
            evidence in ".{0,40}",
            raw in proptest::collection::vec(any::<u8>(), 0..40),
            toml in ".{0,40}",
            policy_id in ".{0,10}",
        ) {
            let part = Part {
                tee: Tee::Tdx,
                evidence: json!({ "text": evidence, "list": [1, null] }),
                runtime_data: RuntimeData::Raw(raw.clone()),
                hash: HashAlgorithm::Sha512,
                init_data: InitDataInput::Toml(toml.clone()),
            };
            let sent = Evaluation { parts: vec![part], policy_id: policy_id.clone() };
            let read = from_grpc(to_grpc(&sent)).unwrap();
            prop_assert_eq!(&read.parts[0].evidence, &sent.parts[0].evidence);
            prop_assert_eq!(read.parts[0].hash, HashAlgorithm::Sha512);
            prop_assert!(matches!(&read.parts[0].runtime_data, RuntimeData::Raw(bytes) if *bytes == raw));
            prop_assert!(matches!(&read.parts[0].init_data, InitDataInput::Toml(text) if *text == toml));
            prop_assert_eq!(read.policy_id, policy_id);
        }

        #[test]
        fn no_text_makes_it_panic(tee in ".{0,12}", evidence in ".{0,40}", hash in ".{0,8}", runtime in ".{0,40}") {
            let _ = grpc(IndividualAttestationRequest {
                runtime_data_hash_algorithm: hash,
                runtime_data: Some(Runtime::StructuredRuntimeData(runtime)),
                ..grpc_part(&tee, &evidence)
            });
        }
    }
}
