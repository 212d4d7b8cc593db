//! A policy as an administrator uploads it: checked, parsed and evaluated within its bounds.
#![no_main]

use attestation::policy::{Policy, Question};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|text: &str| {
    for text in [text.to_owned(), format!("package policy\nallow if {{ {text} }}")] {
        if let Ok(policy) = Policy::compile(&text) {
            let input = json!({ "submods": { "cpu0": { "ear.status": "affirming" } }, "a": [1, 2, "x"] });
            let data = json!({ "plugin": "resource", "resource-path": ["a", "b", "c"], "query": {} });
            let _ = policy.evaluate("allow", Question { input: input.into(), data: Some(data.into()) });
        }
    }
});
