//! The services over ttrpc.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::Code;
use ttrpc::r#async::{Service, TtrpcContext};
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

use super::{Calls, Failure};

/// All five services.
pub(super) fn services(calls: Calls) -> HashMap<String, Service> {
    let calls = Arc::new(calls);
    let mut services = create_get_resource_service(Arc::clone(&calls) as _);
    services.extend(create_image_pull_service(Arc::clone(&calls) as _));
    services.extend(create_key_provider_service(Arc::clone(&calls) as _));
    services.extend(create_sealed_secret_service(Arc::clone(&calls) as _));
    services.extend(create_secure_mount_service(calls));
    services
}

#[async_trait]
impl GetResourceService for Calls {
    async fn get_resource(&self, _: &TtrpcContext, request: GetResourceRequest) -> ttrpc::Result<GetResourceResponse> {
        let mut response = GetResourceResponse::new();
        response.Resource = self.resource(&request.ResourcePath).await?.to_vec();
        Ok(response)
    }
}

#[async_trait]
impl KeyProviderService for Calls {
    async fn un_wrap_key(
        &self,
        _: &TtrpcContext,
        request: KeyProviderKeyWrapProtocolInput,
    ) -> ttrpc::Result<KeyProviderKeyWrapProtocolOutput> {
        let mut response = KeyProviderKeyWrapProtocolOutput::new();
        let output = self.unwrap_key(&request.KeyProviderKeyWrapProtocolInput).await?;
        response.KeyProviderKeyWrapProtocolOutput = output.to_vec();
        Ok(response)
    }

    async fn wrap_key(
        &self,
        _: &TtrpcContext,
        _: KeyProviderKeyWrapProtocolInput,
    ) -> ttrpc::Result<KeyProviderKeyWrapProtocolOutput> {
        Err(Calls::wrap_key(self).into())
    }
}

#[async_trait]
impl ImagePullService for Calls {
    async fn pull_image(&self, _: &TtrpcContext, request: ImagePullRequest) -> ttrpc::Result<ImagePullResponse> {
        let mut response = ImagePullResponse::new();
        response.manifest_digest = self.pull(&request.image_url, &request.bundle_path).await?;
        Ok(response)
    }
}

#[async_trait]
impl SealedSecretService for Calls {
    async fn unseal_secret(&self, _: &TtrpcContext, request: UnsealSecretInput) -> ttrpc::Result<UnsealSecretOutput> {
        let mut response = UnsealSecretOutput::new();
        response.plaintext = self.unseal(&request.secret).await?.to_vec();
        Ok(response)
    }
}

#[async_trait]
impl SecureMountService for Calls {
    async fn secure_mount(&self, _: &TtrpcContext, request: SecureMountRequest) -> ttrpc::Result<SecureMountResponse> {
        self.mount(request.volume_type, request.options, request.flags, request.mount_point).await?;
        Ok(SecureMountResponse::new())
    }
}

impl From<Failure> for ttrpc::Error {
    fn from(failure: Failure) -> Self {
        let code = if failure.unimplemented { Code::UNIMPLEMENTED } else { Code::INTERNAL };
        ttrpc::error::get_rpc_status(code, failure.text)
    }
}
