//! The ttrpc services that upstream's tools and components call.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use attestation_agent::endpoint::Endpoint;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use wire::resource::ResourceUri;
use wire_ttrpc::confidential_data_hub::{
    GetResourceRequest, GetResourceResponse, ImagePullRequest, ImagePullResponse, SecureMountRequest,
    SecureMountResponse, UnsealSecretInput, UnsealSecretOutput,
};
use wire_ttrpc::confidential_data_hub_ttrpc::{
    GetResourceService, ImagePullService, SealedSecretService, SecureMountService, create_get_resource_service,
    create_image_pull_service, create_sealed_secret_service, create_secure_mount_service,
};
use wire_ttrpc::key_provider::{KeyProviderKeyWrapProtocolInput, KeyProviderKeyWrapProtocolOutput};
use wire_ttrpc::key_provider_ttrpc::{KeyProviderService, create_key_provider_service};

use crate::error::Error;
use crate::hub::DataHub;

/// Fills the configured credential files, then serves `hub` at the configured socket until the endpoint is dropped.
///
/// # Errors
/// If a credential or the socket can't be had; then nothing is served.
pub async fn serve(hub: Arc<DataHub>) -> Result<Endpoint, Error> {
    hub.fetch_credentials().await?;
    let facade = Arc::new(Facade(Arc::clone(&hub)));
    let mut services = create_get_resource_service(Arc::clone(&facade) as _);
    services.extend(create_image_pull_service(Arc::clone(&facade) as _));
    services.extend(create_key_provider_service(Arc::clone(&facade) as _));
    services.extend(create_sealed_secret_service(Arc::clone(&facade) as _));
    services.extend(create_secure_mount_service(facade));
    Ok(Endpoint::open(hub.socket(), services).await?)
}

struct Facade(Arc<DataHub>);

#[async_trait]
impl GetResourceService for Facade {
    async fn get_resource(&self, _: &TtrpcContext, request: GetResourceRequest) -> ttrpc::Result<GetResourceResponse> {
        let resource = async { self.0.get_resource(&ResourceUri::parse(&request.ResourcePath)?).await };
        let resource = resource.await.map_err(|e| failed("Get Resource failed", &e))?;
        let mut response = GetResourceResponse::new();
        response.Resource = resource.to_vec();
        Ok(response)
    }
}

#[async_trait]
impl KeyProviderService for Facade {
    async fn un_wrap_key(
        &self,
        _: &TtrpcContext,
        request: KeyProviderKeyWrapProtocolInput,
    ) -> ttrpc::Result<KeyProviderKeyWrapProtocolOutput> {
        let input = &request.KeyProviderKeyWrapProtocolInput;
        let output = self.0.unwrap_key(input).await.map_err(|e| failed("UnWrap Key failed", &e))?;
        let mut response = KeyProviderKeyWrapProtocolOutput::new();
        response.KeyProviderKeyWrapProtocolOutput = output.to_vec();
        Ok(response)
    }

    async fn wrap_key(
        &self,
        _: &TtrpcContext,
        _: KeyProviderKeyWrapProtocolInput,
    ) -> ttrpc::Result<KeyProviderKeyWrapProtocolOutput> {
        Err(unimplemented("Wrap Key", "images are encrypted outside of the guest"))
    }
}

#[async_trait]
impl ImagePullService for Facade {
    async fn pull_image(&self, _: &TtrpcContext, request: ImagePullRequest) -> ttrpc::Result<ImagePullResponse> {
        let refused = |error: Error| failed("Image Pull error", &error);
        let image = self.0.resolve_image(&request.image_url).await.map_err(refused)?;
        let pulled = self.0.pull_image(&image, Path::new(&request.bundle_path)).await.map_err(refused)?;
        let mut response = ImagePullResponse::new();
        response.manifest_digest = pulled.digest;
        Ok(response)
    }
}

#[async_trait]
impl SealedSecretService for Facade {
    async fn unseal_secret(&self, _: &TtrpcContext, _: UnsealSecretInput) -> ttrpc::Result<UnsealSecretOutput> {
        Err(unimplemented("Unseal Secret", "sealed secrets are not supported yet; next: read the secret as a resource"))
    }
}

#[async_trait]
impl SecureMountService for Facade {
    async fn secure_mount(&self, _: &TtrpcContext, _: SecureMountRequest) -> ttrpc::Result<SecureMountResponse> {
        Err(unimplemented("Secure Mount", "encrypted volumes are not supported yet; next: use the guest's memory"))
    }
}

fn failed(brief: &str, error: &Error) -> ttrpc::Error {
    tracing::warn!(%error, "{brief}");
    ttrpc::error::get_rpc_status(Code::INTERNAL, format!("{PREFIX} {brief}: {error}"))
}

fn unimplemented(what: &str, why: &str) -> ttrpc::Error {
    ttrpc::error::get_rpc_status(Code::UNIMPLEMENTED, format!("{PREFIX} {what} failed: {why}"))
}

const PREFIX: &str = "[CDH] [ERROR]:";
