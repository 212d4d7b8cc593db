//! Who has the resources: a key broker, with tokens of an agent in this process or in another one, or files.

use std::sync::Arc;

use attestation_agent::{ADDRESS, AttestationAgent, Kbs, Measured, Passport};
use wire::event_log::Event;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::config::{CdhConfig, ConfigError};
use crate::error::Error;
use crate::offline::Offline;

/// A back end. Calls run side by side.
pub(crate) enum Broker {
    /// The agent attests in this process.
    Agent {
        agent: Arc<AttestationAgent>,
        /// A broker other than the one that issues the tokens.
        other: Option<Kbs>,
    },
    /// The agent is another process (`cc_kbc`).
    Passport(Passport),
    /// Files of the guest (`offline_fs_kbc`).
    Offline(Offline),
}

impl Broker {
    /// For a data hub that shares its process with the agent.
    pub(crate) fn with_agent(config: &CdhConfig, agent: Arc<AttestationAgent>) -> Result<Self, Error> {
        if config.kbc.is_offline() {
            return Offline::read(&config.places.offline).map(Self::Offline);
        }
        let other = match &config.kbc.url {
            Some(url) => {
                let kbs = Kbs::new(url, config.kbc.kbs_cert.as_deref()).map_err(attestation_agent::Error::from)?;
                // One broker gets one pool of connections, and one idea of which CA to trust.
                Some(kbs).filter(|kbs| agent.kbs().is_none_or(|issuer| issuer.url() != kbs.url()))
            }
            None => None,
        };
        Ok(Self::Agent { agent, other })
    }

    /// For a data hub in a process of its own.
    pub(crate) fn standalone(config: &CdhConfig) -> Result<Self, Error> {
        if config.kbc.is_offline() {
            return Offline::read(&config.places.offline).map(Self::Offline);
        }
        let url = config.kbc.url.as_deref().ok_or(ConfigError::NoUrl)?;
        let kbs = Kbs::new(url, config.kbc.kbs_cert.as_deref()).map_err(attestation_agent::Error::from)?;
        Ok(Self::Passport(Passport::new(kbs, config.aa.aa_socket.as_deref().unwrap_or(ADDRESS))))
    }

    pub(crate) async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        let resource = match self {
            Self::Agent { agent, other: Some(kbs) } => agent.get_resource_from(kbs, uri).await,
            Self::Agent { agent, other: None } => agent.get_resource(uri).await,
            Self::Passport(passport) => passport.get_resource(uri).await,
            Self::Offline(files) => return files.resource(uri),
        };
        Ok(resource?)
    }

    /// Has an event measured, where there is somebody to do it.
    pub(crate) async fn measure(&self, event: Event) -> Result<(), Error> {
        let measured = match self {
            Self::Agent { agent, .. } => agent.measure(event, None).await?,
            Self::Passport(passport) => passport.measure(&event).await?,
            Self::Offline(_) => Measured::NotEnabled,
        };
        tracing::debug!(?measured, "event");
        Ok(())
    }
}
