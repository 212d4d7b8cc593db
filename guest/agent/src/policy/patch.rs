//! The part of JSON Patch (RFC 6902) with which a policy keeps state: add, replace, remove and test below `/pstate`.

use serde::Deserialize;
use serde_json::{Map, Value};

/// One change that a policy wants made to its state.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Operation {
    Add { path: String, value: Value },
    Replace { path: String, value: Value },
    Remove { path: String },
    Test { path: String, value: Value },
}

impl Operation {
    /// Applies all operations to `document`, or none of them.
    ///
    /// # Errors
    /// A sentence that names the operation that failed and why.
    pub(super) fn apply_all(operations: &[Self], document: &mut Value) -> Result<(), String> {
        let mut changed = document.clone();
        for operation in operations {
            operation.apply(&mut changed)?;
        }
        // Each request could wrap the state once more; a value too deep can't even be dropped.
        if depth(&changed) > MAX_DEPTH {
            return Err(format!("the state would be nested more than {MAX_DEPTH} deep"));
        }
        *document = changed;
        Ok(())
    }

    fn apply(&self, document: &mut Value) -> Result<(), String> {
        let path = self.path();
        if path != ROOT && !path.starts_with("/pstate/") {
            return Err(format!("{path:?} is not below {ROOT:?}"));
        }
        if path.len() > MAX_PATH || path.matches('/').count() > MAX_DEPTH {
            return Err(format!("{:?}... is too long a path", path.chars().take(40).collect::<String>()));
        }
        let (parent, last) = path.rsplit_once('/').unwrap_or_default();
        let last = last.replace("~1", "/").replace("~0", "~");
        let parent = document.pointer_mut(parent).ok_or_else(|| format!("nothing holds {path:?}"))?;

        match (self, parent) {
            (Self::Add { value, .. }, Value::Object(members)) => {
                members.insert(last, value.clone());
            }
            (Self::Add { value, .. }, Value::Array(items)) => {
                let at = if last == "-" { items.len() } else { index(&last, items.len() + 1)? };
                items.insert(at, value.clone());
            }
            (Self::Replace { value, .. }, Value::Object(members)) => *member(members, &last)? = value.clone(),
            (Self::Replace { value, .. }, Value::Array(items)) => {
                let at = index(&last, items.len())?;
                items[at] = value.clone();
            }
            (Self::Remove { .. }, Value::Object(members)) => {
                members.remove(&last).ok_or_else(|| format!("{path:?} is not there"))?;
            }
            (Self::Remove { .. }, Value::Array(items)) => {
                items.remove(index(&last, items.len())?);
            }
            (Self::Test { value, .. }, Value::Object(members)) => equal(member(members, &last)?, value, path)?,
            (Self::Test { value, .. }, Value::Array(items)) => {
                let at = index(&last, items.len())?;
                equal(&items[at], value, path)?;
            }
            _ => return Err(format!("what holds {path:?} is neither an object nor an array")),
        }
        Ok(())
    }

    fn path(&self) -> &str {
        match self {
            Self::Add { path, .. } | Self::Replace { path, .. } | Self::Remove { path } | Self::Test { path, .. } => {
                path
            }
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or_default(),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}

fn member<'a>(members: &'a mut Map<String, Value>, name: &str) -> Result<&'a mut Value, String> {
    members.get_mut(name).ok_or_else(|| format!("there is no member {name:?}"))
}

fn index(text: &str, end: usize) -> Result<usize, String> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    match text.parse::<usize>() {
        Ok(at) if plain && at < end => Ok(at),
        _ => Err(format!("{text:?} is not an index of an array of that length")),
    }
}

fn equal(found: &Value, expected: &Value, path: &str) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{path:?} does not have the value that was tested for")) }
}

const ROOT: &str = "/pstate";
const MAX_PATH: usize = 1024;
const MAX_DEPTH: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn apply(document: Value, operations: Value) -> Result<Value, String> {
        let operations: Vec<Operation> = serde_json::from_value(operations).map_err(|e| e.to_string())?;
        let mut document = document;
        Operation::apply_all(&operations, &mut document).map(|()| document)
    }

    #[test]
    fn state_is_added_replaced_and_removed() {
        let start = json!({"pstate": {"list": [1, 3], "a/b": 1}});
        for (operations, state) in [
            (
                json!([{"op": "add", "path": "/pstate/name", "value": "x"}]),
                json!({"list": [1, 3], "a/b": 1, "name": "x"}),
            ),
            (json!([{"op": "add", "path": "/pstate/list/1", "value": 2}]), json!({"list": [1, 2, 3], "a/b": 1})),
            (json!([{"op": "add", "path": "/pstate/list/-", "value": 4}]), json!({"list": [1, 3, 4], "a/b": 1})),
            (json!([{"op": "replace", "path": "/pstate/a~1b", "value": 2}]), json!({"list": [1, 3], "a/b": 2})),
            (json!([{"op": "remove", "path": "/pstate/list/0"}]), json!({"list": [3], "a/b": 1})),
            (json!([{"op": "replace", "path": "/pstate", "value": {}}]), json!({})),
            (json!([{"op": "test", "path": "/pstate/a~1b", "value": 1}]), json!({"list": [1, 3], "a/b": 1})),
        ] {
            assert_eq!(apply(start.clone(), operations.clone()), Ok(json!({"pstate": state})), "{operations}");
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        for operations in [
            json!([{"op": "add", "path": "/other", "value": 1}]),
            json!([{"op": "add", "path": "", "value": 1}]),
            json!([{"op": "add", "path": "/pstatex", "value": 1}]),
            json!([{"op": "replace", "path": "/pstate/none", "value": 1}]),
            json!([{"op": "remove", "path": "/pstate/none"}]),
            json!([{"op": "add", "path": "/pstate/list/01", "value": 1}]),
            json!([{"op": "add", "path": "/pstate/list/9", "value": 1}]),
            json!([{"op": "test", "path": "/pstate/list", "value": []}]),
            json!([{"op": "copy", "path": "/pstate/list", "from": "/pstate"}]),
            json!([{"op": "add", "path": "/pstate/x", "value": 1}, {"op": "remove", "path": "/pstate/none"}]),
        ] {
            assert!(apply(json!({"pstate": {"list": [1]}}), operations.clone()).is_err(), "{operations}");
        }
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in "(/pstate)?[/a-c0-9~-]{0,20}") {
            let _ = apply(json!({"pstate": {"a": [1, {"b": []}]}}), json!([{"op": "remove", "path": path}]));
            let _ = apply(json!({"pstate": {"a": [1, {"b": []}]}}), json!([{"op": "add", "path": path, "value": 1}]));
        }
    }
}
