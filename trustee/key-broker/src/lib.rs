//! The key broker: guests attest to it and fetch secrets, owners say who may have what, and it keeps the record.
//!
//! [`Broker::answer`] is the whole HTTP API; [`openapi()`] describes it.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod attester;
pub mod audit;
pub mod reference_value_provider;
pub mod tenants;

mod administration;
mod api;
mod bodies;
mod excerpt;
mod handshake;
mod metrics;
mod openapi;
mod plugin;
mod precondition;
mod refusal;
mod replay;
mod resource;
mod resource_policy;
mod routes;
mod session;
mod session_keys;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ::plugins::Plugin;
use prometheus_client::registry::Registry;
use resource_backends::Backend;
use store::Store;
use store::clock::Clock;

use admin::Admin;
use attester::Attester;
use audit::AuditLog;
use bodies::Bodies;
use metrics::Metrics;
pub use openapi::openapi;
use reference_value_provider::Provider;
use replay::Seen;
use resource_policy::ResourcePolicies;
use session::Sessions;
use tenants::Tenants;
use tokens::Tokens;

/// A key broker, composed of its parts.
pub struct Broker {
    store: Store,
    clock: Clock,
    attester: Attester,
    reference_values: Provider,
    backend: Arc<dyn Backend>,
    plugins: Vec<Arc<dyn Plugin>>,
    resource_policies: ResourcePolicies,
    sessions: Sessions,
    seen: Seen,
    tokens: Tokens,
    admin: Admin,
    tenants: Tenants,
    policy_ids: BTreeMap<String, String>,
    audit: Arc<AuditLog>,
    bodies: Arc<Bodies>,
    metrics: Metrics,
    metrics_for_administrators: bool,
    scheme: &'static str,
}

/// What a broker is made of.
pub struct Parts {
    /// Resource policies, session keys and refusals are kept here.
    pub store: Store,
    pub clock: Clock,
    /// Verifies evidence and tokens.
    pub attester: Attester,
    pub reference_values: Provider,
    /// Where resources are kept.
    pub backend: Arc<dyn Backend>,
    pub plugins: Vec<Arc<dyn Plugin>>,
    /// Who may administer.
    pub admin: Admin,
    pub tenants: Tenants,
    /// Where the broker's counters are registered, and what `/metrics` shows.
    pub registry: Arc<Mutex<Registry>>,
    pub settings: Settings,
}

/// How a broker behaves.
pub struct Settings {
    /// The audit log's file.
    pub audit: PathBuf,
    /// How long a challenge can be answered.
    pub session_lifetime: Duration,
    /// Whether clients come over TLS: cookies are then marked `Secure`.
    pub tls: bool,
    /// Largest body of a request, in bytes.
    pub max_body: usize,
    /// JSON pointers to guests' keys in tokens, besides the usual ones.
    pub tee_key_paths: Vec<String>,
    /// Encrypt to guests that ask for RSA PKCS#1 v1.5, which is open to padding oracles where its user leaks errors.
    pub rsa1_5: bool,
    /// What guests may send as `attestation-policy-selector`, and the id of the policy that it selects.
    pub policy_ids: BTreeMap<String, String>,
    /// Show the metrics to administrators alone.
    pub metrics_for_administrators: bool,
}

impl Broker {
    /// Opens the audit log and loads the resource policies; what is missing is made.
    ///
    /// # Errors
    /// [`Error`] names the part that failed.
    pub async fn assemble(parts: Parts) -> Result<Self, Error> {
        let Parts { store, clock, attester, reference_values, backend, plugins, admin, tenants, registry, settings } =
            parts;
        let audit = Arc::new(AuditLog::open(settings.audit, clock.clone())?);
        let resource_policies = ResourcePolicies::load(store.clone()).await?;
        let sessions = Sessions::new(store.clone(), clock.clone(), settings.session_lifetime, settings.tls);
        Ok(Self {
            store,
            clock,
            attester,
            reference_values,
            backend,
            plugins,
            resource_policies,
            sessions,
            seen: Seen::default(),
            tokens: Tokens::new(settings.tee_key_paths, settings.rsa1_5),
            admin,
            tenants,
            policy_ids: settings.policy_ids,
            audit,
            bodies: Arc::new(Bodies::new(settings.max_body)),
            metrics: Metrics::new(registry),
            metrics_for_administrators: settings.metrics_for_administrators,
            scheme: if settings.tls { "https" } else { "http" },
        })
    }
}

/// Why a broker could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("audit log: {0}")]
    Audit(#[from] audit::Error),
    #[error("resource policy: {0}")]
    ResourcePolicy(#[from] resource_policy::Error),
}

#[cfg(test)]
mod tests;
