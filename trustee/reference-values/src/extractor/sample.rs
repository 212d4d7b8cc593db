//! The extractor `sample`: a JSON object from name to value, taken as it is.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Extract, Validity};
use crate::Error;

/// The members of a JSON object.
pub(super) fn extract(payload: &[u8]) -> Result<Extract, Error> {
    let values: BTreeMap<String, Value> =
        serde_json::from_slice(payload).map_err(|_| Error::Payload("it is not a JSON object of names and values"))?;
    Ok(Extract { values, validity: Validity::default(), signed: None })
}

#[cfg(test)]
mod tests {
    use super::super::extract;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    #[test]
    fn values_are_taken_as_they_are() {
        let values = extract("sample", br#"{ "svn": ["1"], "a/b": { "deep": [1, null] } }"#).unwrap().values;
        assert_eq!(json!(values), json!({ "svn": ["1"], "a/b": { "deep": [1, null] } }));
    }

    #[test]
    fn the_bounds_hold() {
        let many = (0..=1000).map(|i| (i.to_string(), Value::Null)).collect::<Map<_, _>>();
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let large = format!("{{\"a\":\"{}\"}}", "A".repeat(1 << 20));
        for bad in [&json!(many).to_string(), &deep, &large, "", "{}", "[1]", "{\"a\":1} 2"] {
            assert!(extract("sample", bad.as_bytes()).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_object_is_taken(names in prop::collection::btree_map("[a-z/]{1,9}", any::<i64>(), 1..9)) {
            prop_assert_eq!(json!(extract("sample", json!(names).to_string().as_bytes()).unwrap().values), json!(names));
        }
    }
}
