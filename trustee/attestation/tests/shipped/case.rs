//! A part with claims and reference values, and what a shipped policy says of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use attestation::appraisal::TrustVector;
use attestation::policy::{Policy, Queried};
use reference_values::Source;
use serde_json::{Value, json};

pub struct Values(pub BTreeMap<String, Value>);

impl Source for Values {
    fn query(&self, name: &str) -> Result<Option<Value>, reference_values::Error> {
        Ok(self.0.get(name).cloned())
    }
}

/// A part with claims and reference values under which it is affirmed.
pub struct Case {
    pub policy: &'static str,
    pub tee: &'static str,
    pub claims: Value,
    pub values: Value,
}

impl Case {
    /// Executables, hardware and configuration, and the answer to `extensions`.
    pub fn appraise(&self, input: Value) -> (TrustVector, [i64; 3], Option<Value>) {
        let policy = Policy::compile(self.policy).unwrap();
        let Value::Object(values) = self.values.clone() else { panic!("values have names") };
        let source: Arc<dyn Source> = Arc::new(Values(values.into_iter().collect()));
        let rules = ["trust_claims", "extensions"];
        let [claims, extensions] = policy.evaluate_with(rules, input.into(), &source, &mut Queried::new()).unwrap();
        let vector = TrustVector::from_policy(&claims.unwrap()).unwrap();
        let json = vector.to_json();
        (vector, ["executables", "hardware", "configuration"].map(|name| json[name].as_i64().unwrap()), extensions)
    }

    pub fn claims(&self) -> [i64; 3] {
        self.appraise(json!({ self.tee: self.claims })).1
    }

    /// The case with one claim, by its JSON pointer, at another value; or without it.
    pub fn with(&self, pointer: &str, value: Option<Value>) -> Self {
        let mut claims = self.claims.clone();
        match value {
            Some(value) => *claims.pointer_mut(pointer).unwrap() = value,
            None => {
                let (parent, name) = pointer.rsplit_once('/').unwrap();
                claims.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(name).unwrap();
            }
        }
        Self { claims, values: self.values.clone(), ..*self }
    }

    /// Every claim that the outcome hangs on: changed or missing, the part is no longer what it was; and so with the
    /// reference values.
    pub fn hangs_on(&self, pointers: &[&str]) {
        let good = self.claims();
        for pointer in pointers {
            for value in [Some(json!("other")), Some(json!(null)), None] {
                let changed = self.with(pointer, value.clone()).claims();
                assert_ne!(changed, good, "{} {pointer} = {value:?}", self.tee);
            }
        }
        for name in self.values.as_object().unwrap().keys() {
            let mut values = self.values.clone();
            values.as_object_mut().unwrap().remove(name);
            let without = Self { values, claims: self.claims.clone(), ..*self };
            assert_ne!(without.claims(), good, "{} without {name}", self.tee);
        }
    }
}
