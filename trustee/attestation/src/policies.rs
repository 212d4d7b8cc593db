//! The attestation policies: parsed in memory, their texts in the store.
//!
//! Some policies are shipped with the program. They are not stored: each is in force under its id until another is
//! stored, and again once that is deleted. A text in the store that is no policy, which only another program can have
//! put there, leaves in force what was; where nothing was, appraisals under its id fail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use store::{If, Key, Namespace, Store, Version};

use crate::error::Error;
use crate::excerpt::excerpt;
use crate::policy::{self, Policy};

/// All attestation policies by id.
pub(crate) struct Policies {
    store: Store,
    shipped: BTreeMap<&'static str, Arc<Policy>>,
    stored: RwLock<BTreeMap<String, Stored>>,
    /// What is in force must be what is stored, whoever writes at the same time.
    writing: tokio::sync::Mutex<()>,
}

/// What is known of an attestation policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicyInfo {
    /// Its id, `default_cpu`.
    pub id: String,
    /// The version to name in a conditional write; 0 for a policy that is shipped and not stored.
    pub version: u64,
    /// Why the stored text is not in force.
    pub broken: Option<String>,
}

#[derive(Clone)]
struct Stored {
    version: u64,
    /// What is in force.
    policy: Option<Arc<Policy>>,
    broken: Option<String>,
}

impl Policies {
    /// Parses the policies of the store. The second value is what [`Policies::follow`] needs.
    ///
    /// # Errors
    /// [`Error::PolicyStore`].
    pub async fn load(store: Store) -> Result<(Arc<Self>, store::Changes), Error> {
        // Changes are listened for before the first reading, so that none is missed.
        let changes = store.changes(NAMESPACE);
        let mut shipped = BTreeMap::new();
        for (id, text) in SHIPPED {
            shipped.insert(id, Arc::new(compile(id, text.to_owned()).await?));
        }
        let policies = Self { store, shipped, stored: RwLock::default(), writing: Default::default() };
        policies.refresh().await?;
        Ok((Arc::new(policies), changes))
    }

    /// Keeps the policies up to date; never ends.
    pub async fn follow(self: Arc<Self>, mut changes: store::Changes) {
        loop {
            changes.changed().await;
            while let Err(error) = self.refresh().await {
                tracing::error!(%error, "the attestation policies can't be read again; the last ones stay in force");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// A policy by its id.
    ///
    /// # Errors
    /// [`Error::NoPolicy`], [`Error::BrokenPolicy`].
    pub fn get(&self, id: &str) -> Result<Arc<Policy>, Error> {
        match self.stored.read().unwrap_or_else(PoisonError::into_inner).get(id) {
            Some(Stored { policy: Some(policy), .. }) => Ok(policy.clone()),
            Some(Stored { broken, .. }) => {
                Err(Error::BrokenPolicy { id: excerpt(id), cause: broken.clone().unwrap_or_default() })
            }
            None => self.shipped.get(id).cloned().ok_or_else(|| Error::NoPolicy(excerpt(id))),
        }
    }

    /// All policies, sorted by id.
    pub fn list(&self) -> Vec<PolicyInfo> {
        let stored = self.stored.read().unwrap_or_else(PoisonError::into_inner);
        let ids: BTreeSet<&str> = stored.keys().map(String::as_str).chain(self.shipped.keys().copied()).collect();
        let info = |id: &str| {
            let (version, broken) = stored.get(id).map_or((0, None), |it| (it.version, it.broken.clone()));
            PolicyInfo { id: id.to_owned(), version, broken }
        };
        ids.into_iter().map(info).collect()
    }

    /// The text of a policy with its version, 0 for a shipped one; or as it was at an earlier version.
    ///
    /// # Errors
    /// [`Error::PolicyId`], [`Error::PolicyStore`].
    pub async fn text(&self, id: &str, version: Option<u64>) -> Result<Option<(String, u64)>, Error> {
        let key = key(id)?;
        let shipped = || SHIPPED.iter().find(|(known, _)| *known == id).map(|(_, text)| ((*text).to_owned(), 0));
        let entry = match version {
            None => self.store.get(NAMESPACE, &key).await?,
            Some(0) => return Ok(shipped()),
            Some(version) => self.store.at(NAMESPACE, &key, version).await?,
        };
        match entry {
            Some(entry) => Ok(Some((String::from_utf8_lossy(&entry.value).into_owned(), entry.version))),
            None if version.is_none() => Ok(shipped()),
            None => Ok(None),
        }
    }

    /// Parses a policy, stores it and puts it in force; returns its version. Version 0 stands for a shipped policy.
    ///
    /// # Errors
    /// [`Error::PolicyId`], [`Error::Policy`], [`Error::TooManyPolicies`]; [`Error::PolicyStore`], with a conflict
    /// where the condition doesn't hold.
    pub async fn set(&self, id: &str, text: String, condition: If) -> Result<u64, Error> {
        let key = key(id)?;
        let policy = Arc::new(compile(id, text.clone()).await?);
        let _one_at_a_time = self.writing.lock().await;
        let known = |stored: &BTreeMap<_, _>| stored.contains_key(id) || stored.len() < MAX_POLICIES;
        if !known(&self.stored.read().unwrap_or_else(PoisonError::into_inner)) {
            return Err(Error::TooManyPolicies(MAX_POLICIES));
        }
        let version = self.store.put_if(NAMESPACE, &key, text.as_bytes(), stored(condition)).await?;
        self.insert(id, Stored { version, policy: Some(policy), broken: None });
        Ok(version)
    }

    /// Deletes a stored policy, so that the shipped one of the same id is in force again; false if none was stored.
    ///
    /// # Errors
    /// [`Error::PolicyId`]; [`Error::PolicyStore`], with a conflict where the condition doesn't hold.
    pub async fn delete(&self, id: &str, condition: If) -> Result<bool, Error> {
        let key = key(id)?;
        let _one_at_a_time = self.writing.lock().await;
        let deleted = self.store.delete_if(NAMESPACE, &key, stored(condition)).await?;
        self.stored.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(deleted)
    }

    /// The versions that are kept of a policy, newest first.
    ///
    /// # Errors
    /// [`Error::PolicyId`], [`Error::PolicyStore`].
    pub async fn history(&self, id: &str) -> Result<Vec<Version>, Error> {
        Ok(self.store.history(NAMESPACE, &key(id)?).await?)
    }

    /// Reads what has changed in the store.
    async fn refresh(&self) -> Result<(), Error> {
        let _one_at_a_time = self.writing.lock().await;
        let keys = self.store.list(NAMESPACE, "").await?;
        let ids: BTreeSet<&str> = keys.iter().filter_map(|key| key.as_str().strip_suffix(SUFFIX)).collect();
        self.stored.write().unwrap_or_else(PoisonError::into_inner).retain(|id, _| ids.contains(id.as_str()));
        for key in &keys {
            let Some(id) = key.as_str().strip_suffix(SUFFIX) else { continue };
            let Some(entry) = self.store.get(NAMESPACE, key).await? else { continue };
            let known = self.stored.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
            if known.as_ref().is_some_and(|known| known.version == entry.version) {
                continue;
            }
            let text = String::from_utf8_lossy(&entry.value).into_owned();
            let (policy, broken) = match compile(id, text).await {
                Ok(policy) => (Some(Arc::new(policy)), None),
                // It was good when it was set: the machine is busy, and the next attempt may be in time.
                Err(error @ Error::Policy { cause: policy::Error::Slow, .. }) => return Err(error),
                Err(error) => {
                    tracing::error!(id, %error, "a stored attestation policy is none; the one before stays in force");
                    (known.and_then(|known| known.policy), Some(error.to_string()))
                }
            };
            self.insert(id, Stored { version: entry.version, policy, broken });
        }
        Ok(())
    }

    fn insert(&self, id: &str, stored: Stored) {
        self.stored.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), stored);
    }
}

async fn compile(id: &str, text: String) -> Result<Policy, Error> {
    let compiled = Policy::compile_aside(text).await;
    compiled.map_err(|cause: policy::Error| Error::Policy { id: id.to_owned(), cause })
}

/// The condition as the store knows it, which has no shipped policies.
fn stored(condition: If) -> If {
    if condition == If::Version(0) { If::Absent } else { condition }
}

fn key(id: &str) -> Result<Key, Error> {
    let refused = || Error::PolicyId(excerpt(id));
    if id.is_empty() || id.len() > 64 || id.contains('/') {
        return Err(refused());
    }
    Key::parse(&format!("{id}{SUFFIX}")).map_err(|_| refused())
}

const NAMESPACE: Namespace = Namespace::versioned("attestation_service_policy");
const SUFFIX: &str = ".rego";
/// Between two attempts to read a store that does not answer.
const RETRY: Duration = Duration::from_secs(5);
const MAX_POLICIES: usize = 1024;
const SHIPPED: [(&str, &str); 6] = [
    ("default_cpu", include_str!("shipped/cpu.rego")),
    ("default_dcu", include_str!("shipped/dcu.rego")),
    ("default_gpu", include_str!("shipped/gpu.rego")),
    ("default_nvidia-dpu", include_str!("shipped/nvidia-dpu.rego")),
    ("default_ppcie", include_str!("shipped/ppcie.rego")),
    ("default_switch", include_str!("shipped/switch.rego")),
];

#[cfg(test)]
#[path = "policies/tests.rs"]
mod tests;
