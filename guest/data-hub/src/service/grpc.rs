//! The services over gRPC.

use tonic::service::Routes;
use tonic::{Code, Request, Response, Status};
use wire_grpc::confidential_data_hub::get_resource_service_server::{GetResourceService, GetResourceServiceServer};
use wire_grpc::confidential_data_hub::image_pull_service_server::{ImagePullService, ImagePullServiceServer};
use wire_grpc::confidential_data_hub::sealed_secret_service_server::{SealedSecretService, SealedSecretServiceServer};
use wire_grpc::confidential_data_hub::secure_mount_service_server::{SecureMountService, SecureMountServiceServer};
use wire_grpc::confidential_data_hub::{
    GetResourceRequest, GetResourceResponse, ImagePullRequest, ImagePullResponse, SecureMountRequest,
    SecureMountResponse, UnsealSecretInput, UnsealSecretOutput,
};
use wire_grpc::key_provider::key_provider_service_server::{KeyProviderService, KeyProviderServiceServer};
use wire_grpc::key_provider::{KeyProviderKeyWrapProtocolInput, KeyProviderKeyWrapProtocolOutput};

use super::{Calls, Failure};

/// All five services.
pub(super) fn routes(calls: Calls) -> Routes {
    Routes::new(GetResourceServiceServer::new(calls.clone()))
        .add_service(ImagePullServiceServer::new(calls.clone()))
        .add_service(KeyProviderServiceServer::new(calls.clone()))
        .add_service(SealedSecretServiceServer::new(calls.clone()))
        .add_service(SecureMountServiceServer::new(calls))
}

#[tonic::async_trait]
impl GetResourceService for Calls {
    async fn get_resource(
        &self,
        request: Request<GetResourceRequest>,
    ) -> Result<Response<GetResourceResponse>, Status> {
        let resource = self.resource(&request.get_ref().resource_path).await?.to_vec().into();
        Ok(Response::new(GetResourceResponse { resource }))
    }
}

#[tonic::async_trait]
impl KeyProviderService for Calls {
    async fn un_wrap_key(
        &self,
        request: Request<KeyProviderKeyWrapProtocolInput>,
    ) -> Result<Response<KeyProviderKeyWrapProtocolOutput>, Status> {
        let output = self.unwrap_key(&request.get_ref().key_provider_key_wrap_protocol_input).await?;
        let key_provider_key_wrap_protocol_output = output.to_vec().into();
        Ok(Response::new(KeyProviderKeyWrapProtocolOutput { key_provider_key_wrap_protocol_output }))
    }

    async fn wrap_key(
        &self,
        _: Request<KeyProviderKeyWrapProtocolInput>,
    ) -> Result<Response<KeyProviderKeyWrapProtocolOutput>, Status> {
        Err(Calls::wrap_key(self).into())
    }
}

#[tonic::async_trait]
impl ImagePullService for Calls {
    async fn pull_image(&self, request: Request<ImagePullRequest>) -> Result<Response<ImagePullResponse>, Status> {
        let ImagePullRequest { image_url, bundle_path } = request.into_inner();
        let manifest_digest = self.pull(&image_url, &bundle_path).await?;
        Ok(Response::new(ImagePullResponse { manifest_digest }))
    }
}

#[tonic::async_trait]
impl SealedSecretService for Calls {
    async fn unseal_secret(&self, request: Request<UnsealSecretInput>) -> Result<Response<UnsealSecretOutput>, Status> {
        let plaintext = self.unseal(&request.get_ref().secret).await?.to_vec().into();
        Ok(Response::new(UnsealSecretOutput { plaintext }))
    }
}

#[tonic::async_trait]
impl SecureMountService for Calls {
    async fn secure_mount(
        &self,
        request: Request<SecureMountRequest>,
    ) -> Result<Response<SecureMountResponse>, Status> {
        let SecureMountRequest { volume_type, options, flags, mount_point } = request.into_inner();
        self.mount(volume_type, options, flags, mount_point).await?;
        Ok(Response::new(SecureMountResponse {}))
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self::new(if failure.unimplemented { Code::Unimplemented } else { Code::Internal }, failure.text)
    }
}
