//! Signing keys in the store, shared by all replicas.
//!
//! One sealed document holds the current key, and of the keys before it only what verifies. It is replaced as a whole
//! and only if nobody was faster, so that replicas which rotate at the same time agree.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use store::clock::Timestamp;
use store::{Key, Namespace, Store};
use zeroize::Zeroizing;

use super::error::Error;
use super::key::{Certificates, PublicKey, SigningKey};
use super::ring::{Former, Ring};

/// The keys in the store.
pub(super) struct StoredKeys {
    store: Store,
    key: Key,
}

/// A ring with the time that its current key was made.
pub(super) struct Dated {
    pub ring: Ring,
    pub created: Timestamp,
}

impl StoredKeys {
    pub fn new(store: Store) -> Result<Self, Error> {
        Ok(Self { store, key: Key::parse("ear")? })
    }

    /// What tells of changes, by this process or another.
    pub fn changes(&self) -> store::Changes {
        self.store.changes(NAMESPACE)
    }

    /// The keys as they are stored; makes the first one where there is none.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Key`] if a key can't be made or read.
    pub async fn load(&self, now: Timestamp) -> Result<Dated, Error> {
        self.replace(now, |document| document.is_none(), now).await
    }

    /// The keys as they are stored, after a new one was made if `due` says so of the time the current one was made.
    /// The one it replaces verifies until `until`.
    ///
    /// # Errors
    /// As [`StoredKeys::load`]; [`Error::TooManyKeys`].
    pub async fn rotate(
        &self,
        now: Timestamp,
        until: Timestamp,
        due: impl Fn(Timestamp) -> bool,
    ) -> Result<Dated, Error> {
        self.replace(now, |document| document.is_none_or(|document| due(document.created)), until).await
    }

    async fn replace(
        &self,
        now: Timestamp,
        due: impl Fn(Option<&Document>) -> bool,
        until: Timestamp,
    ) -> Result<Dated, Error> {
        for _ in 0..ATTEMPTS {
            let entry = self.store.get(NAMESPACE, &self.key).await?;
            let version = entry.as_ref().map(|entry| entry.version);
            let document = entry.map(|entry| Document::parse(&entry.value)).transpose()?;
            if !due(document.as_ref())
                && let Some(document) = document
            {
                return document.dated();
            }
            let next = Document::following(document, now, until)?;
            let text = Zeroizing::new(serde_json::to_vec(&next).map_err(|_| Error::Key)?);
            match self.store.put_if(NAMESPACE, &self.key, &text, version).await {
                Ok(_) => return next.dated(),
                // Another replica was faster: what it wrote counts.
                Err(store::Error::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::Key)
    }
}

#[derive(Deserialize, Serialize)]
struct Document {
    /// The current key in PKCS#8, in standard base64.
    pkcs8: Zeroizing<String>,
    created: Timestamp,
    former: Vec<FormerKey>,
}

#[derive(Deserialize, Serialize)]
struct FormerKey {
    /// The uncompressed point, in standard base64.
    point: String,
    until: Timestamp,
}

impl Document {
    fn parse(text: &[u8]) -> Result<Self, Error> {
        serde_json::from_slice(text).map_err(|_| Error::Key)
    }

    /// A document with a new key, which has taken the place of the one before.
    fn following(before: Option<Self>, now: Timestamp, until: Timestamp) -> Result<Self, Error> {
        let mut former = Vec::new();
        if let Some(before) = before {
            let point = STANDARD.encode(before.signing_key()?.public().point());
            former = before.former;
            former.push(FormerKey { point, until });
            former.retain(|key| now < key.until);
        }
        if former.len() > MAX_FORMER {
            return Err(Error::TooManyKeys);
        }
        let document = SigningKey::generate().ok_or(Error::Key)?;
        Ok(Self { pkcs8: Zeroizing::new(STANDARD.encode(&*document)), created: now, former })
    }

    fn signing_key(&self) -> Result<SigningKey, Error> {
        let document = Zeroizing::new(STANDARD.decode(self.pkcs8.as_bytes()).map_err(|_| Error::Key)?);
        SigningKey::from_der(&document, &Certificates::default()).ok_or(Error::Key)
    }

    fn dated(&self) -> Result<Dated, Error> {
        let former = self.former.iter().map(|key| {
            let point = STANDARD.decode(&key.point).ok()?;
            Some(Former { key: PublicKey::from_point(&point, &Certificates::default())?, until: key.until })
        });
        let former = former.collect::<Option<Vec<_>>>().ok_or(Error::Key)?;
        let ring = Ring { current: Arc::new(self.signing_key()?), former };
        Ok(Dated { ring, created: self.created })
    }
}

const NAMESPACE: Namespace = Namespace::new("signing-key");
const ATTEMPTS: u32 = 8;
const MAX_FORMER: usize = 32;
