//! The data hub's services over a unix socket, with a key broker behind it.

#![allow(clippy::unwrap_used)]

#[path = "../../attestation-agent/tests/double/mod.rs"]
mod double;

use std::sync::Arc;
use std::time::Duration;

use attestation_agent::endpoint::Endpoint;
use attestation_agent::{AaConfig, AttestationAgent};
use data_hub::{CdhConfig, DataHub};
use double::KbsDouble;
use evidence::Attester;
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_duration};
use wire::key_provider;
use wire::layer::AnnotationPacket;
use wire::resource::ResourceUri;
use wire_ttrpc::confidential_data_hub as api;
use wire_ttrpc::confidential_data_hub_ttrpc::{
    GetResourceServiceClient, ImagePullServiceClient, SealedSecretServiceClient, SecureMountServiceClient,
};
use wire_ttrpc::key_provider::KeyProviderKeyWrapProtocolInput;
use wire_ttrpc::key_provider_ttrpc::KeyProviderServiceClient;

#[tokio::test]
async fn a_resource_is_fetched_and_each_failure_carries_its_cause() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", b"secret");
    guest.kbs.deny("resource/default/key/denied", 403);

    assert_eq!(guest.resource("kbs:///default/key/1").await.unwrap(), b"secret");

    for (name, reason) in [
        ("kbs:///default/key/denied", "PolicyDeny: the resource policy says no; next: "),
        ("kbs:///default/key/none", "answered 404"),
        ("kbs:///kbs:///default/key/1", "is not a resource URI"),
    ] {
        let (code, text) = guest.resource(name).await.unwrap_err();
        assert_eq!(code, Code::INTERNAL);
        assert!(text.starts_with("[CDH] [ERROR]: Get Resource failed: ") && text.contains(reason), "{text}");
    }
    assert_eq!(guest.kbs.handshakes(), 1);
}

#[tokio::test]
async fn a_layers_key_is_unwrapped_with_the_key_that_it_names() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", &KEK);

    let output = guest.unwrap(&packet("kbs:///default/key/1")).await.unwrap();

    assert_eq!(*key_provider::parse_unwrap_output(&output).unwrap(), OPTIONS);
}

#[tokio::test]
async fn a_layers_key_of_version_1_is_unwrapped_as_well() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", &KEK);
    let mut json: serde_json::Value =
        serde_json::from_slice(&packet("kbs:///default/key/1").to_json().unwrap()).unwrap();
    let members = json.as_object_mut().unwrap();
    members.retain(|name, _| ["kid", "wrapped_data", "iv", "wrap_type"].contains(&name.as_str()));

    let output = guest.unwrap(&AnnotationPacket::parse(json.to_string().as_bytes()).unwrap()).await.unwrap();

    assert_eq!(*key_provider::parse_unwrap_output(&output).unwrap(), OPTIONS);
}

#[tokio::test]
async fn a_layers_key_that_can_not_be_had_says_why() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/other", &[9; 32]);
    guest.kbs.put("resource/default/key/short", &KEK[1..]);
    guest.kbs.deny("resource/default/key/denied", 403);
    for (kid, reason) in [
        ("kbs:///default/key/other", "another key encryption key"),
        ("kbs:///default/key/short", "not 32 bytes"),
        ("kbs:///default/key/denied", "PolicyDeny"),
        ("kbs:///default/key/none", "404"),
    ] {
        let (code, text) = guest.unwrap(&packet(kid)).await.unwrap_err();
        assert_eq!(code, Code::INTERNAL);
        assert!(text.starts_with(&format!("[CDH] [ERROR]: UnWrap Key failed: {kid}: ")), "{text}");
        assert!(text.contains(reason), "{text}");
    }

    let mut json: serde_json::Value =
        serde_json::from_slice(&packet("kbs:///default/key/1").to_json().unwrap()).unwrap();
    json["provider"] = "aliyun".into();
    let packet = AnnotationPacket::parse(json.to_string().as_bytes()).unwrap();
    let (_, text) = guest.unwrap(&packet).await.unwrap_err();
    assert!(text.contains("its provider is \"aliyun\""), "{text}");
}

#[tokio::test]
async fn an_image_that_can_not_be_pulled_says_why() {
    let guest = Guest::start("").await;
    let mut request = api::ImagePullRequest::new();
    request.image_url = "NOT A REFERENCE".to_owned();
    request.bundle_path = guest.folder.path().join("bundle").display().to_string();

    let client = ImagePullServiceClient::new(guest.client().await);
    let (code, text) = status(client.pull_image(context(), &request).await.unwrap_err());

    assert_eq!(code, Code::INTERNAL);
    assert!(text.starts_with("[CDH] [ERROR]: Image Pull error: image reference"), "{text}");
}

#[tokio::test]
async fn accounts_for_registries_are_fetched_before_the_first_pull() {
    let guest = Guest::start("authenticated_registry_credentials_uri = \"kbs:///default/credential/registry\"").await;
    let error = guest.hub.resolve_image("NOT A REFERENCE").await.unwrap_err().to_string();
    assert!(error.starts_with("credentials for registries (kbs:///default/credential/registry): "), "{error}");
    assert!(error.contains("404"), "{error}");

    guest.kbs.put("resource/default/credential/registry", br#"{"auths":{}}"#);
    let error = guest.hub.resolve_image("NOT A REFERENCE").await.unwrap_err().to_string();
    assert!(error.starts_with("image reference"), "{error}");
}

#[tokio::test]
async fn what_is_not_there_yet_is_unimplemented_with_a_reason() {
    let guest = Guest::start("").await;
    let sealed = SealedSecretServiceClient::new(guest.client().await);
    let (code, text) = status(sealed.unseal_secret(context(), &api::UnsealSecretInput::new()).await.unwrap_err());
    assert_eq!(code, Code::UNIMPLEMENTED);
    assert!(text.starts_with("[CDH] [ERROR]: Unseal Secret failed: sealed secrets"), "{text}");

    let mounts = SecureMountServiceClient::new(guest.client().await);
    let (code, text) = status(mounts.secure_mount(context(), &api::SecureMountRequest::new()).await.unwrap_err());
    assert_eq!(code, Code::UNIMPLEMENTED);
    assert!(text.starts_with("[CDH] [ERROR]: Secure Mount failed: encrypted volumes"), "{text}");
}

#[tokio::test]
async fn another_broker_that_trusts_the_tokens_can_hold_the_resources() {
    let issuer = KbsDouble::start().await;
    let holder = KbsDouble::start().await;
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "[kbc]\nname = \"cc_kbc\"\nurl = \"{}\"\n[image]\nwork_dir = \"{}\"\n",
        holder.url(),
        folder.path().display()
    );
    let hub = DataHub::new(CdhConfig::parse(&config).unwrap(), agent(&issuer)).unwrap();

    let error = hub.get_resource(&ResourceUri::parse("kbs:///default/key/1").unwrap()).await.unwrap_err();

    // The double trusts its own tokens alone: what counts is who was asked, and for which token.
    assert!(error.is_refused() && error.to_string().contains(&holder.url()), "{error}");
    assert_eq!((issuer.handshakes(), holder.handshakes()), (3, 0));
}

#[tokio::test]
async fn images_are_resolved_and_released_from_any_task() {
    let guest = Guest::start("").await;
    let (hub, bundle) = (Arc::clone(&guest.hub), guest.folder.path().join("bundle"));
    let task = tokio::spawn(async move {
        assert!(hub.resolve_image("NOT A REFERENCE").await.is_err());
        hub.release_image(&bundle).await
    });
    task.await.unwrap().unwrap();
}

/// A data hub that serves on a socket of its own.
struct Guest {
    kbs: KbsDouble,
    hub: Arc<DataHub>,
    address: String,
    folder: tempfile::TempDir,
    _endpoint: Endpoint,
}

impl Guest {
    /// `image` is added to the table of that name.
    async fn start(image: &str) -> Self {
        let kbs = KbsDouble::start().await;
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let address = format!("unix://{root}/cdh.sock");
        let config = format!(
            "socket = \"{address}\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"{}\"\n[image]\nwork_dir = \"{root}/image\"\n{image}\n",
            kbs.url()
        );
        let hub = Arc::new(DataHub::new(CdhConfig::parse(&config).unwrap(), agent(&kbs)).unwrap());
        let endpoint = data_hub::serve(Arc::clone(&hub)).await.unwrap();
        Self { kbs, hub, address, folder, _endpoint: endpoint }
    }

    async fn client(&self) -> Client {
        Client::connect(&self.address).await.unwrap()
    }

    async fn resource(&self, name: &str) -> Result<Vec<u8>, (Code, String)> {
        let mut request = api::GetResourceRequest::new();
        request.ResourcePath = name.to_owned();
        let client = GetResourceServiceClient::new(self.client().await);
        client.get_resource(context(), &request).await.map(|response| response.Resource).map_err(status)
    }

    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Vec<u8>, (Code, String)> {
        let mut request = KeyProviderKeyWrapProtocolInput::new();
        request.KeyProviderKeyWrapProtocolInput = key_provider::unwrap_input(packet).unwrap();
        let client = KeyProviderServiceClient::new(self.client().await);
        client
            .un_wrap_key(context(), &request)
            .await
            .map(|response| response.KeyProviderKeyWrapProtocolOutput)
            .map_err(status)
    }
}

fn agent(kbs: &KbsDouble) -> Arc<AttestationAgent> {
    let config = AaConfig::parse(&format!("[token_configs.kbs]\nurl = \"{}\"\n", kbs.url())).unwrap();
    Arc::new(AttestationAgent::new(config, Attester::Sample, None).unwrap())
}

fn packet(kid: &str) -> AnnotationPacket {
    AnnotationPacket::wrap(&KEK, &ResourceUri::parse(kid).unwrap(), OPTIONS).unwrap()
}

fn context() -> Context {
    with_duration(Duration::from_secs(30))
}

fn status(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("{other}"),
    }
}

const KEK: [u8; 32] = [7; 32];
const OPTIONS: &[u8] = b"{\"symkey\":\"\"}";
