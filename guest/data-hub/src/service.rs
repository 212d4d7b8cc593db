//! The services that upstream's tools and components call: what each call answers, whichever protocol it comes by.

mod grpc;
mod ttrpc;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use attestation_agent::endpoint::{Address, Endpoint};
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::hub::DataHub;

/// Fills the configured credential files, then serves `hub` at the configured address until the endpoint is dropped:
/// over ttrpc at a unix socket, over gRPC at a port.
///
/// # Errors
/// If a credential or the address can't be had; then nothing is served.
pub async fn serve(hub: Arc<DataHub>) -> Result<Endpoint, Error> {
    let address = Address::parse(hub.socket())?;
    hub.fetch_credentials().await?;
    let socket = hub.socket().to_owned();
    Ok(match address {
        Address::Ttrpc(_) => Endpoint::open(&socket, ttrpc::services(Calls(hub))).await?,
        Address::Grpc(_) => Endpoint::open_grpc(&socket, grpc::routes(Calls(hub))).await?,
    })
}

/// The calls, in the terms of neither protocol.
#[derive(Clone)]
struct Calls(Arc<DataHub>);

impl Calls {
    async fn resource(&self, path: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let resource = async { self.0.get_resource(&ResourceUri::parse(path)?).await };
        resource.await.map_err(|e| Failure::of("Get Resource failed", &e))
    }

    async fn unseal(&self, secret: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.unseal(secret).await.map_err(|e| Failure::of("Unseal Secret failed", &e))
    }

    async fn unwrap_key(&self, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.0.unwrap_key(input).await.map_err(|e| Failure::of("UnWrap Key failed", &e))
    }

    fn wrap_key(&self) -> Failure {
        let text = format!("{PREFIX} Wrap Key failed: images are encrypted outside of the guest");
        Failure { unimplemented: true, text }
    }

    async fn mount(
        &self,
        volume_type: String,
        options: HashMap<String, String>,
        flags: Vec<String>,
        mount_point: String,
    ) -> Result<(), Failure> {
        let mounted = self.0.mount(volume_type, options, flags, mount_point.into()).await;
        mounted.map_err(|e| Failure::of("Secure Mount failed", &e))
    }

    /// The digest of the manifest that is mounted now.
    async fn pull(&self, reference: &str, bundle: &str) -> Result<String, Failure> {
        let pulled = async {
            let image = self.0.resolve_image(reference).await?;
            self.0.pull_image(reference, &image, Path::new(bundle)).await
        };
        pulled.await.map(|pulled| pulled.digest).map_err(|e| Failure::of("Image Pull error", &e))
    }
}

/// A call that failed: its text starts as upstream's does, and goes on with the causes.
struct Failure {
    /// Nobody could have done it; otherwise the status is INTERNAL, as upstream's always is.
    unimplemented: bool,
    text: String,
}

impl Failure {
    fn of(brief: &str, error: &Error) -> Self {
        tracing::warn!(%error, "{brief}");
        Self { unimplemented: false, text: format!("{PREFIX} {brief}: {error}") }
    }
}

const PREFIX: &str = "[CDH] [ERROR]:";
