//! What good measurements look like: reference values, registered by name, kept in the store and in memory.
//!
//! A message gives values through the extractor of its type, all or none. It must be signed by a trusted signer, with
//! the message's own signature or with that of its payload, unless the settings allow otherwise; a signature that does
//! not verify is refused in any case. A value ends when its payload says so, or else 365 days after its registration; a
//! query after that finds nothing. Registering a name again replaces its value; the store keeps the last versions.
//!
//! What is in memory follows the store: what another replica registers, or somebody writes into an upstream store's
//! file, is answered without a restart.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod extractor;
mod record;
mod signer;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use store::clock::Clock;
use store::{Changes, If, Key, Namespace, Store};
use tokio_util::task::AbortOnDropHandle;
use wire::reference_value::{Message, VERSION};

pub use error::{Error, Kind};
pub use extractor::{Curve, Extract, Signed, Validity, extract};
pub use record::{PastRecord, Provenance, Record};

use error::excerpt;
use extractor::{MAX_PAYLOAD, TOO_LARGE};
use signer::Signers;

/// What policies ask while they run.
pub trait Source: Send + Sync {
    /// The value of a name, unless it is unknown or has ended. May block: it is called on threads that may.
    ///
    /// # Errors
    /// [`Error::Remote`] if the values are kept elsewhere and that place does not answer.
    fn query(&self, name: &str) -> Result<Option<Value>, Error>;

    /// Whether it answers from memory, so that any thread may ask.
    fn is_in_memory(&self) -> bool {
        false
    }
}

/// Who may vouch for reference values.
#[derive(Clone, Default)]
pub struct Settings {
    /// PEM files of public keys or certificates on Ed25519, P-256 or P-384: 64 keys at most. A certificate counts while
    /// it is valid; who issued it is not asked.
    pub trusted_signers: Vec<Vec<u8>>,
    /// Also register messages that nobody signed, as good as whoever may send them. Default: false.
    pub allow_unsigned: bool,
}

/// The registered reference values. Clones share the same set, which follows the store until the last one is dropped.
#[derive(Clone)]
pub struct ReferenceValues {
    shared: Arc<Shared>,
    _following: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    store: Store,
    clock: Clock,
    signers: Signers,
    allow_unsigned: bool,
    records: RwLock<Arc<Records>>,
    writing: tokio::sync::Mutex<()>,
}

impl ReferenceValues {
    /// Loads all values of the store, and follows it from then on.
    ///
    /// # Errors
    /// [`Error::TrustedSigner`] for settings that can't be used, [`Error::Store`]; [`Error::Record`] if a record can't
    /// be read.
    pub async fn load(store: Store, clock: Clock, settings: Settings) -> Result<Self, Error> {
        let signers = Signers::parse(&settings.trusted_signers)?;
        let changes = store.changes(NAMESPACE);
        let mut records = Records::new();
        for (name, record) in record::read_all(&store, NAMESPACE).await? {
            records.insert(name, record?);
        }
        let (records, writing) = (RwLock::new(Arc::new(records)), tokio::sync::Mutex::default());
        let allow_unsigned = settings.allow_unsigned;
        let shared = Arc::new(Shared { store, clock, signers, allow_unsigned, records, writing });
        let following = tokio::spawn(shared.clone().follow(changes));
        Ok(Self { shared, _following: Arc::new(AbortOnDropHandle::new(following)) })
    }

    /// Registers the values of a message, all or none, and returns their names.
    ///
    /// # Errors
    /// Those of [`Kind::BadRequest`] for a message that can't be registered, those of [`Kind::Forbidden`] if nobody who
    /// is trusted vouches for it, [`Error::Store`] if it can't be kept.
    pub async fn register(&self, message: &Message) -> Result<Vec<String>, Error> {
        self.register_scoped(message, "").await
    }

    /// As [`register`](Self::register), for one who may only register names that start with `prefix`.
    ///
    /// # Errors
    /// Also [`Error::Scope`]; then nothing was registered.
    pub async fn register_scoped(&self, message: &Message, prefix: &str) -> Result<Vec<String>, Error> {
        let registered = self.shared.read_scoped(message, prefix)?;
        let entries = registered.iter().map(Record::to_entry).collect::<Result<Vec<_>, _>>()?;

        let _one_at_a_time = self.shared.writing.lock().await;
        let mut records = self.shared.records();
        let now = self.shared.clock.now();
        Arc::make_mut(&mut records).retain(|_, record| now < record.expiration);
        let new = registered.iter().filter(|record| !records.contains_key(&record.name)).count();
        if records.len() + new > MAX_RECORDS {
            return Err(Error::TooMany(MAX_RECORDS));
        }
        self.shared.store.put_all(NAMESPACE, &entries).await?;
        Ok(self.shared.registered(records, registered))
    }

    /// As [`register_scoped`](Self::register_scoped), but only if the present values under the prefix are `expected`, and
    /// none of those that the message replaces is changed meanwhile by anybody. Nothing if that is not so.
    ///
    /// # Errors
    /// As [`register_scoped`](Self::register_scoped).
    pub async fn register_if(
        &self,
        message: &Message,
        prefix: &str,
        expected: impl FnOnce(&[Record]) -> bool,
    ) -> Result<Option<Vec<String>>, Error> {
        let registered = self.shared.read_scoped(message, prefix)?;
        let _one_at_a_time = self.shared.writing.lock().await;
        let mut writes = Vec::with_capacity(registered.len());
        for record in &registered {
            let (key, value) = record.to_entry()?;
            let present = self.shared.store.get(NAMESPACE, &key).await?;
            writes.push((key, value, present.map_or(If::Absent, |entry| If::Version(entry.version))));
        }
        // Read after the versions: what is changed between the two shows here, what is changed later fails the write.
        self.shared.read_stored().await?;
        if !expected(&self.list(prefix)) {
            return Ok(None);
        }
        let records = self.shared.records();
        if records.len() + registered.len() > MAX_RECORDS {
            return Err(Error::TooMany(MAX_RECORDS));
        }
        match self.shared.store.put_all_if(NAMESPACE, &writes).await {
            Ok(()) => Ok(Some(self.shared.registered(records, registered))),
            Err(store::Error::Conflict { .. }) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// The value of a name, unless it is unknown or has ended.
    pub fn query(&self, name: &str) -> Option<Value> {
        let records = self.shared.records();
        let record = records.get(name)?;
        (self.shared.clock.now() < record.expiration).then(|| record.value.clone())
    }

    /// The records whose names start with `prefix` and that have not ended, sorted by name.
    pub fn list(&self, prefix: &str) -> Vec<Record> {
        let now = self.shared.clock.now();
        let records = self.shared.records();
        let records = records.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        records.filter(|(_, record)| now < record.expiration).map(|(_, record)| record.clone()).collect()
    }

    /// Removes a name; false if it was unknown. Its history stays.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer.
    pub async fn delete(&self, name: &str) -> Result<bool, Error> {
        let Ok(key) = Key::parse(name) else { return Ok(false) };
        let _one_at_a_time = self.shared.writing.lock().await;
        let known = self.shared.store.delete(NAMESPACE, &key).await?;
        let mut records = self.shared.records();
        Arc::make_mut(&mut records).remove(name);
        self.shared.replace(records);
        Ok(known)
    }

    /// What a name stood for, newest first, as far back as the store keeps versions.
    ///
    /// # Errors
    /// [`Error::Store`] if the store does not answer; [`Error::Record`] if a record can't be read.
    pub async fn history(&self, name: &str) -> Result<Vec<PastRecord>, Error> {
        let Ok(key) = Key::parse(name) else { return Ok(Vec::new()) };
        record::history(&self.shared.store, NAMESPACE, &key).await
    }
}

impl Source for ReferenceValues {
    fn query(&self, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.query(name))
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

impl Shared {
    /// What a message would register, if all of its names start with `prefix`.
    fn read_scoped(&self, message: &Message, prefix: &str) -> Result<Vec<Record>, Error> {
        let registered = self.read(message)?;
        match registered.iter().find(|record| !record.name.starts_with(prefix)) {
            Some(other) => Err(Error::Scope { name: excerpt(&other.name), prefix: prefix.to_owned() }),
            None => Ok(registered),
        }
    }

    /// Puts what was stored in force, and returns its names.
    fn registered(&self, mut records: Arc<Records>, registered: Vec<Record>) -> Vec<String> {
        let names = registered.iter().map(|record| record.name.clone()).collect();
        Arc::make_mut(&mut records).extend(registered.into_iter().map(|record| (record.name.clone(), record)));
        self.replace(records);
        names
    }

    /// What a message would register, checked.
    fn read(&self, message: &Message) -> Result<Vec<Record>, Error> {
        if message.version != VERSION {
            return Err(Error::Version(excerpt(&message.version)));
        }
        if message.payload.len() > MAX_PAYLOAD {
            return Err(Error::Payload(TOO_LARGE));
        }
        let payload = decoded(&message.payload).ok_or(Error::Payload("it is not standard base64"))?;
        let now = self.clock.now();
        let of_message = self.signers.of_message(message, &payload, now)?;
        let extract = extract(&message.kind, &payload)?;
        let of_payload = extract.signed.as_ref().map(|signed| self.signers.of_payload(signed, now)).transpose()?;
        let signer = of_message.or(of_payload);
        if signer.is_none() && !self.allow_unsigned {
            return Err(Error::Unsigned);
        }

        let expiration = extract.validity.end(now, LIFETIME)?;
        let extractor = message.kind.clone();
        let provenance = Some(Provenance { signer: signer.map(str::to_owned), extractor, registered: now });
        let record = |(name, value): (String, Value)| Record {
            version: VERSION.to_owned(),
            name,
            expiration,
            value,
            provenance: provenance.clone(),
        };
        Ok(extract.values.into_iter().map(record).collect())
    }

    /// Reads the store again whenever somebody wrote to it.
    async fn follow(self: Arc<Self>, mut changes: Changes) {
        loop {
            changes.changed().await;
            while let Err(error) = self.reload().await {
                tracing::warn!(%error, "reference values are not up to date");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn reload(&self) -> Result<(), Error> {
        let _no_write_meanwhile = self.writing.lock().await;
        self.read_stored().await
    }

    /// A record that can't be read counts as absent: one bad file must not hold back the others.
    async fn read_stored(&self) -> Result<(), Error> {
        let mut records = Records::new();
        for (name, record) in record::read_all(&self.store, NAMESPACE).await? {
            match record {
                Ok(record) => drop(records.insert(name, record)),
                Err(error) => tracing::warn!(%error, "a reference value is left out"),
            }
        }
        self.replace(Arc::new(records));
        Ok(())
    }

    fn records(&self) -> Arc<Records> {
        self.records.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, records: Arc<Records>) {
        *self.records.write().unwrap_or_else(PoisonError::into_inner) = records;
    }
}

type Records = BTreeMap<String, Record>;

/// Standard base64 with padding.
fn decoded(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The name of upstream, so that its stores can be taken over.
const NAMESPACE: Namespace = Namespace::versioned("reference_value");
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// Between two attempts to read a store that does not answer.
const RETRY: Duration = Duration::from_secs(5);
/// Those that have ended do not count.
const MAX_RECORDS: usize = 10_000;
