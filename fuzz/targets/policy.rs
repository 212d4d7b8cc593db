//! A policy as an administrator uploads it: checked, parsed and evaluated within its bounds.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::thread;

use attestation::policy::{Policy, Queried, Question};
use fuzz::STACK;
use libfuzzer_sys::fuzz_target;
use reference_values::{Error, Source};
use serde_json::{Value, json};

static SOURCE: LazyLock<Arc<dyn Source>> = LazyLock::new(|| Arc::new(Named));

/// Knows a value of every name.
struct Named;

fuzz_target!(|text: &str| {
    thread::scope(|scope| {
        let evaluating = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
            evaluate(text);
            evaluate(&format!("package policy\nallow if {{ {text} }}"));
        });
        evaluating.expect("a thread");
    });
});

fn evaluate(text: &str) {
    let Ok(policy) = Policy::compile(text) else { return };
    let input = json!({ "submods": { "cpu0": { "ear.status": "affirming" } }, "a": [1, 2, "x"] });
    let data = json!({ "plugin": "resource", "resource-path": ["a", "b", "c"], "query": {} });
    let question = || Question { input: input.clone().into(), data: Some(data.clone().into()) };
    let _ = policy.evaluate("allow", question());
    let _ = policy.evaluate_promptly("allow", question());
    let _ = policy.evaluate_with(["allow"], input.clone().into(), &SOURCE, &mut Queried::new());
}

impl Source for Named {
    fn query(&self, name: &str) -> Result<Option<Value>, Error> {
        Ok(Some(json!([name])))
    }
}
