//! What keeps a guest from being affirmed, for its owner to read.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::appraisal::Tier;
use crate::policy::Queried;
use crate::verifier;

/// A claim with the value it has and the values that would do.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Difference {
    /// JSON pointer (RFC 6901) into the token's claims, or `reference value <name>` where no claim is known.
    pub claim: String,
    /// The value in the token, null if there is none.
    pub actual: Value,
    /// What was expected: a value, a list of values, or null for a reference value that is not registered.
    pub expected: Value,
    /// The reference value that the expectation comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference_value: Option<String>,
}

impl Difference {
    /// A difference from what a rule expects.
    pub fn new(claim: impl Into<String>, actual: Value, expected: Value) -> Self {
        Self { claim: claim.into(), actual, expected, reference_value: None }
    }
}

/// Adds the differences of one submodule of a token.
pub(crate) fn collect(name: &str, submodule: &Value, queried: &Queried, differences: &mut Vec<Difference>) {
    let root = format!("/submods/{name}");
    let status = &submodule["ear.status"];
    if status != "affirming" {
        differences.push(Difference::new(format!("{root}/ear.status"), status.clone(), Value::from("affirming")));
    }
    for (claim, value) in submodule["ear.trustworthiness-vector"].as_object().into_iter().flatten() {
        let tier = value.as_i64().and_then(|value| i8::try_from(value).ok()).map(Tier::of);
        if tier.is_none_or(|tier| tier > Tier::Affirming) {
            let claim = format!("{root}/ear.trustworthiness-vector/{claim}");
            differences.push(Difference::new(claim, value.clone(), Value::from("2 to 31")));
        }
    }

    let evidence = &submodule["ear.veraison.annotated-evidence"];
    let Some((tee, claims)) = evidence.as_object().into_iter().flatten().find(|(member, _)| !is_annotation(member))
    else {
        return;
    };
    for (reference_value, expected) in queried {
        let pointer = verifier::claim_of(tee, reference_value);
        let actual = claims.pointer(&pointer);
        let expected = expected.clone().unwrap_or(Value::Null);
        if actual.is_some_and(|actual| meets(actual, reference_value, &expected)) {
            continue;
        }
        let claim = match actual {
            Some(_) => format!("{root}/ear.veraison.annotated-evidence/{tee}{pointer}"),
            None => format!("reference value {reference_value}"),
        };
        let difference = Difference::new(claim, actual.cloned().unwrap_or(Value::Null), expected);
        differences.push(Difference { reference_value: Some(reference_value.clone()), ..difference });
    }
}

fn meets(actual: &Value, reference_value: &str, expected: &Value) -> bool {
    match expected {
        Value::Array(accepted) => accepted.contains(actual),
        Value::Number(minimum) if reference_value.starts_with("minimum_") => actual.as_f64() >= minimum.as_f64(),
        value => actual == value,
    }
}

fn is_annotation(member: &str) -> bool {
    matches!(member, "report_data" | "runtime_data_claims" | "init_data" | "init_data_claims")
}
