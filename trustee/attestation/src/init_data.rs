//! Initdata on the Trustee's side: its digest, and its entries as claims that policies can read.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::excerpt::excerpt;
use crate::hash::HashAlgorithm;

/// What is known of a guest's initdata.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum InitDataInput {
    /// The guest has none.
    #[default]
    None,
    /// Its digest alone, up to 64 bytes.
    Digest(Vec<u8>),
    /// The document's exact text.
    Toml(String),
}

/// What the rest of the appraisal needs of initdata.
#[derive(Debug)]
pub(crate) struct InitDataClaims {
    /// Digest of the document's text under its own algorithm.
    pub digest: Vec<u8>,
    /// One member per entry of `[data]`; see [`claims`] for the ones that are treated specially. Null for a digest.
    pub claims: Value,
}

impl InitDataClaims {
    /// Reads what was sent; nothing if that is nothing.
    ///
    /// # Errors
    /// [`Error`] for a digest of no hash, or a text that is no initdata of version 0.1.0.
    pub fn read(sent: &InitDataInput) -> Result<Option<Self>, Error> {
        match sent {
            InitDataInput::None => Ok(None),
            InitDataInput::Digest(digest) if digest.is_empty() || digest.len() > MAX_DIGEST => {
                Err(Error::Digest(digest.len()))
            }
            InitDataInput::Digest(digest) => Ok(Some(Self { digest: digest.clone(), claims: Value::Null })),
            InitDataInput::Toml(text) if text.len() > MAX_TEXT => Err(Error::TooLarge),
            InitDataInput::Toml(text) => {
                let document: Document = toml::from_str(text).map_err(|e| Error::Document(e.message().to_owned()))?;
                if document.version != VERSION {
                    return Err(Error::Version(excerpt(&document.version)));
                }
                let digest = document.algorithm.digest(text.as_bytes());
                Ok(Some(Self { digest, claims: Value::Object(claims(document.data)?) }))
            }
        }
    }
}

/// Why initdata was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("initdata has format \"{0}\", only \"toml\" is known")]
    Format(String),
    #[error("initdata's digest has {0} bytes, a hash has 1 to {MAX_DIGEST}")]
    Digest(usize),
    #[error("initdata is larger than {MAX_TEXT} bytes")]
    TooLarge,
    #[error("initdata is not a valid document: {0}")]
    Document(String),
    #[error("initdata has version \"{0}\", only \"{VERSION}\" is known")]
    Version(String),
    #[error("initdata's entry {0} is no TOML document: {1}")]
    Entry(&'static str, String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: String,
    algorithm: HashAlgorithm,
    data: BTreeMap<String, String>,
}

/// `aa.toml` and `cdh.toml` become JSON. A `policy.rego` is not repeated; if `policy_data := {…}` ends it and is
/// JSON, that object is the claim `agent_policy_claims`.
fn claims(entries: BTreeMap<String, String>) -> Result<Map<String, Value>, Error> {
    let mut claims = Map::new();
    for (name, text) in entries {
        match name.as_str() {
            "aa.toml" => _ = claims.insert(name, configuration("aa.toml", &text)?),
            "cdh.toml" => _ = claims.insert(name, configuration("cdh.toml", &text)?),
            "policy.rego" => {
                if let Some(data) = policy_data(&text) {
                    claims.insert("agent_policy_claims".to_owned(), data);
                }
            }
            _ => _ = claims.insert(name, Value::from(text)),
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
const VERSION: &str = "0.1.0";
const MAX_DIGEST: usize = 64;
/// As much as a guest reads of its own.
const MAX_TEXT: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn body(data: &str) -> InitDataInput {
        InitDataInput::Toml(format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n{data}"))
    }

    fn read(data: &str) -> InitDataClaims {
        InitDataClaims::read(&body(data)).unwrap().unwrap()
    }

    #[test]
    fn entries_become_claims() {
        let read = read(
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
            assert_eq!(read(&format!("\"policy.rego\" = '''{policy}'''")).claims, json!({}), "{policy}");
        }
    }

    #[test]
    fn each_algorithm_digests_the_exact_text() {
        for (name, algorithm) in [
            ("sha256", HashAlgorithm::Sha256),
            ("sha384", HashAlgorithm::Sha384),
            ("sha512", HashAlgorithm::Sha512),
            ("sm3", HashAlgorithm::Sm3),
        ] {
            let text = format!("version = \"0.1.0\"\nalgorithm = \"{name}\"\n[data]\n");
            let read = InitDataClaims::read(&InitDataInput::Toml(text.clone())).unwrap().unwrap();
            assert_eq!(read.digest, algorithm.digest(text.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_digest_alone_has_no_claims() {
        let read = InitDataClaims::read(&InitDataInput::Digest(vec![7; 48])).unwrap().unwrap();
        assert_eq!((read.digest, read.claims), (vec![7; 48], Value::Null));
        assert!(InitDataClaims::read(&InitDataInput::None).unwrap().is_none());
        for length in [0, 65] {
            let refused = InitDataClaims::read(&InitDataInput::Digest(vec![7; length]));
            assert!(matches!(refused, Err(Error::Digest(_))), "{length}");
        }
    }

    #[test]
    fn what_is_not_initdata_is_refused() {
        assert!(matches!(InitDataClaims::read(&body("\"aa.toml\" = 'a = '")), Err(Error::Entry("aa.toml", _))));
        for (text, reason) in [
            ("version = 3", "expected a string"),
            ("version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]\n", "only \"0.1.0\""),
            ("version = \"0.1.0\"\nalgorithm = \"md5\"\n[data]\n", "md5"),
            ("version = \"0.1.0\"\nalgorithm = \"sha256\"\nextra = 1\n[data]\n", "extra"),
        ] {
            let refused = InitDataClaims::read(&InitDataInput::Toml(text.to_owned())).unwrap_err().to_string();
            assert!(refused.contains(reason), "{text:?}: {refused}");
        }
        let large = InitDataInput::Toml("#".repeat(MAX_TEXT + 1));
        assert!(matches!(InitDataClaims::read(&large), Err(Error::TooLarge)));
    }
}
