//! Resources of the key broker, and the keys of encrypted layers that are made from them.

use std::sync::Arc;

use async_trait::async_trait;
use attestation_agent::{AttestationAgent, Kbs};
use image::{KeyError, LayerKeys};
use wire::layer::AnnotationPacket;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::config::KbcConfig;
use crate::error::Error;

/// Fetches secrets with the attestation agent's token.
pub(crate) struct Secrets {
    agent: Arc<AttestationAgent>,
    /// A broker other than the one that issues the tokens.
    other: Option<Kbs>,
}

impl Secrets {
    pub(crate) fn new(config: &KbcConfig, agent: Arc<AttestationAgent>) -> Result<Self, Error> {
        let other = match &config.url {
            Some(url) => {
                let kbs = Kbs::new(url, config.kbs_cert.as_deref()).map_err(attestation_agent::Error::from)?;
                // One broker gets one pool of connections, and one idea of which CA to trust.
                Some(kbs).filter(|kbs| agent.kbs().is_none_or(|issuer| issuer.url() != kbs.url()))
            }
            None => None,
        };
        Ok(Self { agent, other })
    }

    pub(crate) async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        let resource = match &self.other {
            Some(kbs) => self.agent.get_resource_from(kbs, uri).await,
            None => self.agent.get_resource(uri).await,
        };
        Ok(resource?)
    }

    /// Unwraps a layer's private options with the key encryption key that the packet names.
    pub(crate) async fn layer_key(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, Error> {
        let kid = packet.kid();
        let uri = ResourceUri::parse(kid)?;
        if packet.provider() != PROVIDER {
            return Err(Error::Provider { kid: uri.to_string(), provider: packet.provider().to_owned() });
        }
        let kek =
            self.resource(&uri).await.map_err(|cause| Error::Kek { kid: uri.to_string(), cause: Box::new(cause) })?;
        packet.unwrap(&kek).map_err(|cause| Error::Unwrap { kid: uri.to_string(), cause })
    }
}

#[async_trait]
impl LayerKeys for Secrets {
    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        self.layer_key(packet).await.map_err(KeyError::new)
    }
}

const PROVIDER: &str = "kbs";
