//! Secrets by all their names: resources, keys of encrypted layers, sealed secrets.

use async_trait::async_trait;
use image::{DocumentError, Documents, KeyError, LayerKeys};
use kms::{Kms, Named};
use wire::layer::AnnotationPacket;
use wire::resource::ResourceUri;
use wire::sealed_secret::{Envelope, Payload, Provider, SealedSecret, Vault};
use zeroize::Zeroizing;

use crate::anchors::Anchors;
use crate::broker::Broker;
use crate::config::CdhConfig;
use crate::error::Error;

/// Finds secrets out.
pub(crate) struct Secrets {
    broker: Broker,
    kms: Kms,
    anchors: Anchors,
    verify: bool,
}

impl Secrets {
    pub(crate) fn new(config: &CdhConfig, broker: Broker) -> Result<Self, Error> {
        let verify = !config.skip_sealed_secret_verification;
        if !verify {
            tracing::warn!(
                "sealed secrets are not verified: whoever controls the cluster chooses what containers get; next: \
                 remove skip_sealed_secret_verification"
            );
        }
        let mut services = kms::Config::below(config.places.kbs());
        services.aliyun = config.places.aliyun.clone().unwrap_or(services.aliyun);
        services.aws = config.places.aws.clone().unwrap_or(services.aws);
        services.endpoint = config.places.kms_endpoint.clone();
        Ok(Self { broker, kms: Kms::new(services)?, anchors: Anchors::new(config)?, verify })
    }

    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(crate) async fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.broker.resource(uri).await
    }

    /// Unwraps a layer's private options, with the key encryption key that the packet names or by who has it.
    pub(crate) async fn layer_key(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, Error> {
        let kid = packet.kid();
        match Provider::named(packet.provider()) {
            Provider::Kbs => {
                let uri = ResourceUri::parse(kid)?;
                let kek = self.resource(&uri).await;
                let kek = kek.map_err(|cause| Error::Kek { kid: uri.to_string(), cause: Box::new(cause) })?;
                packet.unwrap(&kek).map_err(|cause| Error::Unwrap { kid: uri.to_string(), cause })
            }
            provider @ (Provider::Aliyun | Provider::Aws) => {
                let key = Named { name: kid, settings: packet.provider_settings(), annotations: packet.annotations() };
                let data = packet.wrapped_data().map_err(wire::key_provider::Error::from)?;
                let options = self.kms.decrypt(&provider, key, &data).await;
                options.map_err(|cause| Error::Kek { kid: shown(kid), cause: Box::new(cause.into()) })
            }
            Provider::Other(provider) => Err(Error::Provider { kid: shown(kid), provider }),
        }
    }

    /// The secret that a sealed one stands for.
    pub(crate) async fn unseal(&self, text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let text = std::str::from_utf8(text).map_err(|_| Error::NotText)?;
        let payload = if self.verify {
            let sealed = SealedSecret::parse(text)?;
            let key = self.anchors.key(sealed.kid(), &self.broker).await?;
            sealed.verify(&key)?
        } else {
            Payload::parse_unverified(text)?
        };
        match payload {
            Payload::Vault(vault) => self.fetch(&vault).await,
            Payload::Envelope(envelope) => self.open(&envelope).await,
        }
    }

    async fn fetch(&self, vault: &Vault) -> Result<Zeroizing<Vec<u8>>, Error> {
        let Vault { provider, name, provider_settings, annotations } = vault;
        let failed = |cause: Error| Error::Vault { name: shown(name), cause: Box::new(cause) };
        match provider {
            Provider::Kbs => self.resource(&ResourceUri::parse(name)?).await.map_err(failed),
            Provider::Aliyun | Provider::Aws => {
                let secret = Named { name, settings: provider_settings, annotations };
                self.kms.secret(provider, secret).await.map_err(|e| failed(e.into()))
            }
            Provider::Other(provider) => Err(Error::SealedProvider(provider.clone())),
        }
    }

    async fn open(&self, envelope: &Envelope) -> Result<Zeroizing<Vec<u8>>, Error> {
        let kid = &envelope.key_id;
        let failed = |cause: Error| Error::Kek { kid: shown(kid), cause: Box::new(cause) };
        let data_key = match &envelope.provider {
            Provider::Kbs => {
                let kek = self.resource(&ResourceUri::parse(kid)?).await.map_err(failed)?;
                envelope.unwrap_key(&kek)?
            }
            provider @ (Provider::Aliyun | Provider::Aws) => {
                let key =
                    Named { name: kid, settings: &envelope.provider_settings, annotations: &envelope.annotations };
                self.kms.decrypt(provider, key, &envelope.encrypted_key).await.map_err(|e| failed(e.into()))?
            }
            Provider::Other(provider) => return Err(Error::SealedProvider(provider.clone())),
        };
        Ok(envelope.open(&data_key)?)
    }
}

#[async_trait]
impl Documents for Secrets {
    async fn fetch(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, DocumentError> {
        self.resource(uri).await.map_err(DocumentError::new)
    }
}

#[async_trait]
impl LayerKeys for Secrets {
    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        self.layer_key(packet).await.map_err(KeyError::new)
    }
}

/// A name that somebody else chose, fit for a log.
fn shown(name: &str) -> String {
    name.chars().take(100).flat_map(char::escape_default).collect()
}
