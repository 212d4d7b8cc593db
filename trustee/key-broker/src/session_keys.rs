//! The keys that seal session cookies: one a week, in the store, so that every replica opens every cookie.
//!
//! Weekly keys keep random nonces far from the bound of AES-GCM: it would take 7,000 cookies a second to reach it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use store::clock::Clock;
use store::seal::{KEY_LEN, SealingKey, random};
use store::{Key, Namespace, Store};

/// The sealing keys of this week and the last.
pub(crate) struct SessionKeys {
    store: Store,
    clock: Clock,
    /// By week; nothing for a week that has no key.
    known: RwLock<BTreeMap<u32, Option<Arc<SealingKey>>>>,
}

impl SessionKeys {
    pub fn new(store: Store, clock: Clock) -> Self {
        Self { store, clock, known: RwLock::default() }
    }

    /// This week's key and its number; made if this is the week's first use.
    ///
    /// # Errors
    /// If the store doesn't answer.
    pub async fn current(&self) -> Result<(u32, Arc<SealingKey>), store::Error> {
        let week = self.week();
        if let Some(Some(key)) = self.get(week) {
            return Ok((week, key));
        }
        let name = name(week)?;
        let fresh = random::<KEY_LEN>()?;
        match self.store.put_if(NAMESPACE, &name, fresh.as_slice(), None).await {
            // Cookies live for minutes: before last week's key nothing is needed.
            Ok(_) => _ = self.store.delete_before(NAMESPACE, &self::name(week.saturating_sub(1))?).await?,
            Err(store::Error::Conflict { .. }) => {}
            Err(e) => return Err(e),
        }
        match self.load(week).await? {
            Some(key) => Ok((week, key)),
            None => Err(store::Error::Conflict { namespace: NAMESPACE.as_str(), key: name }),
        }
    }

    /// The key of a cookie, if it is this week's or last week's and exists.
    ///
    /// # Errors
    /// If the store doesn't answer.
    pub async fn of(&self, week: u32) -> Result<Option<Arc<SealingKey>>, store::Error> {
        let current = self.week();
        if week != current && Some(week) != current.checked_sub(1) {
            return Ok(None);
        }
        match self.get(week) {
            Some(Some(key)) => Ok(Some(key)),
            // Another replica may still make this week's key; last week's can't come into being any more.
            Some(None) if week != current => Ok(None),
            _ => self.load(week).await,
        }
    }

    async fn load(&self, week: u32) -> Result<Option<Arc<SealingKey>>, store::Error> {
        let key = match self.store.get(NAMESPACE, &name(week)?).await? {
            Some(entry) => Some(Arc::new(SealingKey::new(&entry.value)?)),
            None => None,
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|known, _| *known + 1 >= week);
        known.insert(week, key.clone());
        Ok(key)
    }

    fn get(&self, week: u32) -> Option<Option<Arc<SealingKey>>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&week).cloned()
    }

    fn week(&self) -> u32 {
        u32::try_from(self.clock.now().unix() / WEEK).unwrap_or(u32::MAX)
    }
}

fn name(week: u32) -> Result<Key, store::Error> {
    Key::parse(&format!("{week:010}"))
}

const NAMESPACE: Namespace = Namespace::new("session-key");
const WEEK: u64 = 7 * 24 * 60 * 60;
