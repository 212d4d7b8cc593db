//! Requests to the guest's agent, under a policy that allows them: containers that nobody can make, and copied files.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use agent::{Agent, AgentConfig, AgentEvent, ImageError, ImageProcess, Images, Policy, PulledImage, ResolvedImage};
use async_trait::async_trait;
use libfuzzer_sys::fuzz_target;
use protobuf::Message as _;
use tokio::runtime::{Builder, Runtime};
use ttrpc::context;
use wire_ttrpc::agent::{CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest};
use wire_ttrpc::agent_ttrpc::AgentServiceClient;

static GUEST: LazyLock<Guest> = LazyLock::new(Guest::start);

struct Guest {
    runtime: Runtime,
    agent: AgentServiceClient,
    root: PathBuf,
}

// The first byte selects the request, what follows is its message.
fuzz_target!(|bytes: &[u8]| {
    let Some((kind, body)) = bytes.split_first() else { return };
    GUEST.runtime.block_on(async {
        if kind % 2 == 0 {
            let Ok(mut request) = CreateContainerRequest::parse_from_bytes(body) else { return };
            // Nobody plugs disks in here, and waiting for them takes its time.
            request.devices.clear();
            request.storages.retain(|storage| ["image_guest_pull", "local"].contains(&storage.driver.as_str()));
            for storage in &mut request.storages {
                storage.mount_point = GUEST.root.join(&storage.mount_point).display().to_string();
            }
            let made = GUEST.agent.create_container(context::with_timeout(0), &request).await;
            assert!(made.is_err(), "there is no program that could make it");
        } else {
            let Ok(mut request) = CopyFileRequest::parse_from_bytes(body) else { return };
            request.path = format!("{}/shared/containers/{}", GUEST.root.display(), request.path);
            let _ = GUEST.agent.copy_file(context::with_timeout(0), &request).await;
        }
        if bytes.len() % 64 == 0 {
            // Whatever was asked, a pod ends and leaves nothing.
            GUEST.agent.destroy_sandbox(context::with_timeout(0), &DestroySandboxRequest::new()).await.expect("an end");
            let left = std::fs::read_dir(&GUEST.root).expect("a folder").flatten().filter(|it| it.file_name() != ".state");
            assert_eq!(left.count(), 0);
            GUEST.agent.create_sandbox(context::with_timeout(0), &CreateSandboxRequest::new()).await.expect("a sandbox");
        }
    });
});

impl Guest {
    fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let folder = std::env::temp_dir().join(format!("cocoon-fuzz-{}", std::process::id()));
        let root = folder.join("root");
        let agent = runtime.block_on(async {
            let rules = ["CreateSandbox", "DestroySandbox", "CreateContainer", "CopyFile"];
            let rules: String = rules.iter().map(|rule| format!("{rule}Request := true\n")).collect();
            let config = AgentConfig {
                policy: Policy::parse(&format!("package agent_policy\n{rules}")).expect("a policy"),
                images: Arc::new(Empty),
                secrets: None,
                disks: None,
                helper: "/bin/false".into(),
                root: root.clone(),
                resolv_conf: None,
                drivers: tokio::sync::watch::channel(agent::Drivers::All).1,
                version: "fuzz".to_owned(),
            };
            let agent = Arc::new(Agent::new(config).expect("an agent"));
            let mut events = agent.events();
            let address = format!("unix://{}/agent.sock", folder.display());
            tokio::spawn({
                let address = address.clone();
                async move { agent.serve(&address).await }
            });
            while events.recv().await.expect("events") != AgentEvent::Listening {}
            let client = ttrpc::r#async::Client::connect(&address).await.expect("a connection");
            let agent = AgentServiceClient::new(client);
            agent.create_sandbox(context::with_timeout(0), &CreateSandboxRequest::new()).await.expect("a sandbox");
            agent
        });
        Self { runtime, agent, root }
    }
}

/// Every image is there and has nothing in it.
struct Empty;

#[async_trait]
impl Images for Empty {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let process = ImageProcess { args: vec!["/app".to_owned()], ..Default::default() };
        Ok(ResolvedImage { reference: reference.to_owned(), digest: format!("sha256:{}", "0".repeat(64)), process })
    }

    async fn pull(&self, image: &ResolvedImage, bundle: &Path) -> Result<PulledImage, ImageError> {
        let rootfs = bundle.join("rootfs");
        std::fs::create_dir(&rootfs).map_err(|error| ImageError(error.to_string()))?;
        Ok(PulledImage { digest: image.digest.clone(), rootfs })
    }

    async fn release(&self, bundle: &Path) {
        let _ = std::fs::remove_dir(bundle.join("rootfs"));
    }
}
