//! The remote hypervisor's client against an adaptor that notes what it is asked.

use std::sync::Arc;

use async_trait::async_trait;
use protobuf::{CodedInputStream, Message as _};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use ttrpc::asynchronous::{Server, TtrpcContext};
use wire_ttrpc::remote_hypervisor::{CreateVMResponse, StartVMResponse, StopVMResponse, VersionResponse};
use wire_ttrpc::remote_hypervisor_ttrpc::{Hypervisor, create_hypervisor};

use super::*;

#[test]
fn a_request_has_every_annotation_of_upstream_s_byte_for_byte() {
    let bytes = config().request("pod-1").write_to_bytes().unwrap();

    // A map has no order, so neither have its entries here.
    let mut fields = Vec::new();
    let (mut input, mut begin) = (CodedInputStream::from_bytes(&bytes), 0);
    while input.read_raw_tag_or_eof().unwrap().is_some() {
        input.read_bytes().unwrap();
        let end = input.pos() as usize;
        fields.push(&bytes[begin..end]);
        begin = end;
    }
    fields.sort_unstable();
    let expected: [&[u8]; 11] = [
        b"\n\x05pod-1",
        b"\x12%\n\x1eio.kubernetes.cri.sandbox-name\x12\x03web",
        b"\x12-\n)io.katacontainers.config.hypervisor.image\x12\x00",
        b"\x12.\n#io.kubernetes.cri.sandbox-namespace\x12\x07default",
        b"\x125\n0io.katacontainers.config.hypervisor.default_gpus\x12\x010",
        b"\x126\n1io.katacontainers.config.hypervisor.default_vcpus\x12\x012",
        b"\x129\n5io.katacontainers.config.hypervisor.default_gpu_model\x12\x00",
        b"\x12:\n2io.katacontainers.config.hypervisor.default_memory\x12\x042048",
        b"\x12=\n0io.katacontainers.config.hypervisor.machine_type\x12\x09c6a.large",
        b"\x12b\n0io.katacontainers.config.hypervisor.cc_init_data\x12.version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n",
        b"\x1a\x10/run/netns/cni-1",
    ];
    assert_eq!(fields, expected);
}

#[tokio::test]
async fn a_machine_is_made_started_and_ended_by_upstream_s_names() {
    let lab = Lab::new();
    let (_server, mut heard) = lab.serve(|_| Verdict::Yes).await;

    assert_eq!(lab.adaptor.version().await.unwrap(), "0.0.0");
    assert_eq!(lab.adaptor.create("pod-1", &config()).await.unwrap(), Path::new("/run/agent.ttrpc"));
    lab.adaptor.start("pod-1").await.unwrap();
    lab.adaptor.stop("pod-1").await.unwrap();

    for expected in ["Version", "CreateVM pod-1", "StartVM pod-1", "StopVM pod-1"] {
        assert_eq!(heard.recv().await.unwrap(), expected);
    }
}

#[tokio::test]
async fn an_adaptor_that_is_absent_refuses_is_late_or_ends_is_told_from_the_others() {
    let lab = Lab::new();
    let absent = lab.adaptor.version().await.unwrap_err();
    assert!(matches!(absent, Error::Unreachable { .. }), "{absent}");

    let (_server, mut heard) = lab
        .serve(|request| match request {
            "StartVM poor" => Verdict::No("no quota\nfor it"),
            "StopVM forgotten" => Verdict::No("sandbox forgotten does not exist"),
            "StartVM slow" => Verdict::Never,
            _ => Verdict::Yes,
        })
        .await;
    let refused = lab.adaptor.start("poor").await.unwrap_err().to_string();
    assert_eq!(refused, "adaptor: StartVM was refused: no quota for it; next: look at the adaptor's log");
    // It has heard it, and there is nobody else to tell.
    lab.adaptor.stop("forgotten").await.unwrap();

    let hasty = Adaptor { limit: Duration::from_millis(50), ..lab.adaptor.clone() };
    let late = hasty.start("slow").await.unwrap_err();
    assert!(matches!(late, Error::Timeout { request: "StartVM", .. }), "{late}");
    while heard.recv().await.unwrap() != "StartVM slow" {}

    let crashing = Adaptor { socket: lab.adaptor.socket.with_file_name("crashing"), ..lab.adaptor.clone() };
    let listener = UnixListener::bind(&crashing.socket).unwrap();
    let (closed, _) = tokio::join!(crashing.start("pod-1"), async { listener.accept().await.map(drop) });
    assert!(matches!(closed, Err(Error::Closed { request: "StartVM" })), "{closed:?}");
}

#[tokio::test]
async fn an_end_waits_for_an_adaptor_that_is_restarted() {
    let lab = Lab::new();
    let adaptor = lab.adaptor.clone();
    let stopping = tokio::spawn(async move { adaptor.stop("pod-1").await });
    tokio::task::yield_now().await;

    let (_server, mut heard) = lab.serve(|_| Verdict::Yes).await;

    stopping.await.unwrap().unwrap();
    assert_eq!(heard.recv().await.unwrap(), "StopVM pod-1");
}

fn config() -> RemoteVmConfig {
    RemoteVmConfig {
        pod_name: "web".into(),
        pod_namespace: "default".into(),
        machine_type: "c6a.large".into(),
        vcpus: 2,
        memory_mib: 2048,
        initdata: "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n".into(),
        network_namespace: "/run/netns/cni-1".into(),
        ..RemoteVmConfig::default()
    }
}

/// Where an adaptor is, or will be.
struct Lab {
    adaptor: Adaptor,
    _folder: TempDir,
}

/// How an adaptor takes a request.
enum Verdict {
    Yes,
    No(&'static str),
    Never,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let adaptor = Adaptor { socket: folder.path().join("socket"), limit: Duration::from_secs(60) };
        Self { adaptor, _folder: folder }
    }

    /// An adaptor, and what it hears.
    async fn serve(&self, verdict: fn(&str) -> Verdict) -> (Server, mpsc::UnboundedReceiver<String>) {
        let (tell, heard) = mpsc::unbounded_channel();
        let address = format!("unix://{}", self.adaptor.socket.display());
        let service = create_hypervisor(Arc::new(Ear { tell, verdict }));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        (server, heard)
    }
}

struct Ear {
    tell: mpsc::UnboundedSender<String>,
    verdict: fn(&str) -> Verdict,
}

impl Ear {
    async fn answer<T: Default>(&self, request: String) -> ttrpc::Result<T> {
        let verdict = (self.verdict)(&request);
        self.tell.send(request).unwrap();
        match verdict {
            Verdict::Yes => Ok(T::default()),
            Verdict::No(why) => Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::UNKNOWN, why))),
            Verdict::Never => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Hypervisor for Ear {
    async fn create_vm(&self, _: &TtrpcContext, request: CreateVMRequest) -> ttrpc::Result<CreateVMResponse> {
        let answer: CreateVMResponse = self.answer(format!("CreateVM {}", request.id)).await?;
        Ok(CreateVMResponse { agentSocketPath: "/run/agent.ttrpc".into(), ..answer })
    }

    async fn start_vm(&self, _: &TtrpcContext, request: StartVMRequest) -> ttrpc::Result<StartVMResponse> {
        self.answer(format!("StartVM {}", request.id)).await
    }

    async fn stop_vm(&self, _: &TtrpcContext, request: StopVMRequest) -> ttrpc::Result<StopVMResponse> {
        self.answer(format!("StopVM {}", request.id)).await
    }

    async fn version(&self, _: &TtrpcContext, _: VersionRequest) -> ttrpc::Result<VersionResponse> {
        let answer: VersionResponse = self.answer("Version".to_owned()).await?;
        Ok(VersionResponse { version: "0.0.0".into(), ..answer })
    }
}
