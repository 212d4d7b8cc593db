//! The attestation policies: parsed in memory, their texts in the store.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use store::{Key, Namespace, Store};

use crate::Error;
use crate::policy::Policy;

/// All attestation policies by id.
pub(crate) struct Policies {
    store: Store,
    parsed: RwLock<BTreeMap<String, Arc<Policy>>>,
    /// What is in force must be what is stored, whoever writes at the same time.
    writing: tokio::sync::Mutex<()>,
}

impl Policies {
    /// Parses the policies of the store; writes the default ones where they are missing.
    ///
    /// # Errors
    /// [`Error::PolicyStore`], or [`Error::Policy`] for a text that another release accepted.
    pub async fn load(store: Store) -> Result<Self, Error> {
        let policies = Self { store, parsed: RwLock::default(), writing: Default::default() };
        for (id, text) in DEFAULTS {
            match policies.store.put_if(NAMESPACE, &key(id)?, text.as_bytes(), None).await {
                Ok(_) | Err(store::Error::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        for key in policies.store.list(NAMESPACE, "").await? {
            let Some(entry) = policies.store.get(NAMESPACE, &key).await? else { continue };
            let text = String::from_utf8_lossy(&entry.value).into_owned();
            let id = key.as_str().strip_suffix(SUFFIX).unwrap_or(key.as_str());
            policies.insert(id, Policy::compile_aside(text).await?);
        }
        Ok(policies)
    }

    /// Parses a policy, stores it and puts it in force.
    ///
    /// # Errors
    /// [`Error::PolicyId`], [`Error::Policy`], [`Error::TooManyPolicies`], [`Error::PolicyStore`].
    pub async fn set(&self, id: &str, text: String) -> Result<(), Error> {
        let key = key(id)?;
        let policy = Policy::compile_aside(text.clone()).await?;
        let _one_at_a_time = self.writing.lock().await;
        if self.get(id).is_none() && self.parsed.read().unwrap_or_else(PoisonError::into_inner).len() >= MAX_POLICIES {
            return Err(Error::TooManyPolicies(MAX_POLICIES));
        }
        self.store.put(NAMESPACE, &key, text.as_bytes()).await?;
        self.insert(id, policy);
        Ok(())
    }

    /// A policy by its id.
    pub fn get(&self, id: &str) -> Option<Arc<Policy>> {
        self.parsed.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn insert(&self, id: &str, policy: Policy) {
        let mut parsed = self.parsed.write().unwrap_or_else(PoisonError::into_inner);
        parsed.insert(id.to_owned(), Arc::new(policy));
    }
}

fn key(id: &str) -> Result<Key, Error> {
    let refused = || Error::PolicyId(id.chars().take(64).flat_map(char::escape_default).collect());
    if id.is_empty() || id.len() > 64 || id.contains('/') {
        return Err(refused());
    }
    Key::parse(&format!("{id}{SUFFIX}")).map_err(|_| refused())
}

const NAMESPACE: Namespace = Namespace::new("attestation-policy");
const SUFFIX: &str = ".rego";
const MAX_POLICIES: usize = 64;
const DEFAULTS: [(&str, &str); 1] = [("default_cpu", include_str!("default_cpu.rego"))];
