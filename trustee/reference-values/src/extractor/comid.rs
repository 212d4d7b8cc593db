//! Reference triples of a Concise Module Identifier (draft-ietf-rats-corim section 5) as names and values.
//!
//! A name joins what identifies a measurement: vendor, model, measurement key, name and serial number, as far as they
//! are there, then `digests` or `raw_bytes`. The value is the list of digests, or the raw bytes, in hex.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use aws_lc_rs::digest::{SHA256, digest};
use ciborium::Value;
use serde_json::json;

use super::cbor::{bytes, encoded, items, member, text_member};
use super::name_of;
use crate::Error;

/// The reference values of all CoMIDs of a manifest.
#[derive(Default)]
pub(super) struct References(BTreeMap<String, Reference>);

/// What a name stands for, and what it was made of.
struct Reference {
    identity: Identity,
    values: Vec<String>,
}

/// Names say less than the manifest: two measurements of one name must be of one identity.
#[derive(Clone, PartialEq)]
struct Identity {
    environment: Vec<u8>,
    key: Option<Vec<u8>>,
    parts: Vec<String>,
}

/// Where measurements are taken. Its digest stands for it, since many measurements may share one of any size.
struct Environment {
    digest: Vec<u8>,
    parts: Vec<String>,
}

impl References {
    /// Adds the reference triples of a CoMID.
    pub(super) fn add(&mut self, comid: &Value) -> Result<(), Error> {
        let Some(triples) = member(comid, 4)? else { return Err(Error::Payload("one of its CoMIDs has no triples")) };
        for triple in member(triples, 0)?.map_or(Ok(&[][..]), items)? {
            let [environment, claims] = items(triple)? else {
                return Err(Error::Payload("one of its reference triples has not two items"));
            };
            let environment = Environment::read(environment)?;
            match claims {
                // A single one, as before the draft's third version.
                Value::Map(_) => self.add_measurement(&environment, claims)?,
                _ => items(claims)?.iter().try_for_each(|claim| self.add_measurement(&environment, claim))?,
            }
        }
        Ok(())
    }

    /// The values by name. Digests are a list of alternatives, raw bytes are one value.
    pub(super) fn into_values(self) -> BTreeMap<String, serde_json::Value> {
        let value = |(name, reference): (String, Reference)| match name.ends_with(RAW_BYTES) {
            true => (name, json!(reference.values.first())),
            false => (name, json!(reference.values)),
        };
        self.0.into_iter().map(value).collect()
    }

    fn add_measurement(&mut self, environment: &Environment, measurement: &Value) -> Result<(), Error> {
        let key = member(measurement, 0)?;
        let values = member(measurement, 1)?.ok_or(Error::Payload("one of its measurements has no values"))?;
        let mut parts = environment.parts.clone();
        parts.extend(key.map_or(Ok(None), part_of_key)?);
        for part in [11, 8] {
            parts.extend(text_member(values, part)?.map(name_of).transpose()?);
        }
        let identity =
            Identity { environment: environment.digest.clone(), key: key.map(digest_of_item).transpose()?, parts };

        if let Some(digests) = member(values, 2)? {
            for digest in items(digests)? {
                let [_algorithm, digest] = items(digest)? else {
                    return Err(Error::Payload("one of its digests has not two items"));
                };
                self.insert(&identity, DIGESTS, hex::encode(bytes(digest)?))?;
            }
        }
        // A masked value (tag 563, or one with the older mask) is no value to compare with.
        if let (Some(Value::Tag(560, raw)), None) = (member(values, 4)?, member(values, 5)?) {
            self.insert(&identity, RAW_BYTES, hex::encode(bytes(raw)?))?;
        }
        Ok(())
    }

    fn insert(&mut self, identity: &Identity, form: &'static str, value: String) -> Result<(), Error> {
        let name = identity.parts.iter().map(String::as_str).chain([form]).collect::<Vec<_>>().join("/");
        match self.0.entry(name) {
            Entry::Vacant(entry) => {
                entry.insert(Reference { identity: identity.clone(), values: vec![value] });
            }
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                if known.identity != *identity {
                    return Err(Error::Payload("two of its measurements would have the same name"));
                }
                if !known.values.contains(&value) {
                    if form == RAW_BYTES || known.values.len() == MAX_DIGESTS {
                        return Err(Error::Payload("one of its measurements has two raw values, or over 1000 digests"));
                    }
                    known.values.push(value);
                }
            }
        }
        Ok(())
    }
}

impl Environment {
    fn read(environment: &Value) -> Result<Self, Error> {
        let mut parts = Vec::new();
        if let Some(class) = member(environment, 0)? {
            for part in [1, 2] {
                parts.extend(text_member(class, part)?.map(name_of).transpose()?);
            }
        }
        Ok(Self { digest: digest_of_item(environment)?, parts })
    }
}

fn digest_of_item(item: &Value) -> Result<Vec<u8>, Error> {
    Ok(digest(&SHA256, &encoded(item)?).as_ref().to_vec())
}

/// A text, a number or a UUID; other keys have no agreed text.
fn part_of_key(key: &Value) -> Result<Option<String>, Error> {
    Ok(match key {
        Value::Text(text) => Some(name_of(text)?),
        Value::Integer(number) => u64::try_from(*number).ok().map(|number| format!("claim{number}")),
        Value::Tag(37, uuid) => uuid.as_bytes().filter(|uuid| uuid.len() == 16).map(|uuid| {
            let hex = hex::encode(uuid);
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }),
        _ => None,
    })
}

const DIGESTS: &str = "digests";
const RAW_BYTES: &str = "raw_bytes";
const MAX_DIGESTS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(members: &[(i64, Value)]) -> Value {
        Value::Map(members.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect())
    }

    fn tag(tag: u64, value: Value) -> Value {
        Value::Tag(tag, Box::new(value))
    }

    fn environment(vendor: &str) -> Value {
        map(&[(0, map(&[(0, tag(600, Value::Bytes(vec![1]))), (1, vendor.into()), (2, "Road Runner".into())]))])
    }

    fn digests(of: &[u8]) -> (i64, Value) {
        let digest = |byte: &u8| Value::Array(vec![Value::from(1), Value::Bytes(vec![*byte; 2])]);
        (2, Value::Array(of.iter().map(digest).collect()))
    }

    fn measurement(key: Option<Value>, values: &[(i64, Value)]) -> Value {
        let mut members: Vec<_> = key.into_iter().map(|key| (0, key)).collect();
        members.push((1, map(values)));
        map(&members)
    }

    fn comid(triples: &[(Value, Vec<Value>)]) -> Value {
        let triples = triples.iter().map(|(env, claims)| Value::Array(vec![env.clone(), Value::Array(claims.clone())]));
        map(&[(4, map(&[(0, Value::Array(triples.collect()))]))])
    }

    fn values(triples: &[(Value, Vec<Value>)]) -> Result<serde_json::Value, Error> {
        let mut references = References::default();
        references.add(&comid(triples))?;
        Ok(json!(references.into_values()))
    }

    #[test]
    fn names_join_what_identifies_a_measurement() {
        let uuid = tag(37, Value::Bytes((0x10..0x20).collect()));
        let raw = (4, tag(560, Value::Bytes(vec![0xca, 0xfe])));
        let masked = (4, tag(563, Value::Array(vec![Value::Bytes(vec![1]), Value::Bytes(vec![1])])));
        let found = values(&[(
            environment("ACME"),
            vec![
                measurement(Some(uuid), &[digests(&[1, 2]), raw]),
                measurement(Some(Value::from(7)), &[digests(&[3]), (11, "boot".into()), (8, "s/n 1".into())]),
                measurement(Some("key".into()), &[digests(&[4]), masked]),
                measurement(Some(tag(111, Value::Bytes(vec![1]))), &[digests(&[5])]),
            ],
        )]);
        assert_eq!(
            found.unwrap(),
            json!({
                "ACME/Road_Runner/10111213-1415-1617-1819-1a1b1c1d1e1f/digests": ["0101", "0202"],
                "ACME/Road_Runner/10111213-1415-1617-1819-1a1b1c1d1e1f/raw_bytes": "cafe",
                "ACME/Road_Runner/claim7/boot/s/n_1/digests": ["0303"],
                "ACME/Road_Runner/key/digests": ["0404"],
                "ACME/Road_Runner/digests": ["0505"],
            })
        );
    }

    #[test]
    fn alternatives_of_one_measurement_are_one_list() {
        let claim = |of: &[u8]| measurement(Some("key".into()), &[digests(of)]);
        let found =
            values(&[(environment("a"), vec![claim(&[1, 2]), claim(&[2])]), (environment("a"), vec![claim(&[3])])]);
        assert_eq!(found.unwrap(), json!({ "a/Road_Runner/key/digests": ["0101", "0202", "0303"] }));
    }

    #[test]
    fn different_measurements_never_share_a_name() {
        let oid = |byte| Some(tag(111, Value::Bytes(vec![byte])));
        let raw = |byte| (4, tag(560, Value::Bytes(vec![byte])));
        for triples in [
            vec![(
                environment("a"),
                vec![measurement(oid(1), &[digests(&[1])]), measurement(oid(2), &[digests(&[2])])],
            )],
            vec![
                (environment("a b"), vec![measurement(None, &[digests(&[1])])]),
                (environment("a_b"), vec![measurement(None, &[digests(&[1])])]),
            ],
            vec![(environment("a"), vec![measurement(None, &[raw(1)]), measurement(None, &[raw(2)])])],
        ] {
            assert!(matches!(values(&triples), Err(Error::Payload(_))));
        }
    }

    #[test]
    fn a_triple_with_a_single_measurement_is_read() {
        let triple = Value::Array(vec![environment("a"), measurement(None, &[digests(&[1])])]);
        let mut references = References::default();
        references.add(&map(&[(4, map(&[(0, Value::Array(vec![triple]))]))])).unwrap();
        assert_eq!(json!(references.into_values()), json!({ "a/Road_Runner/digests": ["0101"] }));
    }

    #[test]
    fn what_is_no_comid_is_refused() {
        for bad in [
            Value::Null,
            map(&[]),
            map(&[(4, map(&[(0, Value::Null)]))]),
            map(&[(4, map(&[(0, Value::Array(vec![Value::Array(vec![])]))]))]),
            comid(&[(environment("a"), vec![map(&[])])]),
            comid(&[(environment("a"), vec![measurement(None, &[(2, Value::Array(vec![Value::Null]))])])]),
            comid(&[(Value::Null, vec![measurement(None, &[digests(&[1])])])]),
        ] {
            assert!(References::default().add(&bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_digest_is_kept(of in prop::collection::btree_set(any::<u8>(), 1..20)) {
            let of: Vec<u8> = of.into_iter().collect();
            let found = values(&[(environment("a"), vec![measurement(None, &[digests(&of)])])]).unwrap();
            prop_assert_eq!(found["a/Road_Runner/digests"].as_array().unwrap().len(), of.len());
        }
    }
}
