//! Who signs attestation tokens: keys that the replicas share through the store, or a key in files.
//!
//! A key that another has replaced is published and verifies for the lifetime of a token and five minutes more, in
//! which every replica has heard of its successor.

mod error;
mod files;
mod key;
mod ring;
mod stored;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde_json::Value;
use store::Store;
use store::clock::{Clock, Timestamp};

use crate::token::{self, MAX_TOKEN};
pub use error::Error;
pub use files::{FileError, SignerFiles};
use ring::Ring;
use stored::{Dated, StoredKeys};

/// Signs tokens and recognises the ones it signed.
pub(crate) struct Signer {
    source: Source,
    ring: RwLock<Arc<Ring>>,
    clock: Clock,
    /// How long a key verifies after it was replaced.
    overlap: Duration,
    rotation: Duration,
    /// When the current key is to be replaced, in seconds since 1970.
    due: AtomicU64,
    /// How often the keys have changed.
    generation: AtomicU64,
}

enum Source {
    Store(StoredKeys),
    Files(SignerFiles),
}

impl Signer {
    /// Loads the keys; makes the first one if they are in the store and there is none. `rotation` is how long a key in
    /// the store is used, zero for ever; `lifetime` is that of a token. The second value is for [`Signer::follow`].
    ///
    /// # Errors
    /// [`Error::Store`], [`Error::Key`], [`Error::Files`].
    pub async fn load(
        store: Store,
        files: Option<SignerFiles>,
        rotation: Duration,
        lifetime: Duration,
        clock: Clock,
    ) -> Result<(Arc<Self>, Changes), Error> {
        let now = clock.now();
        // Changes are listened for before the first reading, so that none is missed.
        let (source, changes, Dated { ring, created }) = match files {
            Some(files) => {
                let changes = Changes::Files(file_watch::watch(&files.paths()).map_err(FileError::from)?);
                let ring = Ring { current: Arc::new(files.read()?), former: Vec::new() };
                (Source::Files(files), changes, Dated { ring, created: now })
            }
            None => {
                let stored = StoredKeys::new(store)?;
                let changes = Changes::Store(stored.changes());
                let dated = stored.load(now).await?;
                (Source::Store(stored), changes, dated)
            }
        };
        let (ring, generation) = (RwLock::new(Arc::new(ring)), AtomicU64::new(0));
        let due = AtomicU64::new(due(created, rotation));
        Ok((Arc::new(Self { source, ring, clock, overlap: lifetime + MARGIN, rotation, due, generation }), changes))
    }

    /// Keeps the keys up to date; never ends.
    pub async fn follow(self: Arc<Self>, mut changes: Changes) {
        loop {
            match &mut changes {
                Changes::Store(changes) => changes.changed().await,
                Changes::Files(changes) => changes.changed().await,
            }
            while let Err(error) = self.refresh().await {
                tracing::error!(%error, "the token signing keys can't be read again; the last ones stay in use");
                // Files that are wrong are read again when they change.
                if matches!(changes, Changes::Files(_)) {
                    break;
                }
                tokio::time::sleep(REREAD).await;
            }
        }
    }

    /// A token with the given claims.
    ///
    /// # Errors
    /// [`token::Error::TooLarge`] for a token that would not be accepted either; [`token::Error::Sign`] if the system
    /// gives no randomness.
    pub fn sign(&self, claims: &Value) -> Result<String, token::Error> {
        let token = self.ring().current.sign(&claims.to_string()).ok_or(token::Error::Sign)?;
        if token.len() > MAX_TOKEN { Err(token::Error::TooLarge) } else { Ok(token) }
    }

    /// The claims of a token that this signer issued, with this key or one before it, and that has not expired.
    ///
    /// # Errors
    /// Any [`token::Error`] but [`token::Error::Sign`].
    pub fn verify(&self, token: &str) -> Result<Value, token::Error> {
        self.ring().verify(token, self.clock.now())
    }

    /// The keys that tokens may be signed with at present, as a JWK set.
    pub fn jwks(&self) -> Value {
        self.ring().jwks(self.clock.now())
    }

    /// Changes whenever the keys may have.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether it is time for [`Signer::rotate_if_due`]; true for one caller a minute.
    pub fn is_due(&self) -> bool {
        let (now, due) = (self.clock.now(), self.due.load(Ordering::Relaxed));
        let later = now.after(RETRY).unix();
        matches!(self.source, Source::Store(_))
            && now.unix() >= due
            && self.due.compare_exchange(due, later, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Makes a new key unless another replica has. A failure is logged; tokens go on with the old key.
    pub async fn rotate_if_due(&self) {
        let now = self.clock.now();
        if let Err(error) = self.rotate_where(|created| created.after(self.rotation) <= now).await {
            tracing::warn!(%error, "no new token signing key could be made; the old one stays in use");
        }
    }

    /// Makes a new key.
    ///
    /// # Errors
    /// [`Error::InFiles`] for a key that is not in the store; [`Error::TooManyKeys`], [`Error::Store`].
    pub async fn rotate(&self) -> Result<(), Error> {
        self.rotate_where(|_| true).await
    }

    async fn rotate_where(&self, due: impl Fn(Timestamp) -> bool) -> Result<(), Error> {
        let Source::Store(stored) = &self.source else { return Err(Error::InFiles) };
        let now = self.clock.now();
        let dated = stored.rotate(now, now.after(self.overlap), due).await?;
        self.adopt(dated);
        Ok(())
    }

    async fn refresh(&self) -> Result<(), Error> {
        let now = self.clock.now();
        match &self.source {
            Source::Store(stored) => self.adopt(stored.load(now).await?),
            Source::Files(files) => {
                self.replace(self.ring().followed_by(files.read()?, now, now.after(self.overlap)));
            }
        }
        Ok(())
    }

    fn adopt(&self, Dated { ring, created }: Dated) {
        self.due.store(due(created, self.rotation), Ordering::Relaxed);
        self.replace(ring);
    }

    fn replace(&self, ring: Ring) {
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(ring);
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    fn ring(&self) -> Arc<Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What tells that keys have changed.
pub(crate) enum Changes {
    Store(store::Changes),
    Files(file_watch::Changes),
}

/// When a key is to be replaced, in seconds since 1970.
fn due(created: Timestamp, rotation: Duration) -> u64 {
    if rotation.is_zero() { u64::MAX } else { created.after(rotation).unix() }
}

/// In which every replica has heard of a new key.
/// Between two attempts to read a store that does not answer.
const REREAD: Duration = Duration::from_secs(5);
const MARGIN: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
