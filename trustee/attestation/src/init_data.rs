//! Initdata on the Trustee's side: its digest, and its entries as claims that policies can read.

use serde_json::{Map, Value};
use wire::initdata::InitData;
use wire::rcar::InitDataBody;

/// What the rest of the appraisal needs of an initdata document.
#[derive(Debug)]
pub(crate) struct InitDataClaims {
    /// Digest of the document's text under its own algorithm.
    pub digest: Vec<u8>,
    /// One member per entry of `[data]`; see [`claims`] for the ones that are treated specially.
    pub claims: Value,
}

impl InitDataClaims {
    /// Reads the document that a guest sent.
    ///
    /// # Errors
    /// [`Error`] for another format than TOML, or a text that is no initdata of version 0.1.0.
    pub fn read(sent: &InitDataBody) -> Result<Self, Error> {
        if sent.format != "toml" {
            return Err(Error::Format(sent.format.chars().take(40).flat_map(char::escape_default).collect()));
        }
        let document = InitData::parse(sent.body.clone())?;
        let table: toml::Table =
            toml::from_str(&sent.body).map_err(|e| Error::Entry("data", e.message().to_owned()))?;
        let entries = table.get("data").and_then(toml::Value::as_table);
        Ok(Self { digest: document.digest(), claims: Value::Object(claims(entries)?) })
    }
}

/// Why initdata was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("initdata has format \"{0}\", only \"toml\" is known")]
    Format(String),
    #[error(transparent)]
    Document(#[from] wire::initdata::Error),
    #[error("initdata's entry {0} is no TOML document: {1}")]
    Entry(&'static str, String),
}

/// `aa.toml` and `cdh.toml` become JSON. A `policy.rego` is not repeated; if `policy_data := {…}` ends it and is
/// JSON, that object is the claim `agent_policy_claims`.
fn claims(entries: Option<&toml::Table>) -> Result<Map<String, Value>, Error> {
    let mut claims = Map::new();
    for (name, entry) in entries.into_iter().flatten() {
        let Some(text) = entry.as_str() else { continue };
        match name.as_str() {
            "aa.toml" => _ = claims.insert(name.clone(), configuration("aa.toml", text)?),
            "cdh.toml" => _ = claims.insert(name.clone(), configuration("cdh.toml", text)?),
            "policy.rego" => {
                if let Some(data) = policy_data(text) {
                    claims.insert("agent_policy_claims".to_owned(), data);
                }
            }
            _ => _ = claims.insert(name.clone(), Value::from(text)),
        }
    }
    Ok(claims)
}

fn configuration(name: &'static str, text: &str) -> Result<Value, Error> {
    let table: toml::Table = toml::from_str(text).map_err(|e| Error::Entry(name, e.message().to_owned()))?;
    Ok(to_json(toml::Value::Table(table)))
}

fn policy_data(policy: &str) -> Option<Value> {
    let (_, data) = policy.split_once(POLICY_DATA)?;
    serde_json::from_str(&format!("{{{data}")).ok()
}

fn to_json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::from(number),
        toml::Value::Float(number) => Value::from(number),
        toml::Value::Boolean(truth) => Value::Bool(truth),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(items) => items.into_iter().map(to_json).collect(),
        toml::Value::Table(table) => table.into_iter().map(|(name, value)| (name, to_json(value))).collect(),
    }
}

const POLICY_DATA: &str = "policy_data := {";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(data: &str) -> InitDataBody {
        let body = format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n{data}");
        InitDataBody { format: "toml".to_owned(), body }
    }

    #[test]
    fn entries_become_claims() {
        let sent = body(
            r#""aa.toml" = '''
[token_configs.kbs]
url = "https://kbs"
since = 2026-01-02
'''
"policy.rego" = '''
package agent_policy
default AllowRequestsFailingPolicy := false
policy_data := {
  "containers": [{"OCI": {"Process": {"User": {"UID": 65535}}}}]
}
'''
"note" = "kept as text"
"#,
        );
        let read = InitDataClaims::read(&sent).unwrap();
        assert_eq!(read.digest.len(), 32);
        assert_eq!(
            read.claims,
            json!({
                "aa.toml": { "token_configs": { "kbs": { "url": "https://kbs", "since": "2026-01-02" } } },
                "agent_policy_claims": { "containers": [{ "OCI": { "Process": { "User": { "UID": 65535 } } } }] },
                "note": "kept as text",
            })
        );
    }

    #[test]
    fn a_policy_without_json_data_is_left_out() {
        for policy in ["package agent_policy", "policy_data := { not json }", "policy_data := {} # a comment"] {
            let read = InitDataClaims::read(&body(&format!("\"policy.rego\" = '''{policy}'''"))).unwrap();
            assert_eq!(read.claims, json!({}), "{policy}");
        }
    }

    #[test]
    fn what_is_not_initdata_is_refused() {
        assert!(matches!(InitDataClaims::read(&body("\"aa.toml\" = 'a = '")), Err(Error::Entry("aa.toml", _))));
        let other = InitDataBody { format: "json".to_owned(), ..body("") };
        assert!(matches!(InitDataClaims::read(&other), Err(Error::Format(_))));
        let broken = InitDataBody { format: "toml".to_owned(), body: "version = 3".to_owned() };
        assert!(matches!(InitDataClaims::read(&broken), Err(Error::Document(_))));
    }
}
