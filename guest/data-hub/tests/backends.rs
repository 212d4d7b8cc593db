//! Where resources come from: an agent in another process, files, and the credentials that are fetched first.

#![allow(clippy::unwrap_used)]

#[path = "../../attestation-agent/tests/double/mod.rs"]
mod double;
mod guest;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use attestation_agent::AttestationAgent;
use attestation_agent::endpoint::Endpoint;
use data_hub::{CdhConfig, DataHub};
use double::KbsDouble;
use evidence::Attester;
use guest::{Guest, agent};
use tempfile::TempDir;
use ttrpc::r#async::TtrpcContext;
use wire::jwe::KeyAlgorithm;
use wire::resource::ResourceUri;
use wire::sealed_secret::{KeyId, Payload, SealedSecret, SealingKey, Vault};
use wire_ttrpc::attestation_agent::{GetTokenRequest, GetTokenResponse};
use wire_ttrpc::attestation_agent_ttrpc::{AttestationAgentService, create_attestation_agent_service};

#[tokio::test]
async fn fifty_gets_at_once_need_one_handshake() {
    let guest = Guest::start("").await;
    guest.kbs.put("resource/default/key/1", b"secret");
    let uri = ResourceUri::parse("kbs:///default/key/1").unwrap();

    let gets = (0..50).map(|_| {
        let (hub, uri) = (Arc::clone(&guest.hub), uri.clone());
        tokio::spawn(async move { hub.get_resource(&uri).await })
    });
    for get in gets.collect::<Vec<_>>() {
        assert_eq!(*get.await.unwrap().unwrap(), b"secret");
    }

    assert_eq!(guest.kbs.handshakes(), 1);
}

#[tokio::test]
async fn an_agent_in_another_process_is_asked_once_for_fifty_gets() {
    let agent = UpstreamAgent::start().await;
    agent.kbs.put("resource/default/key/1", b"secret");
    let hub = Arc::new(agent.hub());

    let gets = (0..50).map(|_| {
        let hub = Arc::clone(&hub);
        tokio::spawn(async move { hub.get_resource(&ResourceUri::parse("kbs:///default/key/1").unwrap()).await })
    });
    for get in gets.collect::<Vec<_>>() {
        assert_eq!(*get.await.unwrap().unwrap(), b"secret");
    }

    assert_eq!((agent.asked(), agent.kbs.handshakes()), (1, 1));
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let agent = UpstreamAgent::start().await;
    agent.kbs.put("resource/default/key/1", b"secret");
    let hub = agent.hub();
    let uri = ResourceUri::parse("kbs:///default/key/1").unwrap();
    hub.get_resource(&uri).await.unwrap();

    agent.kbs.revoke_tokens();
    assert_eq!(*hub.get_resource(&uri).await.unwrap(), b"secret");
    assert_eq!(agent.asked(), 2);

    let missing = hub.get_resource(&ResourceUri::parse("kbs:///default/key/2").unwrap()).await.unwrap_err();
    assert!(missing.is_not_found(), "{missing}");
    agent.kbs.deny("resource/default/key/1", 401);
    assert!(hub.get_resource(&uri).await.unwrap_err().is_refused());
    assert_eq!(agent.asked(), 2, "a refusal by policy is no reason for a new token");
}

#[tokio::test]
async fn our_own_agent_serves_tokens_with_every_kind_of_key() {
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    for algorithm in KeyAlgorithm::ALL {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/aa.sock", folder.path().display());
        let mut config = guest::agent_config(&kbs);
        config.token_configs.kbs.as_mut().unwrap().tee_key_algorithm = algorithm;
        let agent = Arc::new(AttestationAgent::new(config, Attester::sample(), None).unwrap());
        let _endpoint = attestation_agent::serve(agent, &address).await.unwrap();

        let hub = standalone(&kbs, &address, &folder);

        let secret = hub.get_resource(&ResourceUri::parse("kbs:///default/key/1").unwrap()).await.unwrap();
        assert_eq!(*secret, b"secret", "{algorithm:?}");
    }
}

/// As after a restart of the broker with other keys: what it has signed before counts no longer.
#[tokio::test]
async fn our_own_agent_attests_anew_when_the_broker_refuses_its_token() {
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/aa.sock", folder.path().display());
    let _endpoint = attestation_agent::serve(agent(&kbs), &address).await.unwrap();
    let hubs = [(); 2].map(|()| Arc::new(standalone(&kbs, &address, &folder)));
    let uri = ResourceUri::parse("kbs:///default/key/1").unwrap();
    for hub in &hubs {
        hub.get_resource(&uri).await.unwrap();
    }
    assert_eq!(kbs.handshakes(), 1);

    kbs.revoke_tokens();

    let gets = hubs.iter().cycle().take(50).map(|hub| {
        let (hub, uri) = (Arc::clone(hub), uri.clone());
        tokio::spawn(async move { hub.get_resource(&uri).await })
    });
    for get in gets.collect::<Vec<_>>() {
        assert_eq!(*get.await.unwrap().unwrap(), b"secret");
    }
    assert_eq!(kbs.handshakes(), 2, "all who had the old token share the new one");
}

#[tokio::test]
async fn a_broker_that_accepts_no_token_is_given_up() {
    let kbs = KbsDouble::with_faults(double::Faults { forget_tokens: true, ..double::Faults::default() }).await;
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/aa.sock", folder.path().display());
    let _endpoint = attestation_agent::serve(agent(&kbs), &address).await.unwrap();
    let hub = standalone(&kbs, &address, &folder);

    let error = hub.get_resource(&ResourceUri::parse("kbs:///default/key/1").unwrap()).await.unwrap_err();

    assert!(error.is_refused(), "{error}");
    assert_eq!(kbs.handshakes(), 3);
}

#[tokio::test]
async fn an_agent_that_is_not_there_or_refuses_is_named() {
    let kbs = KbsDouble::start().await;
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix://{}/aa.sock", folder.path().display());
    let hub = standalone(&kbs, &address, &folder);
    let uri = ResourceUri::parse("kbs:///default/key/1").unwrap();
    let error = hub.get_resource(&uri).await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains(&format!("GetToken at {address}")), "{error}");

    let refusing = KbsDouble::with_faults(double::Faults {
        refuse_attest: Some("no reference value fits".to_owned()),
        ..double::Faults::default()
    });
    let _endpoint = attestation_agent::serve(agent(&refusing.await), &address).await.unwrap();
    let error = hub.get_resource(&uri).await.unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("no reference value fits"), "{error}");
}

#[tokio::test]
async fn files_stand_for_a_key_broker() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("resources.json");
    std::fs::write(&files, r#"{"default/key/1": "c2VjcmV0"}"#).unwrap();
    let mut config = CdhConfig::parse(&format!(
        "[kbc]\nname = \"offline_fs_kbc\"\n[image]\nwork_dir = \"{}\"\n",
        folder.path().display()
    ))
    .unwrap();
    config.places.offline = vec![folder.path().join("absent.json"), files];
    let hub = DataHub::standalone(config).unwrap();

    assert_eq!(*hub.get_resource(&ResourceUri::parse("kbs:///default/key/1").unwrap()).await.unwrap(), b"secret");
    let error = hub.get_resource(&ResourceUri::parse("kbs:///default/key/2").unwrap()).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn a_hub_alone_needs_to_know_its_broker() {
    let error = DataHub::standalone(CdhConfig::parse("").unwrap()).err().unwrap().to_string();
    assert!(error.contains("kbc.url is missing; next: "), "{error}");
}

#[tokio::test]
async fn credentials_are_there_before_the_socket() {
    let kbs = KbsDouble::start().await;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().display();
    let text = format!(
        "socket = \"unix://{root}/cdh.sock\"\n[image]\nwork_dir = \"{root}/image\"\n\
         [[credentials]]\npath = \"/run/confidential-containers/cdh/kbs/aws/credential.json\"\nresource_uri = \"kbs:///a/b/aws\"\n\
         [[credentials]]\npath = \"/run/confidential-containers/cdh/sealed-secret/owner\"\nresource_uri = \"kbs:///a/b/owner\"\n"
    );
    let mut config = CdhConfig::parse(&text).unwrap();
    config.places.folder = folder.path().join("cdh");
    let key = SealingKey::generate().unwrap();
    kbs.put("resource/a/b/aws", b"{}");
    let hub = Arc::new(DataHub::new(config.clone(), agent(&kbs)).unwrap());

    let failed = data_hub::serve(hub).await.err().unwrap();
    assert!(failed.is_not_found() && !folder.path().join("cdh.sock").exists(), "{failed}");

    kbs.put("resource/a/b/owner", &key.public_jwk(None));
    kbs.put("resource/a/b/c", b"secret");
    let hub = Arc::new(DataHub::new(config, agent(&kbs)).unwrap());
    let _endpoint = data_hub::serve(Arc::clone(&hub)).await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("cdh/kbs/aws/credential.json")).unwrap(), b"{}");
    let payload = Payload::Vault(Vault::in_key_broker(&ResourceUri::parse("kbs:///a/b/c").unwrap()));
    let sealed = SealedSecret::seal(&payload, &key, &KeyId::parse("owner").unwrap()).unwrap();
    assert_eq!(*hub.unseal(sealed.as_bytes()).await.unwrap(), b"secret");
}

/// An agent that attests for each token that it is asked for, as upstream's does.
struct UpstreamAgent {
    kbs: Arc<KbsDouble>,
    asked: Arc<AtomicUsize>,
    address: String,
    folder: TempDir,
    _endpoint: Endpoint,
}

impl UpstreamAgent {
    async fn start() -> Self {
        let (kbs, asked) = (Arc::new(KbsDouble::start().await), Arc::<AtomicUsize>::default());
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix://{}/aa.sock", folder.path().display());
        let tokens = Tokens { kbs: Arc::clone(&kbs), asked: Arc::clone(&asked) };
        let services: HashMap<_, _> = create_attestation_agent_service(Arc::new(tokens));
        let endpoint = Endpoint::open(&address, services).await.unwrap();
        Self { kbs, asked, address, folder, _endpoint: endpoint }
    }

    fn hub(&self) -> DataHub {
        standalone(&self.kbs, &self.address, &self.folder)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

struct Tokens {
    kbs: Arc<KbsDouble>,
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl AttestationAgentService for Tokens {
    async fn get_token(&self, _: &TtrpcContext, request: GetTokenRequest) -> ttrpc::Result<GetTokenResponse> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut response = GetTokenResponse::new();
        response.Token = agent(&self.kbs).typed_token(&request.TokenType).await.unwrap().to_vec();
        Ok(response)
    }
}

fn standalone(kbs: &KbsDouble, agent: &str, folder: &TempDir) -> DataHub {
    let config = format!(
        "[aa]\naa_socket = \"{agent}\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"{}\"\n[image]\nwork_dir = \"{}/image\"\n",
        kbs.url(),
        folder.path().display()
    );
    DataHub::standalone(CdhConfig::parse(&config).unwrap()).unwrap()
}
