//! The extractor `in-toto`: a DSSE envelope that holds an in-toto Statement (v0.1 or v1), as build services sign them.
//!
//! A subject gives the value named like it: the list of its digests (SHA-256, SHA-384, SHA-512, in this order). The
//! member `expires` of the predicate, if there is one, ends the values.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde::Deserialize;
use serde_json::{Value, json};
use wire::reference_value::pae;

use super::{Extract, Signed, Validity, digest_of, name_of};
use crate::Error;

/// The subjects of an envelope's statement.
pub(super) fn extract(payload: &[u8]) -> Result<Extract, Error> {
    let envelope: Envelope =
        serde_json::from_slice(payload).map_err(|_| Error::Payload("it is not a DSSE envelope in JSON"))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(Error::Payload("its envelope is not of the type application/vnd.in-toto+json"));
    }
    let text = decoded(&envelope.payload).ok_or(Error::Payload("its envelope's payload is not base64"))?;
    let signed = envelope.signed(&text)?;

    let statement: Statement =
        serde_json::from_slice(&text).map_err(|_| Error::Payload("its envelope holds no in-toto statement"))?;
    if !STATEMENTS.contains(&statement.kind.as_str()) {
        return Err(Error::Payload("its statement is neither of in-toto's v0.1 nor of v1"));
    }
    let validity = Validity { from: None, until: statement.predicate.as_ref().map_or(Ok(None), end_of)? };
    let mut values = BTreeMap::new();
    for subject in &statement.subject {
        if values.insert(name_of(&subject.name)?, json!(subject.digests()?)).is_some() {
            return Err(Error::Payload("two of its subjects have the same name, as far as it can be written"));
        }
    }
    Ok(Extract { values, validity, signed })
}

#[derive(Deserialize)]
struct Envelope {
    payload: String,
    #[serde(rename = "payloadType")]
    payload_type: String,
    signatures: Vec<Signature>,
}

/// The key id of a DSSE signature is a hint that nothing covers: what counts is which trusted key verifies.
#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate: Option<Value>,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

impl Envelope {
    fn signed(&self, text: &[u8]) -> Result<Option<Signed>, Error> {
        if self.signatures.len() > MAX_SIGNATURES {
            return Err(Error::Payload("its envelope has more than 16 signatures"));
        }
        let signatures: Option<Vec<_>> = self.signatures.iter().map(|signature| decoded(&signature.sig)).collect();
        let signatures = signatures.ok_or(Error::Payload("a signature of its envelope is not base64"))?;
        let signed = || Signed::Dsse { covered: pae(&self.payload_type, text), signatures };
        Ok((!self.signatures.is_empty()).then(signed))
    }
}

impl Subject {
    fn digests(&self) -> Result<Vec<String>, Error> {
        let mut digests = Vec::new();
        for (algorithm, size) in [("sha256", 32), ("sha384", 48), ("sha512", 64)] {
            if let Some(text) = self.digest.get(algorithm) {
                digests.push(digest_of(text, size).ok_or(Error::Payload("a digest of its subjects is not in hex"))?);
            }
        }
        match digests.len() {
            0 => Err(Error::Payload("one of its subjects has no SHA-256, SHA-384 or SHA-512")),
            _ => Ok(digests),
        }
    }
}

/// An end that can't be read is an error: ignoring it would let the values live longer than they should.
fn end_of(predicate: &Value) -> Result<Option<store::clock::Timestamp>, Error> {
    match predicate.get("expires") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(time)) if time.parse::<store::clock::Timestamp>().is_ok() => Ok(time.parse().ok()),
        Some(_) => Err(Error::Payload("its predicate's expires is not a time such as 2026-11-24T23:59:59Z")),
    }
}

/// DSSE lets its writers choose.
fn decoded(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).or_else(|_| URL_SAFE.decode(text)).ok()
}

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v0.1", "https://in-toto.io/Statement/v1"];
const MAX_SIGNATURES: usize = 16;

#[cfg(test)]
mod tests {
    use super::super::extract;
    use super::*;
    use proptest::prelude::*;

    fn statement(subject: Value) -> Value {
        json!({ "_type": STATEMENTS[1], "subject": subject, "predicateType": "https://slsa.dev/provenance/v1", "predicate": {} })
    }

    fn envelope(statement: &Value) -> Value {
        let payload = STANDARD.encode(statement.to_string());
        json!({ "payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [{ "keyid": "", "sig": "AAAA" }] })
    }

    fn read(envelope: &Value) -> Result<Extract, Error> {
        extract("in-toto", envelope.to_string().as_bytes())
    }

    #[test]
    fn subjects_become_lists_of_digests() {
        let (sha256, sha512) = ("Ab".repeat(32), "cd".repeat(64));
        let subject = json!([
            { "name": "guest/kernel", "digest": { "sha512": sha512, "sha256": sha256, "sha1": "00" } },
            { "name": "ghcr.io/owner/image:v1", "digest": { "sha512": sha512 } },
        ]);
        let statement = statement(subject);
        let extract = read(&envelope(&statement)).unwrap();
        assert_eq!(
            json!(extract.values),
            json!({ "guest/kernel": [sha256.to_lowercase(), sha512], "ghcr.io/owner/image_v1": [sha512] })
        );
        assert_eq!(extract.validity, Validity::default());
        let Some(Signed::Dsse { covered, signatures }) = extract.signed else { panic!("no signature") };
        assert_eq!(covered, pae(PAYLOAD_TYPE, statement.to_string().as_bytes()));
        assert_eq!(signatures, [[0; 3]]);
    }

    #[test]
    fn a_predicate_may_end_the_values() {
        let mut expiring = statement(json!([{ "name": "a", "digest": { "sha256": "00".repeat(32) } }]));
        expiring["predicate"]["expires"] = json!("2030-01-01T00:00:00Z");
        let until = read(&envelope(&expiring)).unwrap().validity.until.unwrap();
        assert_eq!(until.to_string(), "2030-01-01T00:00:00Z");
        expiring["predicate"]["expires"] = json!("tomorrow");
        assert!(read(&envelope(&expiring)).is_err());
    }

    #[test]
    fn what_is_no_statement_is_refused_with_its_reason() {
        let digest = json!({ "sha256": "00".repeat(32) });
        let with = |subject: Value| envelope(&statement(subject));
        let mut other_type = with(json!([{ "name": "a", "digest": digest }]));
        other_type["payloadType"] = json!("text/plain");
        let mut many = other_type.clone();
        (many["payloadType"], many["signatures"]) = (json!(PAYLOAD_TYPE), json!(vec![json!({ "sig": "AAAA" }); 17]));
        for (bad, reason) in [
            (json!({}), "not a DSSE envelope"),
            (other_type, "not of the type"),
            (many, "more than 16"),
            (envelope(&json!({ "_type": "https://in-toto.io/Statement/v2", "subject": [] })), "neither"),
            (envelope(&json!("text")), "no in-toto statement"),
            (with(json!([])), "no values"),
            (with(json!([{ "name": "a", "digest": { "sha1": "00" } }])), "no SHA-256"),
            (with(json!([{ "name": "a", "digest": { "sha256": "00" } }])), "not in hex"),
            (with(json!([{ "name": "a:b", "digest": digest }, { "name": "a_b", "digest": digest }])), "same name"),
        ] {
            let error = read(&bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_statement_makes_it_panic(text in "[{}\\[\\]\":,a-z_0-9]{0,120}") {
            let payload = STANDARD.encode(&text);
            let _ = read(&json!({ "payloadType": PAYLOAD_TYPE, "payload": payload, "signatures": [] }));
        }
    }
}
