//! Reference values as the store has them: upstream's record, with its provenance.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::clock::Timestamp;
use store::{Key, Namespace, Store};

use crate::Error;
use crate::error::excerpt;

/// One reference value as it is stored.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Record {
    /// Version of the record's form, that of the message it came in.
    pub version: String,
    /// What policies ask for.
    pub name: String,
    /// When the value stops being one.
    pub expiration: Timestamp,
    /// Any JSON; most policies expect a list of acceptable values.
    pub value: Value,
    /// Where the value came from; unknown for records that upstream wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// Where a value came from.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Provenance {
    /// The id of the key that vouched for it ([`wire::reference_value::key_id`]); nothing if it was not signed.
    pub signer: Option<String>,
    /// The type of the message.
    pub extractor: String,
    /// When it was registered.
    pub registered: Timestamp,
}

/// A version of a record.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PastRecord {
    /// The store's number of the version.
    pub version: u64,
    /// When it was written.
    pub time: Timestamp,
    /// Whether the name was removed then.
    pub deleted: bool,
    /// What was written; nothing if the name was removed.
    pub record: Option<Record>,
}

impl Record {
    /// The record as its key and value in the store.
    pub(crate) fn to_entry(&self) -> Result<(Key, Vec<u8>), Error> {
        let key = Key::parse(&self.name).map_err(|_| Error::Name(excerpt(&self.name)))?;
        let bytes = serde_json::to_vec(self).map_err(|_| Error::Payload("its values are no JSON"))?;
        if bytes.len() > MAX_RECORD {
            return Err(Error::Payload("one of its values is larger than 256 KiB"));
        }
        Ok((key, bytes))
    }

    fn parse(key: &Key, bytes: &[u8]) -> Result<Self, Error> {
        let record: Option<Self> = serde_json::from_slice(bytes).ok();
        record.filter(|record| record.name == key.as_str()).ok_or_else(|| Error::Record(key.as_str().to_owned()))
    }
}

/// All records by name, each as far as it can be read.
pub(crate) async fn read_all(
    store: &Store,
    namespace: Namespace,
) -> Result<Vec<(String, Result<Record, Error>)>, Error> {
    let mut records = Vec::new();
    let mut keys = store.list(namespace, "").await?;
    while let Some(last) = keys.last().cloned() {
        for key in keys {
            let record = match store.get(namespace, &key).await {
                Ok(Some(entry)) => Record::parse(&key, &entry.value),
                Ok(None) => continue,
                Err(damaged @ store::Error::Damaged { .. }) => Err(damaged.into()),
                Err(error) => return Err(error.into()),
            };
            records.push((key.as_str().to_owned(), record));
        }
        keys = store.list_after(namespace, "", Some(&last), PAGE).await?;
    }
    Ok(records)
}

/// The versions of a record, newest first.
pub(crate) async fn history(store: &Store, namespace: Namespace, key: &Key) -> Result<Vec<PastRecord>, Error> {
    let mut past = Vec::new();
    for store::Version { version, time, deleted, .. } in store.history(namespace, key).await? {
        let entry = store.at(namespace, key, version).await?;
        let record = entry.map(|entry| Record::parse(key, &entry.value)).transpose()?;
        past.push(PastRecord { version, time, deleted, record });
    }
    Ok(past)
}

const PAGE: usize = store::MAX_LIST as usize;
/// Every policy that asks for a value gets a copy of it.
const MAX_RECORD: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn upstreams_record_is_read_and_names_must_agree() {
        let bytes = br#"{"version":"0.1.0","name":"svn","expiration":"2030-01-01T00:00:00Z","value":["1"]}"#;
        let key = Key::parse("svn").unwrap();
        let record = Record::parse(&key, bytes).unwrap();
        assert_eq!((&record.value, &record.provenance), (&json!(["1"]), &None));
        assert_eq!(record.to_entry().unwrap(), (key, bytes.to_vec()));

        let other = Key::parse("other").unwrap();
        assert!(matches!(Record::parse(&other, bytes), Err(Error::Record(name)) if name == "other"));
        assert!(Record::parse(&other, b"{}").is_err());
    }

    #[test]
    fn a_record_has_a_name_and_a_bound() {
        let record = |name: &str, value: Value| Record {
            version: "0.1.0".to_owned(),
            name: name.to_owned(),
            expiration: Timestamp::from_unix(1),
            value,
            provenance: None,
        };
        assert!(matches!(record("a b", json!(1)).to_entry(), Err(Error::Name(_))));
        assert!(matches!(record("", json!(1)).to_entry(), Err(Error::Name(_))));
        assert!(matches!(record("a", json!("x".repeat(256 << 10))).to_entry(), Err(Error::Payload(_))));
    }
}
