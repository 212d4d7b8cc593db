//! The program as containerd runs it: started, left alone, and cleaned up after.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::ConnectRequest;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::{Client, TaskClient};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::Message as _;
use ttrpc::context;

#[test]
fn a_server_outlives_its_starter_and_a_signal_and_ends_by_delete() {
    let node = Node::new();
    let bundle = node.bundle("pod", "{}");
    let started = node.run("pod", &bundle, "start");
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let answer = BootstrapResult::parse_from_bytes(&started.stdout).unwrap();
    assert_eq!((answer.version, answer.protocol.as_str()), (3, "ttrpc"));
    let socket = PathBuf::from(answer.address.strip_prefix("unix://").unwrap());
    assert_eq!(socket.parent().unwrap(), node.0.path());
    assert_eq!(fs::read_to_string(bundle.join("address")).unwrap(), answer.address);
    let server = fs::read_to_string(bundle.join("shim.pid")).unwrap();
    let server = Pid::from_raw(server.parse().unwrap());

    // It is deaf from its first answer on.
    assert_eq!(ask(&answer.address), server.as_raw() as u32);
    kill(server, Signal::SIGTERM).unwrap();
    assert_eq!(ask(&answer.address), server.as_raw() as u32);

    // A container of the pod gets the pod's server, and no process of its own.
    let member = format!(
        r#"{{"annotations": {{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "{}-pod"}}}}"#,
        std::process::id()
    );
    let member = node.bundle("member", &member);
    let same = node.run("member", &member, "start");
    assert_eq!(BootstrapResult::parse_from_bytes(&same.stdout).unwrap().address, answer.address);
    assert!(!member.join("shim.pid").exists());
    assert!(node.run("member", &member, "delete").status.success());
    assert_eq!(ask(&answer.address), server.as_raw() as u32);

    for _ in 0..2 {
        let deleted = node.run("pod", &bundle, "delete");
        assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
        // Field 2: the status of what was killed.
        assert!(deleted.stdout.windows(3).any(|bytes| bytes == [0x10, 0x89, 0x01]), "{:?}", deleted.stdout);
    }
    assert!(!socket.exists());
    // Whoever adopted it may be slow to bury it.
    let state = fs::read_to_string(format!("/proc/{server}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
}

#[test]
fn what_can_t_be_started_is_said() {
    let node = Node::new();
    let broken = node.bundle("broken", "{");
    let refused = node.run("broken", &broken, "start");
    assert!(!refused.status.success());
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.starts_with("bundle: config.json is not a container's specification"), "{text}");
    assert!(!broken.join("shim.pid").exists());
}

#[test]
fn it_says_what_it_is() {
    let info = Command::new(PROGRAM).arg("-info").stdin(Stdio::null()).output().unwrap();
    assert!(info.stdout.starts_with(b"\x0a\x17io.containerd.cocoon.v2"));
    let version = Command::new(PROGRAM).arg("-v").output().unwrap();
    assert!(String::from_utf8(version.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
}

/// The server's process id, as it says itself.
fn ask(address: &str) -> u32 {
    let client = TaskClient::new(Client::connect(address).unwrap());
    let limit = context::with_duration(Duration::from_secs(30));
    client.connect(limit, &ConnectRequest::default()).unwrap().shim_pid
}

/// A folder that stands for containerd's.
struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn bundle(&self, id: &str, config: &str) -> PathBuf {
        let bundle = self.0.path().join(format!("bundle-{id}"));
        fs::create_dir(&bundle).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        bundle
    }

    /// As containerd 2.3 does it.
    fn run(&self, id: &str, bundle: &Path, action: &str) -> Output {
        let folder = self.0.path().to_str().unwrap().to_owned();
        let params = BootstrapParams {
            instance_id: format!("{}-{id}", std::process::id()),
            namespace: "test".into(),
            socket_dir: Some(folder),
            ..BootstrapParams::default()
        };
        // Ids are of the whole machine: a pod's folder is named by them.
        let id = params.instance_id.clone();
        let mut program = Command::new(PROGRAM);
        program.args(["-namespace", "test", "-id", &id]).arg(action).current_dir(bundle);
        let mut program = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // `delete` reads nothing.
        let _ = program.stdin.take().unwrap().write_all(&params.write_to_bytes().unwrap());
        program.wait_with_output().unwrap()
    }
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_containerd-shim-cocoon-v2");
