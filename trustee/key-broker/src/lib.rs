//! The key broker: guests attest to it and fetch secrets, owners say who may have what, and it keeps the record.
//!
//! [`Broker::answer`] is the whole HTTP API; [`server::serve`] puts it behind sockets.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod audit;
pub mod server;

mod administration;
mod api;
mod bodies;
mod excerpt;
mod handshake;
mod refusal;
mod resource;
mod resource_policy;
mod session;
mod session_keys;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

use attestation::verifier::Enabled;
use attestation::{AttestationService, Settings as AttestationSettings};
use reference_values::ReferenceValues;
use store::Store;
use store::clock::Clock;

use admin::Admin;
use audit::AuditLog;
use bodies::Bodies;
use resource_policy::ResourcePolicy;
use session::Sessions;
use tokens::Tokens;

/// A key broker with its attestation service and reference values, all on one store.
pub struct Broker {
    store: Store,
    clock: Clock,
    attestation: AttestationService,
    reference_values: ReferenceValues,
    resource_policy: ResourcePolicy,
    sessions: Sessions,
    tokens: Tokens,
    admin: Admin,
    audit: AuditLog,
    bodies: Bodies,
}

/// How a broker is set up.
pub struct Settings {
    /// Where the database and its master key lie.
    pub storage: PathBuf,
    /// The audit log's file.
    pub audit: PathBuf,
    /// Who may administer.
    pub admin: Admin,
    /// Accept evidence of the sample TEE.
    pub sample_verifier: bool,
    /// How long an attestation token is valid.
    pub token_lifetime: Duration,
    /// Whether clients come over TLS: cookies are then marked `Secure`.
    pub tls: bool,
}

impl Broker {
    /// Opens storage and audit log, and loads keys and policies; what is missing is made.
    ///
    /// # Errors
    /// [`Error`] names the part that failed.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let store = Store::open(&settings.storage).await?;
        Self::assemble(store, settings, Clock::system()).await
    }

    /// Waits for the store's writes and closes it.
    pub async fn close(&self) {
        self.store.close().await;
    }

    async fn assemble(store: Store, settings: Settings, clock: Clock) -> Result<Self, Error> {
        let Settings { storage: _, audit, admin, sample_verifier, token_lifetime, tls } = settings;
        let audit = AuditLog::open(audit, clock.clone())?;
        let reference_values = ReferenceValues::load(store.clone(), clock.clone()).await?;
        let enabled = Enabled { sample: sample_verifier };
        let attestation = AttestationService::load(
            store.clone(),
            reference_values.clone(),
            AttestationSettings { enabled, token_lifetime },
            clock.clone(),
        )
        .await?;
        let resource_policy = ResourcePolicy::load(store.clone()).await?;
        let sessions = Sessions::new(store.clone(), clock.clone(), tls);
        let tokens = Tokens::default();
        let bodies = Bodies::default();
        Ok(Self {
            store,
            clock,
            attestation,
            reference_values,
            resource_policy,
            sessions,
            tokens,
            admin,
            audit,
            bodies,
        })
    }
}

/// Why a broker could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("storage: {0}")]
    Store(#[from] store::Error),
    #[error("audit log: {0}")]
    Audit(#[from] audit::Error),
    #[error("reference values: {0}")]
    ReferenceValues(#[from] reference_values::Error),
    #[error("attestation service: {0}")]
    Attestation(#[from] attestation::Error),
    #[error("resource policy: {0}")]
    ResourcePolicy(#[from] resource_policy::Error),
}

#[cfg(test)]
mod tests;
