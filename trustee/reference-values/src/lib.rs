//! What good measurements look like: reference values, registered by name, kept in the store and in memory.
//!
//! A value expires 365 days after its registration; a query after that finds nothing. Registering a name again
//! replaces its value and starts a new year.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod sample;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::clock::{Clock, Timestamp};
use store::{Key, Namespace, Store};
use wire::reference_value::{Message, VERSION};

/// The registered reference values. Clones share the same set.
#[derive(Clone)]
pub struct ReferenceValues {
    store: Store,
    clock: Clock,
    records: Arc<RwLock<Arc<Records>>>,
    writing: Arc<tokio::sync::Mutex<()>>,
}

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
}

impl ReferenceValues {
    /// Loads all values of the store.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Record`] if a record can't be read.
    pub async fn load(store: Store, clock: Clock) -> Result<Self, Error> {
        let mut records = Records::new();
        for key in store.list(NAMESPACE, "").await? {
            let Some(entry) = store.get(NAMESPACE, &key).await? else { continue };
            let record: Record =
                serde_json::from_slice(&entry.value).map_err(|_| Error::Record(key.as_str().to_owned()))?;
            records.insert(key.as_str().to_owned(), record);
        }
        let records = Arc::new(RwLock::new(Arc::new(records)));
        Ok(Self { store, clock, records, writing: Arc::default() })
    }

    /// Registers the values of a message, all or none, and returns their names.
    ///
    /// # Errors
    /// [`Error::Version`], [`Error::Extractor`], [`Error::Payload`], [`Error::Name`] or [`Error::TooMany`] for a
    /// message that can't be registered, [`Error::Store`] if it can't be kept.
    pub async fn register(&self, message: &Message) -> Result<Vec<String>, Error> {
        if message.version != VERSION {
            return Err(Error::Version(excerpt(&message.version)));
        }
        let values = match message.kind.as_str() {
            "sample" => sample::extract(&message.payload)?,
            other => return Err(Error::Extractor(excerpt(other))),
        };
        let expiration = self.clock.now().after(LIFETIME);
        let mut entries = Vec::with_capacity(values.len());
        let mut registered = Vec::with_capacity(values.len());
        for (name, value) in values {
            let key = Key::parse(&name).map_err(|_| Error::Name(excerpt(&name)))?;
            let record = Record { version: VERSION.to_owned(), name, expiration, value };
            entries.push((key, serde_json::to_vec(&record).map_err(|_| Error::Payload("its values are no JSON"))?));
            registered.push(record);
        }

        let _one_at_a_time = self.writing.lock().await;
        let mut records = self.records();
        if records.len() + registered.len() > MAX_RECORDS {
            return Err(Error::TooMany(MAX_RECORDS));
        }
        self.store.put_all(NAMESPACE, &entries).await?;
        let names = registered.iter().map(|record| record.name.clone()).collect();
        Arc::make_mut(&mut records).extend(registered.into_iter().map(|record| (record.name.clone(), record)));
        self.replace(records);
        Ok(names)
    }

    /// The value of a name, unless it is unknown or has expired.
    pub fn query(&self, name: &str) -> Option<Value> {
        let records = self.records();
        let record = records.get(name)?;
        (self.clock.now() < record.expiration).then(|| record.value.clone())
    }

    /// All records that have not expired, sorted by name.
    pub fn list(&self) -> Vec<Record> {
        let now = self.clock.now();
        self.records().values().filter(|record| now < record.expiration).cloned().collect()
    }

    /// Removes a name; false if it was unknown.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    pub async fn delete(&self, name: &str) -> Result<bool, Error> {
        let Ok(key) = Key::parse(name) else { return Ok(false) };
        let _one_at_a_time = self.writing.lock().await;
        let known = self.store.delete(NAMESPACE, &key).await?;
        let mut records = self.records();
        Arc::make_mut(&mut records).remove(name);
        self.replace(records);
        Ok(known)
    }

    fn records(&self) -> Arc<Records> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, records: Arc<Records>) {
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = records;
    }
}

/// Why reference values could not be registered or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reference value message has version \"{0}\", this Trustee speaks {VERSION}")]
    Version(String),
    #[error("no extractor \"{0}\" for reference values; \"sample\" is one")]
    Extractor(String),
    #[error("payload of the reference value message: {0}")]
    Payload(&'static str),
    #[error("\"{0}\" can't name a reference value: use the characters a-z A-Z 0-9 - _ . /")]
    Name(String),
    #[error("more than {0} reference values: delete some first")]
    TooMany(usize),
    #[error("record of reference value {0} can't be read: register it again")]
    Record(String),
    #[error(transparent)]
    Store(#[from] store::Error),
}

type Records = BTreeMap<String, Record>;

fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

const NAMESPACE: Namespace = Namespace::new("reference-value");
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
const MAX_RECORDS: usize = store::MAX_LIST as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn message(values: &Value) -> Message {
        let payload = STANDARD.encode(values.to_string());
        Message { version: VERSION.to_owned(), kind: "sample".to_owned(), payload }
    }

    #[tokio::test]
    async fn values_are_found_by_name_after_a_restart_too() {
        let store = Store::memory().await.unwrap();
        let values = ReferenceValues::load(store.clone(), Clock::system()).await.unwrap();
        let names = values.register(&message(&json!({ "svn": ["1"], "a/b": { "deep": [1, null] } }))).await.unwrap();
        assert_eq!(names, ["a/b", "svn"]);

        for values in [values, ReferenceValues::load(store, Clock::system()).await.unwrap()] {
            assert_eq!(values.query("svn"), Some(json!(["1"])));
            assert_eq!(values.query("a/b"), Some(json!({ "deep": [1, null] })));
            assert_eq!(values.query("other"), None);
            assert_eq!(values.list().len(), 2);
        }
    }

    #[tokio::test]
    async fn a_value_ends_after_a_year_and_a_new_registration_prolongs_it() {
        let seconds = Arc::new(AtomicU64::new(1_000));
        let clock = Clock::set_by(seconds.clone());
        let values = ReferenceValues::load(Store::memory().await.unwrap(), clock).await.unwrap();
        values.register(&message(&json!({ "svn": 1 }))).await.unwrap();

        seconds.store(1_000 + LIFETIME.as_secs() - 1, Ordering::Relaxed);
        assert_eq!(values.query("svn"), Some(json!(1)));
        seconds.fetch_add(1, Ordering::Relaxed);
        assert_eq!(values.query("svn"), None);
        assert!(values.list().is_empty());

        values.register(&message(&json!({ "svn": 2 }))).await.unwrap();
        assert_eq!(values.query("svn"), Some(json!(2)));
    }

    #[tokio::test]
    async fn a_deleted_value_is_gone() {
        let values = ReferenceValues::load(Store::memory().await.unwrap(), Clock::system()).await.unwrap();
        values.register(&message(&json!({ "svn": 1 }))).await.unwrap();
        assert!(values.delete("svn").await.unwrap());
        assert!(!values.delete("svn").await.unwrap());
        assert!(!values.delete("no key ü").await.unwrap());
        assert_eq!(values.query("svn"), None);
    }

    #[tokio::test]
    async fn a_bad_message_registers_nothing() {
        let values = ReferenceValues::load(Store::memory().await.unwrap(), Clock::system()).await.unwrap();
        let good = message(&json!({ "svn": 1 }));
        for bad in [
            Message { version: "9".to_owned(), ..good.clone() },
            Message { kind: "in-toto".to_owned(), ..good.clone() },
            Message { payload: "*".to_owned(), ..good.clone() },
            message(&json!([1])),
            message(&json!({})),
            message(&json!({ "svn": 1, "bad name": 2 })),
        ] {
            assert!(values.register(&bad).await.is_err(), "{bad:?} passed");
        }
        assert!(values.list().is_empty());
    }
}
