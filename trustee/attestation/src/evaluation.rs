//! From evidence to appraised submodules: verify each part, annotate its claims, apply the policy of its class.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reference_values::Source;
use serde_json::{Map, Value, json};
use wire::rcar::{Attestation, Tee};

use crate::appraisal::TrustVector;
use crate::error::Error;
use crate::excerpt::excerpt;
use crate::hash::HashAlgorithm;
use crate::init_data::{self, InitDataClaims, InitDataInput};
use crate::policies::Policies;
use crate::policy::Queried;
use crate::token::Submodule;
use crate::verifier::{Enabled, Expected, Verified, Verifier};

/// What is to be appraised: the evidence of a guest's parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The parts, at least one.
    pub parts: Vec<Part>,
    /// Id of the policy; the class of each part completes it, `default` to `default_cpu`.
    pub policy_id: String,
}

/// The evidence of one TEE or device.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Where the evidence comes from.
    pub tee: Tee,
    /// In the form that its verifier knows.
    pub evidence: Value,
    /// What its report data is a digest of.
    pub runtime_data: RuntimeData,
    /// With what it was digested.
    pub hash: HashAlgorithm,
    /// The initdata that it vouches for.
    pub init_data: InitDataInput,
}

/// What the report data of evidence is a digest of.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RuntimeData {
    /// It is not compared with anything.
    #[default]
    None,
    /// These bytes.
    Raw(Vec<u8>),
    /// The canonical form (RFC 8785) of this JSON.
    Structured(Value),
}

impl Evaluation {
    /// What a guest's attestation asks for. Its devices are parts of their own; the primary evidence vouches for
    /// theirs, exactly as it was sent, and all of them for nonce and key.
    ///
    /// # Errors
    /// [`Error::InitData`] for another format than TOML; [`Error::AdditionalEvidence`].
    pub fn of(tee: Tee, attestation: &Attestation, policy_id: &str) -> Result<Self, Error> {
        let rcar_data = &attestation.runtime_data;
        let additional = &attestation.tee_evidence.additional_evidence;
        let devices = devices(additional)?;
        let init_data = match &attestation.init_data {
            None => InitDataInput::None,
            Some(sent) if sent.format == "toml" => InitDataInput::Toml(sent.body.clone()),
            Some(sent) => return Err(init_data::Error::Format(excerpt(&sent.format)).into()),
        };
        let hash = if tee == Tee::Se { HashAlgorithm::Sha512 } else { HashAlgorithm::Sha384 };
        let bound = json!({ "nonce": rcar_data.nonce, "tee-pubkey": rcar_data.tee_pubkey });
        let mut primary_bound = bound.clone();
        primary_bound["additional-evidence"] = Value::from(additional.as_str());

        let mut parts = vec![Part {
            tee,
            evidence: attestation.tee_evidence.primary_evidence.clone(),
            runtime_data: RuntimeData::Structured(primary_bound),
            hash,
            init_data,
        }];
        parts.extend(devices.into_iter().map(|(tee, evidence)| Part {
            tee,
            evidence,
            runtime_data: RuntimeData::Structured(bound.clone()),
            hash,
            init_data: InitDataInput::None,
        }));
        Ok(Self { parts, policy_id: policy_id.to_owned() })
    }

    /// Whether its verification takes microseconds: there is little of it, and no certificate chain.
    pub(crate) fn is_light(&self) -> bool {
        let mut size = 0;
        for part in &self.parts {
            size += text_size(&part.evidence);
            size += match &part.runtime_data {
                RuntimeData::None => 0,
                RuntimeData::Raw(bytes) => bytes.len(),
                RuntimeData::Structured(claims) => text_size(claims),
            };
            size += if let InitDataInput::Toml(text) = &part.init_data { text.len() } else { 0 };
        }
        size <= LIGHT && self.parts.iter().all(|part| matches!(part.tee, Tee::Sample | Tee::SampleDevice))
    }
}

/// How long a policy may take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pace {
    /// A millisecond: on threads that serve requests.
    Prompt,
    /// 100 milliseconds.
    Patient,
}

/// What an evaluation needs besides evidence.
pub(crate) struct Context<'a> {
    pub enabled: Enabled,
    pub policies: &'a Policies,
    pub reference_values: &'a Arc<dyn Source>,
    /// Whether a token repeats the devices' evidence.
    pub verbose: bool,
    pub pace: Pace,
}

/// What an evaluation found.
pub(crate) struct Evaluated {
    pub submodules: Vec<Submodule>,
    /// Digest of the initdata that the first part vouches for, in standard base64.
    pub init_data: Option<String>,
}

impl Context<'_> {
    /// Verifies and appraises all parts.
    ///
    /// # Errors
    /// The first [`Error`] of any part.
    pub fn evaluate(&self, evaluation: Evaluation) -> Result<Evaluated, Error> {
        let Evaluation { parts, policy_id } = evaluation;
        match parts.len() {
            0 => return Err(Error::NoEvidence),
            1..=MAX_PARTS => {}
            _ => return Err(Error::TooManyParts(MAX_PARTS)),
        }
        let mut found = Evaluated { submodules: Vec::with_capacity(parts.len()), init_data: None };
        let mut indices: BTreeMap<&str, usize> = BTreeMap::new();
        for (number, part) in parts.into_iter().enumerate() {
            let tee = part.tee;
            let (verified, runtime_data_claims, init_data) = self.verify(part)?;
            for verified in verified {
                let class = verified.class;
                if number == 0 && found.init_data.is_none() && verified.claims.contains_key("init_data") {
                    found.init_data = init_data.as_ref().map(|read| STANDARD.encode(&read.digest));
                }
                let init_data_claims = init_data.as_ref().map(|read| &read.claims);
                let evidence = annotated(tee, verified.claims, &runtime_data_claims, init_data_claims);
                let index = indices.entry(class).or_default();
                found.submodules.push(self.appraise(class, *index, evidence, &policy_id)?);
                *index += 1;
            }
        }
        Ok(found)
    }

    fn verify(&self, part: Part) -> Result<(Vec<Verified>, Value, Option<InitDataClaims>), Error> {
        let verifier = Verifier::of(part.tee, self.enabled)?;
        let init_data = InitDataClaims::read(&part.init_data)?;
        let (report_data, claims) = match part.runtime_data {
            RuntimeData::None => (None, Value::Null),
            RuntimeData::Raw(bytes) => (Some(part.hash.digest(&bytes)), Value::Null),
            RuntimeData::Structured(claims) => {
                let canonical = serde_json_canonicalizer::to_vec(&claims).map_err(|_| Error::RuntimeData)?;
                (Some(part.hash.digest(&canonical)), claims)
            }
        };
        let expected = Expected {
            report_data: report_data.as_deref(),
            init_data: init_data.as_ref().map(|read| read.digest.as_slice()),
        };
        Ok((verifier.verify(&part.evidence, &expected)?, claims, init_data))
    }

    fn appraise(
        &self,
        class: &'static str,
        index: usize,
        mut evidence: Value,
        policy_id: &str,
    ) -> Result<Submodule, Error> {
        let id = format!("{policy_id}_{class}");
        let mut policy = self.policies.get(&id)?;
        if self.pace == Pace::Prompt {
            policy = Arc::new(policy.prompt());
        }
        let input = regorus::Value::from(evidence.clone());
        let rules = ["trust_claims", "extensions"];
        let answers = policy.evaluate_with(rules, input, self.reference_values, &mut Queried::new());
        let [claims, extensions] = answers.map_err(|cause| Error::Policy { id: id.clone(), cause })?;
        let vector = claims.as_ref().map(TrustVector::from_policy).transpose();
        let vector = vector.map_err(|cause| Error::Claims { id: id.clone(), cause })?.unwrap_or_default();
        let extensions = match extensions {
            Some(extensions) => named_extensions(extensions).ok_or(Error::Extensions(id))?,
            None => Map::new(),
        };
        if !self.verbose
            && let Some(bound) = evidence.get_mut("runtime_data_claims").and_then(Value::as_object_mut)
        {
            bound.remove("additional-evidence");
        }
        Ok(Submodule { name: format!("{class}{index}"), vector, policy_id: policy_id.to_owned(), evidence, extensions })
    }
}

/// About how much text a JSON value is.
fn text_size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(|item| 1 + text_size(item)).sum(),
        Value::Object(members) => members.iter().map(|(name, value)| name.len() + text_size(value)).sum(),
    }
}

/// The evidence of devices, sorted by the names of their TEEs. The text is empty or a JSON object.
fn devices(additional: &str) -> Result<Vec<(Tee, Value)>, Error> {
    if additional.is_empty() {
        return Ok(Vec::new());
    }
    let refused = |why: &str| Error::AdditionalEvidence(why.to_owned());
    let evidence: BTreeMap<String, Value> =
        serde_json::from_str(additional).map_err(|_| refused("not a JSON object from TEE to evidence"))?;
    if evidence.len() > MAX_DEVICES {
        return Err(refused(&format!("of {} TEEs; {MAX_DEVICES} are allowed", evidence.len())));
    }
    let part = |(name, evidence): (String, Value)| {
        Ok((name.parse().map_err(|e: wire::rcar::Error| refused(&e.to_string()))?, evidence))
    };
    evidence.into_iter().map(part).collect()
}

/// The claims as policies see them: `report_data` and `init_data` are lifted out of the TEE's claims, and bring what
/// they are digests of.
fn annotated(
    tee: Tee,
    mut claims: Map<String, Value>,
    runtime_data_claims: &Value,
    init_data_claims: Option<&Value>,
) -> Value {
    let mut evidence = Map::new();
    if let Some(report_data) = claims.remove("report_data") {
        evidence.insert("report_data".to_owned(), report_data);
        evidence.insert("runtime_data_claims".to_owned(), runtime_data_claims.clone());
    }
    if let Some(init_data) = claims.remove("init_data") {
        evidence.insert("init_data".to_owned(), init_data);
        evidence.insert("init_data_claims".to_owned(), init_data_claims.cloned().unwrap_or(Value::Null));
    }
    evidence.insert(tee.to_string(), Value::Object(claims));
    Value::Object(evidence)
}

/// The members that a policy adds to a submodule. They can't take the place of what the service says.
fn named_extensions(extensions: Value) -> Option<Map<String, Value>> {
    let Value::Array(extensions) = extensions else { return None };
    let mut members = Map::new();
    for mut extension in extensions {
        let name = extension["name"].as_str().filter(|name| name.starts_with("ear.trustee."))?.to_owned();
        members.insert(name, extension.get_mut("value")?.take());
    }
    Some(members)
}

const MAX_DEVICES: usize = 16;
/// So much evidence is parsed, hashed and appraised in microseconds.
const LIGHT: usize = 16 << 10;
/// A guest's primary evidence and its devices'.
const MAX_PARTS: usize = MAX_DEVICES + 1;
