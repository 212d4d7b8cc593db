//! Pulled images are measured before anybody can use them.

#![allow(clippy::unwrap_used)]

#[path = "../../attestation-agent/tests/double/mod.rs"]
mod double;
mod guest;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use attestation_agent::endpoint::Endpoint;
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse as _;
use data_hub::{CdhConfig, DataHub};
use guest::Client;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use ttrpc::r#async::TtrpcContext;
use wire_ttrpc::attestation_agent::{
    ExtendRuntimeMeasurementRequest, ExtendRuntimeMeasurementResponse, RuntimeMeasurementResult,
};
use wire_ttrpc::attestation_agent_ttrpc::{AttestationAgentService, create_attestation_agent_service};

#[tokio::test]
async fn a_pulled_image_is_measured_by_its_name_and_digest() {
    let Some(guest) = Guest::start(Some(RuntimeMeasurementResult::OK)).await else { return };
    let digest = guest.pull().await.unwrap();

    let reference = &guest.reference;
    let event = format!("PullImage {{\"digest\":\"{digest}\",\"image\":\"{reference}\"}}");
    assert_eq!(*guest.events.lock().unwrap(), [format!("github.com/confidential-containers {event}")]);
    assert_eq!(std::fs::read(guest.bundle().join("rootfs/hello")).unwrap(), b"world");
    guest.hub.release_image(&guest.bundle()).await.unwrap();
}

#[tokio::test]
async fn an_image_that_is_not_measured_is_not_left_mounted() {
    let Some(guest) = Guest::start(None).await else { return };
    let (_, text) = guest.pull().await.unwrap_err();

    assert!(text.starts_with("[CDH] [ERROR]: Image Pull error: image sha256:"), "{text}");
    assert!(text.contains("can't be measured: ") && text.contains("no register"), "{text}");
    assert!(!guest.bundle().join("rootfs/hello").exists());
    assert_eq!(guest.events.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn without_an_event_log_an_image_is_pulled_all_the_same() {
    let Some(guest) = Guest::start(Some(RuntimeMeasurementResult::NOT_ENABLED)).await else { return };
    guest.pull().await.unwrap();
    assert!(guest.bundle().join("rootfs/hello").exists());
    guest.hub.release_image(&guest.bundle()).await.unwrap();
}

/// A data hub with its agent in another process, and a registry with one image.
struct Guest {
    hub: Arc<DataHub>,
    events: Arc<Mutex<Vec<String>>>,
    reference: String,
    address: String,
    folder: TempDir,
    _endpoints: [Endpoint; 2],
}

impl Guest {
    /// The agent answers `result`, or fails. `None` where this test can't mount.
    async fn start(result: Option<RuntimeMeasurementResult>) -> Option<Self> {
        // In memory, as in a guest: not every file system can carry an overlay.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        if !can_mount(folder.path()) {
            eprintln!("skipped: file systems can't be mounted here");
            return None;
        }
        let root = folder.path().display();
        let registry = registry().await;
        let config = format!(
            "socket = \"unix://{root}/cdh.sock\"\n[aa]\naa_socket = \"unix://{root}/aa.sock\"\n\
             [kbc]\nname = \"cc_kbc\"\nurl = \"http://127.0.0.1:9\"\n[image]\nwork_dir = \"{root}/image\"\n\
             [[image.registry_config.registry]]\nlocation = \"{registry}\"\ninsecure = true\n"
        );
        let hub = Arc::new(DataHub::standalone(CdhConfig::parse(&config).unwrap()).unwrap());
        let events = Arc::<Mutex<Vec<String>>>::default();
        let agent = Agent { events: Arc::clone(&events), result };
        let services = create_attestation_agent_service(Arc::new(agent));
        let agent = Endpoint::open(&format!("unix://{root}/aa.sock"), services).await.unwrap();
        let address = format!("unix://{root}/cdh.sock");
        let endpoint = data_hub::serve(Arc::clone(&hub)).await.unwrap();
        Some(Self { hub, events, reference: format!("{registry}/i:1"), address, folder, _endpoints: [agent, endpoint] })
    }

    async fn pull(&self) -> Result<String, (String, String)> {
        let pulled = Client::connect(&self.address).await.pull(&self.reference, &self.bundle()).await;
        pulled.map(|digest| String::from_utf8(digest).unwrap())
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }
}

struct Agent {
    events: Arc<Mutex<Vec<String>>>,
    result: Option<RuntimeMeasurementResult>,
}

#[async_trait]
impl AttestationAgentService for Agent {
    async fn extend_runtime_measurement(
        &self,
        _: &TtrpcContext,
        request: ExtendRuntimeMeasurementRequest,
    ) -> ttrpc::Result<ExtendRuntimeMeasurementResponse> {
        let event = format!("{} {} {}", request.Domain, request.Operation, request.Content);
        self.events.lock().unwrap().push(event);
        let failed = || ttrpc::error::get_rpc_status(ttrpc::Code::INTERNAL, "no register");
        let mut response = ExtendRuntimeMeasurementResponse::new();
        response.Result = self.result.ok_or_else(failed)?.into();
        Ok(response)
    }
}

/// An image of one file, and where it is served.
async fn registry() -> String {
    let layer = tar("hello", b"world");
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config.as_bytes()), "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(&layer), "size": layer.len(),
        }],
    })
    .to_string();
    let answer = move |uri: Uri| async move {
        let (kind, body) = match uri.path().rsplit_once('/').unwrap() {
            ("/v2/i/manifests", _) => (MANIFEST, manifest.into_bytes()),
            (_, name) if name == digest(&layer) => ("application/octet-stream", layer),
            (_, name) if name == digest(config.as_bytes()) => ("application/octet-stream", config.into_bytes()),
            _ => return StatusCode::NOT_FOUND.into_response(),
        };
        ([("content-type", kind)], body).into_response()
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let router = Router::new().fallback(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(hyper_util::rt::TokioIo::new(stream), service));
        }
    });
    address
}

/// An archive of one file (POSIX ustar).
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut field = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    field(0, name);
    field(100, "0000644\0");
    field(108, "0000000\0");
    field(116, "0000000\0");
    field(124, &format!("{:011o}\0", content.len()));
    field(136, "00000000000\0");
    field(148, "        ");
    field(156, "0");
    field(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = [&header[..], content].concat();
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn can_mount(folder: &Path) -> bool {
    let place = folder.join("probe");
    std::fs::create_dir(&place).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        std::process::Command::new(program).args(arguments).arg(&place).output().is_ok_and(|out| out.status.success())
    };
    run("mount", &["-t", "tmpfs", "probe"]) && run("umount", &[])
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
