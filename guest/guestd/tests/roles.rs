//! Each role as a process of its own, started as upstream's programs are and called as theirs.

#![allow(clippy::unwrap_used)]

#[path = "../../attestation-agent/tests/client/mod.rs"]
mod client;
#[path = "../../attestation-agent/tests/double/mod.rs"]
mod double;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use client::AaClient;
use double::KbsDouble;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

#[tokio::test]
async fn an_attestation_agent_serves_upstreams_clients() {
    let guest = Guest::new();
    let kbs = KbsDouble::start().await;
    let mut agent = guest.agent(&kbs, &[("ENABLE_SAMPLE_DEVICE", "1")]).await;
    let client = agent.client().await;

    assert_eq!(client.tee().await.unwrap(), "sample");
    assert_eq!(client.additional_tees().await.unwrap(), ["sampledevice"]);
    let devices: Value = serde_json::from_slice(&client.additional_evidence(&[1]).await.unwrap()).unwrap();
    assert_eq!(devices, json!({ "sampledevice": { "svn": "2", "report_data": "AQ==" } }));
    // The double checks that the device's evidence is bound to nonce and key, and the TEE's to both and it.
    let token: Value = serde_json::from_slice(&client.token("kbs").await.unwrap()).unwrap();
    assert!(token["tee_keypair"].as_str().unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
    assert!(kbs.last_attestation().tee_evidence.additional_evidence.starts_with("{\"sampledevice\":"));

    assert!(agent.process.end(Signal::SIGTERM).await.success());
}

#[tokio::test]
async fn an_agent_that_was_killed_goes_on_with_its_log() {
    let guest = Guest::new();
    let kbs = KbsDouble::start().await;
    for (life, signal) in [Signal::SIGKILL, Signal::SIGHUP, Signal::SIGINT].into_iter().enumerate() {
        let mut agent = guest.agent(&kbs, &[]).await;
        assert_eq!(agent.client().await.measure(["test", "life", &life.to_string()], None).await.unwrap(), 0);
        let status = agent.process.end(signal).await;
        assert_eq!(status.success(), signal != Signal::SIGKILL, "{signal}: {status}");
    }
    let log = fs::read(guest.path("eventlog")).unwrap();
    let lives: Vec<_> =
        wire::event_log::entries(&log).unwrap().iter().map(|entry| entry.event.content().to_owned()).collect();
    assert_eq!(lives, ["0", "1", "2"]);
}

#[tokio::test]
async fn the_name_of_the_program_fixes_the_protocol() {
    let guest = Guest::new();
    let kbs = KbsDouble::start().await;
    let port = free_port();
    let params = format!("cc_kbc::{}", kbs.url());
    let mut agent = guest.start("grpc-aa", &["-a", &port.to_string()], &[("AA_KBC_PARAMS", &params)]);
    agent.answers(port).await;

    let client = AaClient::grpc(&port.to_string()).await;
    assert_eq!(client.tee().await.unwrap(), "sample");
    client.token("kbs").await.unwrap();
    assert_eq!(kbs.handshakes(), 1);

    let error = guest.fails("ttrpc-aa", &["-a", &port.to_string()]).await;
    assert!(error.contains("unix:///"), "{error}");
    assert!(agent.end(Signal::SIGINT).await.success());
}

#[tokio::test]
async fn what_can_not_be_honoured_ends_the_process_with_its_reason() {
    let guest = Guest::new();
    fs::write(guest.path("bad.toml"), "[token_configs.kbs]\nurl = \"https://kbs\"\nunknown = 1\n").unwrap();
    fs::write(guest.path("bad.json"), "{\"token_configs\":{\"kbs\":{}}}").unwrap();
    fs::write(guest.path("initdata.toml"), "version = \"9\"\nalgorithm = \"sha256\"\n[data]\n").unwrap();
    let path = |name: &str| guest.path(name).display().to_string();
    for (role, arguments, reason) in [
        ("attestation-agent", vec!["-c".to_owned(), path("bad.toml")], "unknown"),
        ("attestation-agent", vec!["-c".to_owned(), path("bad.json")], "url"),
        ("attestation-agent", vec!["-c".to_owned(), path("none.toml")], "none.toml"),
        ("attestation-agent", vec!["-t".to_owned(), path("initdata.toml")], "version"),
        ("attestation-agent", vec!["-i".to_owned(), "AA==".to_owned()], "initdata digest"),
        ("attestation-agent", vec!["-a".to_owned(), "0.0.0.0:1".to_owned()], "127.0.0.1"),
        ("attestation-agent", vec!["--nonsense".to_owned()], "nonsense"),
        ("api-server-rest", vec!["-f".to_owned(), "everything".to_owned()], "everything"),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let error = guest.fails(role, &arguments).await;
        assert!(error.starts_with(&format!("{role}: ")) && error.contains(reason), "{role} {arguments:?}: {error}");
    }
}

#[tokio::test]
async fn the_workload_api_reaches_the_other_roles() {
    let guest = Guest::new();
    let kbs = KbsDouble::start().await;
    let port = free_port();
    let socket = format!("unix://{}", guest.path("aa.sock").display());
    let unix = guest.path("workload.sock").display().to_string();
    // Started before the agent that it asks: it connects when it is asked.
    let mut api = guest.start(
        "api-server-rest",
        &["-b", &port.to_string(), "--features", "all", "-a", &socket, "-c", "unix:///nobody", "--unix", &unix],
        &[],
    );
    api.answers(port).await;
    assert_eq!(get(port, "/info").await.0, 502);

    let _agent = guest.agent(&kbs, &[]).await;
    let (status, info) = get(port, "/info").await;
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!((status, &info["tee"], &info["feature"]), (200, &json!("sample"), &json!("all")));
    let (status, token) = get(port, "/aa/token?token_type=kbs").await;
    assert_eq!(status, 200);
    assert!(token.starts_with("{\"token\":\"e30."), "{token}");
    let (status, error) = get(port, "/cdh/resource/default/key/1").await;
    assert_eq!(status, 502);
    assert!(error.contains("/nobody") && error.contains("; next: "), "{error}");
    assert!(Path::new(&unix).exists());
    assert!(api.end(Signal::SIGTERM).await.success());
}

#[tokio::test]
async fn a_secret_goes_through_all_three_roles_with_one_handshake() {
    let guest = Guest::new();
    let kbs = KbsDouble::start().await;
    kbs.put("resource/default/key/1", b"secret");
    kbs.put("nebula-ca/credential", b"credential");
    kbs.deny("resource/default/key/denied", 403);
    let _agent = guest.agent(&kbs, &[]).await;
    let (hub, port) = (format!("unix://{}", guest.path("cdh.sock").display()), free_port());
    let config = format!(
        "socket = \"{hub}\"\n[aa]\naa_socket = \"unix://{}\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"{}\"\n",
        guest.path("aa.sock").display(),
        kbs.url()
    );
    fs::write(guest.path("cdh.toml"), config).unwrap();
    let config = guest.path("cdh.toml").display().to_string();
    // Set, so that the hub writes no such file to /run.
    let environment = [("OCICRYPT_KEYPROVIDER_CONFIG", "/nowhere")];
    let mut data_hub = guest.start("confidential-data-hub", &["-c", &config], &environment);
    let socket = guest.path("cdh.sock");
    data_hub.until(async || socket.exists()).await;
    let mut api = guest.start("api-server-rest", &["-b", &port.to_string(), "-c", &hub], &[]);
    api.answers(port).await;

    let asked = (0..50).map(|_| tokio::spawn(get(port, "/cdh/resource/default/key/1")));
    for answer in asked.collect::<Vec<_>>() {
        assert_eq!(answer.await.unwrap(), (200, "secret".to_owned()));
    }
    assert_eq!(kbs.handshakes(), 1);
    // Printed, not judged: API, hub and key broker each do their part for every one of them.
    let started = Instant::now();
    let asked: Vec<_> = (0..200).map(|_| tokio::spawn(get(port, "/cdh/resource/default/key/1"))).collect();
    for answer in asked {
        assert_eq!(answer.await.unwrap().0, 200);
    }
    println!("{:.0} secrets per second through three processes", 200.0 / started.elapsed().as_secs_f64());
    assert_eq!(get(port, "/cdh/plugin/nebula-ca/credential?name=n").await, (200, "credential".to_owned()));
    for (path, expected) in [("denied", 403), ("none", 404)] {
        let (status, error) = get(port, format!("/cdh/resource/default/key/{path}")).await;
        assert_eq!(status, expected, "{error}");
        assert!(error.starts_with("[CDH] [ERROR]: "), "{error}");
    }
    assert!(data_hub.end(Signal::SIGTERM).await.success());
}

#[tokio::test]
async fn the_openapi_document_is_printed() {
    let output = Command::new(PROGRAM).args(["api-server-rest", "--openapi"]).output().await.unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/cdh/resource/{path}"]["get"].is_object());
}

/// A folder in which roles have their names, files and sockets.
struct Guest(tempfile::TempDir);

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["attestation-agent", "ttrpc-aa", "grpc-aa", "api-server-rest", "confidential-data-hub"] {
            symlink(PROGRAM, folder.path().join(name)).unwrap();
        }
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts an attestation agent on `aa.sock` with an event log, and waits for its socket.
    async fn agent(&self, kbs: &KbsDouble, environment: &[(&str, &str)]) -> Agent {
        let config =
            format!("[token_configs.kbs]\nurl = \"{}\"\n[eventlog_config]\nenable_eventlog = true\n", kbs.url());
        fs::write(self.path("aa.toml"), config).unwrap();
        let config = self.path("aa.toml").display().to_string();
        let address = format!("unix://{}", self.path("aa.sock").display());
        let log = self.path("eventlog").display().to_string();
        let environment = [environment, &[("AAEL_PATH", log.as_str())]].concat();
        let process = self.start("attestation-agent", &["--attestation_sock", &address, "-c", &config], &environment);
        let mut agent = Agent { process, address };
        agent.ready().await;
        agent
    }

    fn start(&self, role: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        Process(self.command(role, arguments).envs(environment.iter().copied()).spawn().unwrap())
    }

    /// What a role that can't start says.
    async fn fails(&self, role: &str, arguments: &[&str]) -> String {
        let output = self.command(role, arguments).stderr(Stdio::piped()).output();
        let output = tokio::time::timeout(DEADLINE, output).await.unwrap().unwrap();
        assert!(!output.status.success(), "{role} {arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn command(&self, role: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path(role));
        command.args(arguments).env_clear().kill_on_drop(true);
        command
    }
}

struct Agent {
    process: Process,
    address: String,
}

impl Agent {
    /// A socket that is left from before may be there: what counts is that it is answered.
    async fn ready(&mut self) {
        let path = self.address.strip_prefix("unix://").unwrap().to_owned();
        self.process.until(async || tokio::net::UnixStream::connect(&path).await.is_ok()).await;
    }

    async fn client(&self) -> AaClient {
        AaClient::ttrpc(&self.address).await
    }
}

struct Process(Child);

impl Process {
    async fn answers(&mut self, address: SocketAddr) {
        self.until(async || TcpStream::connect(address).await.is_ok()).await;
    }

    /// Waits for what the process is about to do, and notices when it ends instead.
    async fn until(&mut self, holds: impl AsyncFn() -> bool) {
        let holds = async {
            let mut again = tokio::time::interval(Duration::from_millis(5));
            while !holds().await {
                again.tick().await;
            }
        };
        tokio::select! {
            () = holds => {}
            status = self.0.wait() => panic!("it ended: {}", status.unwrap()),
            () = tokio::time::sleep(DEADLINE) => panic!("it does not answer"),
        }
    }

    async fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.0.id().unwrap() as i32), signal).unwrap();
        tokio::time::timeout(DEADLINE, self.0.wait()).await.unwrap().unwrap()
    }
}

async fn get(address: SocketAddr, path: impl AsRef<str>) -> (u16, String) {
    let path = path.as_ref();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A loopback address that nobody listens at.
fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_guestd");
const DEADLINE: Duration = Duration::from_secs(30);
