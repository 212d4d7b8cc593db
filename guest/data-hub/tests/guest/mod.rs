//! A data hub that serves on an address of its own, and clients of either protocol.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use attestation_agent::endpoint::Endpoint;
use attestation_agent::{AaConfig, AttestationAgent};
use data_hub::{CdhConfig, DataHub};
use evidence::Attester;
use tempfile::TempDir;
use tonic::transport::Channel;
use ttrpc::context::{Context, with_duration};
use wire::key_provider;
use wire::layer::AnnotationPacket;
use wire::resource::ResourceUri;
use wire_grpc::confidential_data_hub as grpc;
use wire_ttrpc::confidential_data_hub as api;
use wire_ttrpc::confidential_data_hub_ttrpc::{
    GetResourceServiceClient, ImagePullServiceClient, SealedSecretServiceClient, SecureMountServiceClient,
};
use wire_ttrpc::key_provider::KeyProviderKeyWrapProtocolInput;
use wire_ttrpc::key_provider_ttrpc::KeyProviderServiceClient;

use crate::double::KbsDouble;

/// A guest and its key broker. The agent is in the same process.
pub struct Guest {
    pub kbs: KbsDouble,
    pub hub: Arc<DataHub>,
    pub folder: TempDir,
    address: String,
    _endpoint: Endpoint,
}

/// What the answer of a service is: its bytes, or the name of its status and the text.
pub type Outcome = Result<Vec<u8>, (String, String)>;

impl Guest {
    /// `config` is added to the end of the configuration: tables, or keys of `image`, the last one.
    pub async fn start(config: &str) -> Self {
        Self::serve("unix", config, |_| {}).await
    }

    pub async fn over_grpc(config: &str) -> Self {
        Self::serve("grpc", config, |_| {}).await
    }

    /// `prepare` sees the configuration before the hub is made.
    pub async fn prepared(config: &str, prepare: impl FnOnce(&mut CdhConfig)) -> Self {
        Self::serve("unix", config, prepare).await
    }

    async fn serve(protocol: &str, config: &str, prepare: impl FnOnce(&mut CdhConfig)) -> Self {
        let kbs = KbsDouble::start().await;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let address = match protocol {
            "grpc" => "127.0.0.1:0".to_owned(),
            _ => format!("unix://{root}/cdh.sock"),
        };
        let text = format!(
            "socket = \"{address}\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"{}\"\n[image]\nwork_dir = \"{root}/image\"\n{config}\n",
            kbs.url()
        );
        let mut config = CdhConfig::parse(&text).unwrap();
        config.places.folder = folder.path().join("cdh");
        prepare(&mut config);
        let hub = Arc::new(DataHub::new(config, agent(&kbs)).unwrap());
        let endpoint = data_hub::serve(Arc::clone(&hub)).await.unwrap();
        let address = endpoint.grpc_address().map_or(address, |address| format!("http://{address}"));
        Self { kbs, hub, folder, address, _endpoint: endpoint }
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.address).await
    }

    pub async fn resource(&self, name: &str) -> Outcome {
        self.client().await.resource(name).await
    }

    pub async fn unseal(&self, secret: &str) -> Outcome {
        self.client().await.unseal(secret.as_bytes()).await
    }

    pub async fn unwrap(&self, packet: &AnnotationPacket) -> Outcome {
        self.client().await.unwrap(&key_provider::unwrap_input(packet).unwrap()).await
    }

    /// Puts a file below the data hub's folder.
    pub fn file(&self, path: &str, content: &[u8]) {
        let path = self.folder.path().join("cdh").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
}

/// A client of all services.
pub enum Client {
    Ttrpc(ttrpc::r#async::Client),
    Grpc(Channel),
}

impl Client {
    /// At `unix://…` or `http://…`.
    pub async fn connect(address: &str) -> Self {
        if address.starts_with("http://") {
            return Self::Grpc(Channel::from_shared(address.to_owned()).unwrap().connect().await.unwrap());
        }
        Self::Ttrpc(ttrpc::r#async::Client::connect(address).await.unwrap())
    }

    pub async fn resource(&self, name: &str) -> Outcome {
        match self {
            Self::Ttrpc(client) => {
                let mut request = api::GetResourceRequest::new();
                request.ResourcePath = name.to_owned();
                let client = GetResourceServiceClient::new(client.clone());
                client.get_resource(context(), &request).await.map(|answer| answer.Resource).map_err(ttrpc_status)
            }
            Self::Grpc(channel) => {
                let request = grpc::GetResourceRequest { resource_path: name.to_owned() };
                let mut client = grpc::get_resource_service_client::GetResourceServiceClient::new(channel.clone());
                let answer = client.get_resource(request).await.map_err(grpc_status)?;
                Ok(answer.into_inner().resource.to_vec())
            }
        }
    }

    pub async fn unseal(&self, secret: &[u8]) -> Outcome {
        match self {
            Self::Ttrpc(client) => {
                let mut request = api::UnsealSecretInput::new();
                request.secret = secret.to_vec();
                let client = SealedSecretServiceClient::new(client.clone());
                client.unseal_secret(context(), &request).await.map(|answer| answer.plaintext).map_err(ttrpc_status)
            }
            Self::Grpc(channel) => {
                let request = grpc::UnsealSecretInput { secret: secret.to_vec().into() };
                let mut client = grpc::sealed_secret_service_client::SealedSecretServiceClient::new(channel.clone());
                let answer = client.unseal_secret(request).await.map_err(grpc_status)?;
                Ok(answer.into_inner().plaintext.to_vec())
            }
        }
    }

    pub async fn unwrap(&self, input: &[u8]) -> Outcome {
        self.key_provider(input, false).await
    }

    pub async fn wrap(&self, input: &[u8]) -> Outcome {
        self.key_provider(input, true).await
    }

    async fn key_provider(&self, input: &[u8], wrap: bool) -> Outcome {
        match self {
            Self::Ttrpc(client) => {
                let mut request = KeyProviderKeyWrapProtocolInput::new();
                request.KeyProviderKeyWrapProtocolInput = input.to_vec();
                let client = KeyProviderServiceClient::new(client.clone());
                let answer = match wrap {
                    true => client.wrap_key(context(), &request).await,
                    false => client.un_wrap_key(context(), &request).await,
                };
                answer.map(|answer| answer.KeyProviderKeyWrapProtocolOutput).map_err(ttrpc_status)
            }
            Self::Grpc(channel) => {
                use wire_grpc::key_provider as grpc;
                let request = grpc::KeyProviderKeyWrapProtocolInput {
                    key_provider_key_wrap_protocol_input: input.to_vec().into(),
                };
                let mut client = grpc::key_provider_service_client::KeyProviderServiceClient::new(channel.clone());
                let answer = match wrap {
                    true => client.wrap_key(request).await,
                    false => client.un_wrap_key(request).await,
                };
                let answer = answer.map_err(grpc_status)?.into_inner();
                Ok(answer.key_provider_key_wrap_protocol_output.to_vec())
            }
        }
    }

    pub async fn mount(&self, volume_type: &str, options: &[(&str, &str)], mount_point: &Path) -> Outcome {
        let options: HashMap<String, String> =
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mount_point = mount_point.display().to_string();
        match self {
            Self::Ttrpc(client) => {
                let mut request = api::SecureMountRequest::new();
                request.volume_type = volume_type.to_owned();
                request.options = options;
                request.mount_point = mount_point;
                let client = SecureMountServiceClient::new(client.clone());
                client.secure_mount(context(), &request).await.map(|_| Vec::new()).map_err(ttrpc_status)
            }
            Self::Grpc(channel) => {
                let (volume_type, flags) = (volume_type.to_owned(), Vec::new());
                let request = grpc::SecureMountRequest { volume_type, options, flags, mount_point };
                let mut client = grpc::secure_mount_service_client::SecureMountServiceClient::new(channel.clone());
                client.secure_mount(request).await.map(|_| Vec::new()).map_err(grpc_status)
            }
        }
    }

    pub async fn pull(&self, image: &str, bundle: &Path) -> Outcome {
        let (image_url, bundle_path) = (image.to_owned(), bundle.display().to_string());
        match self {
            Self::Ttrpc(client) => {
                let mut request = api::ImagePullRequest::new();
                request.image_url = image_url;
                request.bundle_path = bundle_path;
                let client = ImagePullServiceClient::new(client.clone());
                let answer = client.pull_image(context(), &request).await.map_err(ttrpc_status)?;
                Ok(answer.manifest_digest.into_bytes())
            }
            Self::Grpc(channel) => {
                let request = grpc::ImagePullRequest { image_url, bundle_path };
                let mut client = grpc::image_pull_service_client::ImagePullServiceClient::new(channel.clone());
                let answer = client.pull_image(request).await.map_err(grpc_status)?;
                Ok(answer.into_inner().manifest_digest.into_bytes())
            }
        }
    }
}

/// An agent of the sample TEE whose broker is `kbs`.
pub fn agent(kbs: &KbsDouble) -> Arc<AttestationAgent> {
    Arc::new(AttestationAgent::new(agent_config(kbs), Attester::sample(), None).unwrap())
}

pub fn agent_config(kbs: &KbsDouble) -> AaConfig {
    AaConfig::parse(&format!("[token_configs.kbs]\nurl = \"{}\"\n", kbs.url())).unwrap()
}

pub fn packet(kid: &str) -> AnnotationPacket {
    AnnotationPacket::wrap(&KEK, &ResourceUri::parse(kid).unwrap(), OPTIONS).unwrap()
}

fn context() -> Context {
    with_duration(Duration::from_secs(30))
}

fn ttrpc_status(error: ttrpc::Error) -> (String, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (format!("{:?}", status.code()), status.message),
        other => panic!("{other}"),
    }
}

fn grpc_status(status: tonic::Status) -> (String, String) {
    (format!("{:?}", status.code()).to_uppercase(), status.message().to_owned())
}

pub const KEK: [u8; 32] = [7; 32];
pub const OPTIONS: &[u8] = b"{\"symkey\":\"\"}";
