//! A key provider for encrypters of images, such as skopeo: it wraps each layer's key with a key that Trustee hands to
//! guests, and registers that key with Trustee.
//!
//! gRPC `keyprovider.KeyProviderService` with ocicrypt's JSON in its messages. What a layer gets is an annotation packet of
//! version 1, `{"kid","wrapped_data","iv","wrap_type"}`, which guests of every age read.

mod registrar;
mod request;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Status};
use uuid::Uuid;
use wire::resource::{ResourcePath, ResourceUri};
use wire_grpc::key_provider::key_provider_service_server::{KeyProviderService, KeyProviderServiceServer};
use wire_grpc::key_provider::{KeyProviderKeyWrapProtocolInput as Input, KeyProviderKeyWrapProtocolOutput as Output};

use crate::kek::{self, Kek};
use request::{Parameters, Request};

pub use registrar::{Credentials, Registrar};
pub use request::Error as RequestError;

/// Wraps the keys of layers.
pub struct KeyProvider {
    registrar: Option<Registrar>,
    report: Box<dyn Fn(&Wrapped) + Send + Sync>,
    /// What every name stands for since the start; held while Trustee is asked, so that all agree on it.
    keys: Mutex<HashMap<ResourceUri, Kek>>,
}

impl KeyProvider {
    /// A key provider that calls `report` for every layer. Without a registrar the owner registers the keys.
    pub fn new(registrar: Option<Registrar>, report: impl Fn(&Wrapped) + Send + Sync + 'static) -> Self {
        Self { registrar, report: Box::new(report), keys: Mutex::default() }
    }

    /// Serves until `end` is there.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(
        self,
        listener: TcpListener,
        end: impl Future<Output = ()>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let service = KeyProviderServiceServer::new(self);
        let incoming = TcpIncoming::from(listener);
        Ok(Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, end).await?)
    }

    /// Wraps the key of one layer: ocicrypt's `keywrap` result in JSON.
    async fn wrap(&self, input: &[u8]) -> Result<Vec<u8>, Error> {
        let Request { options, digest, parameters } = Request::parse(input)?;
        let algorithm = parameters.algorithm;
        let (kid, key, registered) = match parameters.sample {
            true => (ResourceUri::parse(SAMPLE_KEY_ID).map_err(Error::Name)?, Kek::new(SAMPLE_KEY), false),
            false => self.key(parameters).await?,
        };
        let (iv, wrapped) = key.wrap(algorithm, &options).map_err(|_| Error::Cipher)?;
        let packet = json!({
            "kid": kid.to_string(),
            "wrapped_data": STANDARD.encode(wrapped),
            "iv": STANDARD.encode(iv),
            "wrap_type": algorithm.name(),
        });
        (self.report)(&Wrapped { layer: digest, key_id: kid.to_string(), algorithm: algorithm.name(), registered });
        // As integers, which every ocicrypt reads.
        let result = json!({ "keywrapresults": { "annotation": packet.to_string().into_bytes() } });
        Ok(result.to_string().into_bytes())
    }

    /// The key that the parameters ask for, its name, and whether it was registered just now.
    async fn key(&self, parameters: Parameters) -> Result<(ResourceUri, Kek, bool), Error> {
        let given = parameters.key_path.as_deref().map(Kek::read).transpose()?;
        if given.is_none() && self.registrar.is_none() {
            return Err(Error::Lost);
        }
        let named = parameters.key_id.is_some();
        let kid = match parameters.key_id {
            Some(kid) => kid,
            None => ResourceUri::parse(&format!("kbs:///{NEW_KEYS}/{}", Uuid::new_v4())).map_err(Error::Name)?,
        };
        let mut keys = self.keys.lock().await;
        let key = match (given, keys.get(&kid)) {
            (Some(given), Some(known)) if given.is(known) => return Ok((kid, given, false)),
            // The layers of an image come one by one, and share the key of their name.
            (None, Some(known)) => return Ok((kid.clone(), known.clone(), false)),
            (Some(_), Some(_)) if !self.registrar.as_ref().is_some_and(Registrar::overwrites) => {
                return Err(Error::OtherKey(kid.to_string()));
            }
            (Some(given), _) => given,
            (None, None) => Kek::generate().map_err(|_| Error::Cipher)?,
        };
        if let Some(registrar) = &self.registrar {
            registrar.register(&resource(&kid)?, &key).await?;
        }
        if named {
            keys.insert(kid.clone(), key.clone());
        }
        Ok((kid, key, self.registrar.is_some()))
    }
}

#[tonic::async_trait]
impl KeyProviderService for KeyProvider {
    async fn wrap_key(&self, request: tonic::Request<Input>) -> Result<tonic::Response<Output>, Status> {
        let input = request.into_inner().key_provider_key_wrap_protocol_input;
        match self.wrap(&input).await {
            Ok(result) => Ok(tonic::Response::new(Output { key_provider_key_wrap_protocol_output: result.into() })),
            Err(error) => {
                tracing::warn!("{error}");
                Err(Status::new(error.code(), error.to_string()))
            }
        }
    }

    async fn un_wrap_key(&self, _: tonic::Request<Input>) -> Result<tonic::Response<Output>, Status> {
        Err(Status::unimplemented(
            "this key provider encrypts only, for guests decrypt; next: run the image in a guest",
        ))
    }
}

/// A layer whose key was wrapped.
#[derive(Clone, Debug, Serialize)]
pub struct Wrapped {
    /// The plain layer's digest, as the encrypter says.
    pub layer: String,
    /// The name of the key that it was wrapped with.
    pub key_id: String,
    /// How.
    pub algorithm: &'static str,
    /// Whether that key was registered with Trustee for this layer.
    pub registered: bool,
}

impl fmt::Display for Wrapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registered = if self.registered { ", registered now" } else { "" };
        write!(f, "layer {}: key wrapped with {} under {}{registered}", self.layer, self.algorithm, self.key_id)
    }
}

/// Why a layer's key was not wrapped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The encrypter's request.
    #[error("wrap a layer's key: {0}")]
    Request(#[from] RequestError),
    /// The key file.
    #[error("wrap a layer's key: {0}")]
    Key(#[from] kek::Error),
    /// A new key would be nowhere.
    #[error(
        "wrap a layer's key: there is no keypath, and without a Trustee a new key would be lost; next: give keypath=FILE, \
         or start the key provider with --kbs"
    )]
    Lost,
    /// One name, two keys.
    #[error(
        "wrap a layer's key: under the name {0} another layer was wrapped with another key; next: give the same keypath, \
         or another keyid"
    )]
    OtherKey(String),
    /// Trustee keeps only `repository/type/tag`.
    #[error("register a key: {0}; next: choose such a keyid")]
    Name(wire::resource::Error),
    /// Trustee said no.
    #[error("register a key: {0}")]
    Registrar(#[from] registrar::Error),
    /// The library failed.
    #[error("wrap a layer's key: the cipher or the system's random numbers failed; next: try again")]
    Cipher,
}

impl Error {
    fn code(&self) -> Code {
        match self {
            Self::Request(_) | Self::Key(_) | Self::Lost | Self::Name(_) => Code::InvalidArgument,
            Self::OtherKey(_) => Code::FailedPrecondition,
            Self::Registrar(error) => error.code(),
            Self::Cipher => Code::Internal,
        }
    }
}

/// The path under which Trustee keeps a key.
fn resource(kid: &ResourceUri) -> Result<ResourcePath, Error> {
    let path = ResourcePath::parse(&kid.path).map_err(Error::Name)?;
    match ResourceUri::resource(&path) == *kid {
        true => Ok(path),
        false => Err(Error::Name(wire::resource::Error::Uri(kid.to_string()))),
    }
}

const NEW_KEYS: &str = "default/image-kek";
const SAMPLE_KEY_ID: &str = "kbs:///default/test-key/1";
/// Upstream's key for tests, which everybody knows.
const SAMPLE_KEY: [u8; 32] = [
    0xd9, 0x9b, 0x77, 0x05, 0xb0, 0xba, 0x7a, 0x16, 0x82, 0x95, 0xb3, 0xa3, 0x36, 0x72, 0x70, 0xb0, 0xdd, 0x9b, 0x37,
    0x1b, 0xf5, 0x14, 0xca, 0x8b, 0x9b, 0xa7, 0xf0, 0xa3, 0x37, 0x11, 0xda, 0xea,
];

#[cfg(test)]
mod tests;
