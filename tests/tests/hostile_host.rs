//! A host that repeats, reorders, forges and floods requests, against a real guest: each answer is named, nothing that
//! exists changes, and the guest lives on.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tests::guest::{COPIES, Guest, soon};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use ttrpc::Code;
use ttrpc::proto::{MESSAGE_TYPE_DATA, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, MessageHeader};
use wire_ttrpc::agent::*;
use wire_ttrpc::oci;
use wire_ttrpc::types;

#[tokio::test]
async fn requests_that_are_repeated_or_out_of_order_change_nothing() {
    let guest = Guest::boot("reordered", |_| {}).await;
    let agent = guest.agent();

    // Before there is a container.
    assert_eq!(code(agent.start_container(soon(), &start("app")).await), Code::NOT_FOUND);
    assert_eq!(code(agent.exec_process(soon(), &exec("app", "e1")).await), Code::NOT_FOUND);
    assert_eq!(code(agent.wait_process(soon(), &wait("app", "")).await), Code::NOT_FOUND);
    assert_eq!(code(agent.remove_container(soon(), &remove("app")).await), Code::NOT_FOUND);

    // Twice at the same time: one of them makes it.
    let (first, second) = tokio::join!(guest.create("app", &SLEEP, |_| {}), guest.create("app", &SLEEP, |_| {}));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    assert_eq!(code(first.and(second)), Code::ALREADY_EXISTS);
    agent.remove_container(soon(), &remove("app")).await.unwrap();
    guest.create("app", &SLEEP, |_| {}).await.unwrap();
    assert_eq!(code(guest.create("app", &["false"], |_| {}).await), Code::ALREADY_EXISTS);
    assert_eq!(code(agent.exec_process(soon(), &exec("app", "e1")).await), Code::FAILED_PRECONDITION);
    guest.start("app").await;
    assert_eq!(code(agent.start_container(soon(), &start("app")).await), Code::FAILED_PRECONDITION);

    // Names of processes: those that are taken, another container's, and those that are none.
    guest.create("other", &SLEEP, |_| {}).await.unwrap();
    guest.start("other").await;
    agent.exec_process(soon(), &exec("app", "e1")).await.unwrap();
    for taken in ["e1", "app"] {
        assert_eq!(code(agent.exec_process(soon(), &exec("app", taken)).await), Code::ALREADY_EXISTS, "{taken}");
    }
    for wrong in ["", "../e1", "a/b", "e1\n"] {
        let answer = agent.exec_process(soon(), &exec("app", wrong)).await;
        assert_eq!(code(answer), Code::INVALID_ARGUMENT, "{wrong:?}");
    }
    for (container, process) in [("other", "e1"), ("other", "app"), ("app", "other")] {
        assert_eq!(code(agent.wait_process(soon(), &wait(container, process)).await), Code::NOT_FOUND);
        let kill = SignalProcessRequest { signal: 9, ..signal(container, process) };
        assert_eq!(code(agent.signal_process(soon(), &kill).await), Code::NOT_FOUND);
        let read = ReadStreamRequest { len: 1, ..read(container, process) };
        assert_eq!(code(agent.read_stdout(soon(), &read).await), Code::NOT_FOUND);
    }
    let unknown = SignalProcessRequest { signal: 99, ..signal("app", "e1") };
    assert_eq!(code(agent.signal_process(soon(), &unknown).await), Code::INVALID_ARGUMENT);

    // Whoever waits learns the same, however often.
    let kill = SignalProcessRequest { signal: 9, ..signal("app", "e1") };
    let end = wait("app", "e1");
    let waits = [(); 3].map(|()| agent.wait_process(soon(), &end));
    let (statuses, ()) = tokio::join!(futures::future::join_all(waits), async {
        agent.signal_process(soon(), &kill).await.unwrap();
    });
    assert!(statuses.into_iter().all(|answer| answer.unwrap().status == 137));
    assert_eq!(agent.wait_process(soon(), &end).await.unwrap().status, 137);
    agent.signal_process(soon(), &kill).await.unwrap();

    // Another sandbox in the place of this one.
    let sandbox = CreateSandboxRequest { hostname: "evil".into(), dns: vec!["6.6.6.6".into()], ..Default::default() };
    assert_eq!(code(agent.create_sandbox(soon(), &sandbox).await), Code::ALREADY_EXISTS);
    guest.create("late", &["/bin/sh", "-c", "cat /etc/hostname /etc/resolv.conf"], |_| {}).await.unwrap();
    guest.start("late").await;
    let told = agent.read_stdout(soon(), &ReadStreamRequest { len: 4096, ..read("late", "") }).await.unwrap().data;
    let told = String::from_utf8(told).unwrap();
    assert!(!told.contains("evil") && !told.contains("6.6.6.6"), "{told}");

    // Removed while it runs: everything of it ends, and nothing else.
    agent.remove_container(soon(), &remove("app")).await.unwrap();
    for answer in [
        code(agent.remove_container(soon(), &remove("app")).await),
        code(agent.start_container(soon(), &start("app")).await),
        code(agent.exec_process(soon(), &exec("app", "e1")).await),
        code(agent.wait_process(soon(), &end).await),
    ] {
        assert_eq!(answer, Code::NOT_FOUND);
    }
    assert_eq!(guest.output("other", &["echo", "alive"]).await, "alive\n");

    // After the pod's end there is nothing left to ask for, however often it is ended.
    for _ in 0..2 {
        agent.destroy_sandbox(soon(), &DestroySandboxRequest::new()).await.unwrap();
    }
    assert_eq!(code(guest.create("app", &SLEEP, |_| {}).await), Code::FAILED_PRECONDITION);
    assert_eq!(code(agent.exec_process(soon(), &exec("other", "e1")).await), Code::NOT_FOUND);
    assert_eq!(code(agent.start_container(soon(), &start("other")).await), Code::NOT_FOUND);
    guest.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn what_the_policy_forbids_no_forged_request_does() {
    let guest = Guest::boot_under("strict", "forged", |_| {}).await;
    let agent = guest.agent();
    let silent = |request: &mut CreateContainerRequest| {
        let spec = request.OCI.mut_or_insert_default();
        (spec.Process, spec.Linux) = (Some(oci::Process::default()).into(), Some(oci::Linux::default()).into());
    };
    let create = async |id: &str, change: &dyn Fn(&mut CreateContainerRequest)| {
        code(
            guest
                .create(id, &[], |request| {
                    silent(request);
                    change(request);
                })
                .await,
        )
    };

    // Names that are paths, or the agent's own.
    let long = "a".repeat(129);
    for id in ["", ".", "..", "../x", "/x", "a/b", "a\0b", "a\n", "-a", long.as_str()] {
        assert_eq!(create(id, &|_| {}).await, Code::INVALID_ARGUMENT, "{id:?}");
    }
    for id in ["sandbox", "shared", "image"] {
        assert_eq!(create(id, &|_| {}).await, Code::INVALID_ARGUMENT, "{id}");
    }

    // What the owner did not ask for.
    type Change<'a> = &'a dyn Fn(&mut CreateContainerRequest);
    let changes: [Change<'_>; 7] = [
        &|request| process(request).Args = vec!["/bin/sh".into()],
        &|request| process(request).Env.push("LD_PRELOAD=/x".into()),
        &|request| request.storages[0].source = "docker.io/library/evil:latest".into(),
        &|request| request.storages[0].mount_point = "/run/kata-containers/other/rootfs".into(),
        &|request| request.storages.clear(),
        &|request| request.sandbox_pidns = true,
        &|request| request.shared_mounts.push(SharedMount::default()),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let answer = create("app", change).await;
        assert!(
            matches!(answer, Code::PERMISSION_DENIED | Code::INVALID_ARGUMENT | Code::INTERNAL),
            "{number}: {answer:?}"
        );
    }

    guest.copy("app-config/key", b"of the pod").await;
    guest
        .create("app", &[], |request| {
            silent(request);
            // Where the policy lets a volume be.
            request.OCI.mut_or_insert_default().Mounts.push(oci::Mount {
                destination: "/var/run/secrets/kubernetes.io/serviceaccount".into(),
                source: format!("{COPIES}/app-config"),
                type_: "bind".into(),
                options: vec!["rbind".into()],
                ..Default::default()
            });
        })
        .await
        .unwrap();
    guest.start("app").await;

    // Commands, input, output, and another policy, after the start as before it.
    assert_eq!(code(agent.exec_process(soon(), &exec("app", "e1")).await), Code::PERMISSION_DENIED);
    let write = WriteStreamRequest { container_id: "app".into(), data: b"x".into(), ..Default::default() };
    assert_eq!(code(agent.write_stdin(soon(), &write).await), Code::PERMISSION_DENIED);
    let output = agent.read_stdout(soon(), &ReadStreamRequest { len: 10, ..read("app", "") }).await.unwrap();
    assert!(output.data.is_empty());
    let policy =
        SetPolicyRequest { policy: "package agent_policy\nExecProcessRequest := true".into(), ..Default::default() };
    assert_eq!(code(agent.set_policy(soon(), &policy).await), Code::PERMISSION_DENIED);
    assert_eq!(code(agent.exec_process(soon(), &exec("app", "e1")).await), Code::PERMISSION_DENIED);

    // The guest's own interface, and others that a pod has not got.
    let interface = |name: &str, device: &str| {
        let interface = types::Interface { name: name.into(), device: device.into(), ..Default::default() };
        UpdateInterfaceRequest { interface: Some(interface).into(), ..Default::default() }
    };
    for name in ["lo", "", "eth0\nlo", "wlan0"] {
        let answer = agent.update_interface(soon(), &interface(name, name)).await;
        assert_eq!(code(answer), Code::PERMISSION_DENIED, "{name:?}");
    }
    let loopback = UpdateInterfaceRequest {
        interface: Some(types::Interface {
            name: "eth7".into(),
            hwAddr: "00:00:00:00:00:00".into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let answer = code(agent.update_interface(soon(), &loopback).await);
    assert!(
        matches!(answer, Code::NOT_FOUND | Code::INVALID_ARGUMENT),
        "the loopback interface is nobody's to rename: {answer:?}"
    );

    // Copies: elsewhere, through links, and the end of a file again, by itself.
    for path in ["/etc/passwd", "/run/kata-containers/app/rootfs/bin/sh", "/run/kata-containers/shared/containers"] {
        let copy = CopyFileRequest { path: path.into(), ..part(0, b"x", 1) };
        assert_eq!(code(agent.copy_file(soon(), &copy).await), Code::INVALID_ARGUMENT, "{path}");
    }
    let link = CopyFileRequest { file_mode: 0o120_777, data: b"/etc/shadow".into(), ..part(0, b"", 0) };
    assert_eq!(code(agent.copy_file(soon(), &link).await), Code::PERMISSION_DENIED);
    agent.copy_file(soon(), &part(3, b"evil", 7)).await.unwrap();
    let beyond = part(5, b"x", 3);
    assert_eq!(code(agent.copy_file(soon(), &beyond).await), Code::INVALID_ARGUMENT);
    guest.end().await;
}

#[tokio::test]
async fn whatever_comes_by_the_channel_the_guest_lives_on() {
    let guest = Guest::boot("flooded", |_| {}).await;
    let socket = guest.sandbox.directory().join("vsock.sock");
    if !socket.exists() {
        println!("skipped, since this host's kernel has a vsock of its own, and no socket for it");
        return guest.end().await;
    }
    let connect = async || -> UnixStream {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(b"CONNECT 1024\n").await.unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await.unwrap());
        }
        assert!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
        stream
    };
    let header = |length: u32, type_: u8| -> Vec<u8> { MessageHeader { length, stream_id: 1, type_, flags: 0 }.into() };
    let request = |service: &str, method: &str, payload: &[u8]| {
        let mut request = ttrpc::Request::new();
        (request.service, request.method, request.payload) = (service.into(), method.into(), payload.into());
        let body = protobuf::Message::write_to_bytes(&request).unwrap();
        [header(u32::try_from(body.len()).unwrap(), MESSAGE_TYPE_REQUEST), body].concat()
    };

    // Frames that are too large, cut off, of no known type, or nothing at all; and then silence.
    let mut silent = Vec::new();
    for bytes in [
        Vec::new(),
        vec![0],
        vec![0xff; 10],
        vec![0xff; 4096],
        header(u32::MAX, MESSAGE_TYPE_REQUEST),
        header(4 << 20, MESSAGE_TYPE_REQUEST),
        [header(100, MESSAGE_TYPE_REQUEST), vec![b'x'; 99]].concat(),
        header(0, MESSAGE_TYPE_REQUEST),
        header(0, MESSAGE_TYPE_RESPONSE),
        header(0, MESSAGE_TYPE_DATA),
        header(0, 0x77),
    ] {
        let mut stream = connect().await;
        // The guest may have closed it by then.
        let _ = stream.write_all(&bytes).await;
        silent.push(stream);
    }
    alive(&guest).await;
    let refused = async |bytes: Vec<u8>| -> Code {
        let mut stream = connect().await;
        stream.write_all(&bytes).await.unwrap();
        let mut head = [0; 10];
        stream.read_exact(&mut head).await.unwrap();
        let head = MessageHeader::from(head);
        let mut body = vec![0; head.length as usize];
        stream.read_exact(&mut body).await.unwrap();
        let response: ttrpc::Response = protobuf::Message::parse_from_bytes(&body).unwrap();
        response.status.code()
    };
    for (bytes, expected) in [
        (request("grpc.AgentService", "Nope", b""), &[Code::NOT_FOUND, Code::UNIMPLEMENTED][..]),
        (request("grpc.Nobody", "StartContainer", b""), &[Code::INVALID_ARGUMENT]),
        (request("", "", b""), &[Code::INVALID_ARGUMENT]),
        (request("grpc.AgentService", "StartContainer", &[0xff; 100]), &[Code::UNKNOWN]),
        ([header(5 << 20, MESSAGE_TYPE_REQUEST), vec![0; 5 << 20]].concat(), &[Code::INVALID_ARGUMENT]),
    ] {
        let answer = tokio::time::timeout(PATIENCE, refused(bytes.clone())).await.expect("an answer");
        assert!(expected.contains(&answer), "{answer:?} to {:?}", &bytes[..bytes.len().min(60)]);
    }

    // More connections than anybody needs.
    for _ in 0..1_000 {
        silent.push(connect().await);
    }
    alive(&guest).await;
    drop(silent);
    alive(&guest).await;
    guest.create("app", &SLEEP, |_| {}).await.unwrap();
    guest.start("app").await;
    assert_eq!(guest.output("app", &["echo", "alive"]).await, "alive\n");
    guest.end().await;
}

/// Expects an answer of the guest.
async fn alive(guest: &Guest) {
    let details = guest.agent().get_guest_details(soon(), &GuestDetailsRequest::new()).await.unwrap();
    assert!(details.agent_details.init_daemon);
}

/// The status of an answer.
fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => {
            assert!(!status.message.is_empty());
            status.code()
        }
        Err(other) => panic!("no status: {other:?}"),
    }
}

fn process(request: &mut CreateContainerRequest) -> &mut oci::Process {
    request.OCI.mut_or_insert_default().Process.mut_or_insert_default()
}

fn start(id: &str) -> StartContainerRequest {
    StartContainerRequest { container_id: id.into(), ..Default::default() }
}

fn remove(id: &str) -> RemoveContainerRequest {
    RemoveContainerRequest { container_id: id.into(), timeout: 60, ..Default::default() }
}

fn exec(id: &str, exec_id: &str) -> ExecProcessRequest {
    let args = SLEEP.map(str::to_owned).to_vec();
    let process = oci::Process { Args: args, Env: vec!["PATH=/bin".into()], ..Default::default() };
    ExecProcessRequest {
        container_id: id.into(),
        exec_id: exec_id.into(),
        process: Some(process).into(),
        ..Default::default()
    }
}

fn wait(id: &str, exec_id: &str) -> WaitProcessRequest {
    WaitProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() }
}

fn signal(id: &str, exec_id: &str) -> SignalProcessRequest {
    SignalProcessRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() }
}

fn read(id: &str, exec_id: &str) -> ReadStreamRequest {
    ReadStreamRequest { container_id: id.into(), exec_id: exec_id.into(), ..Default::default() }
}

/// A part of the file that the pod mounts.
fn part(offset: i64, data: &[u8], size: i64) -> CopyFileRequest {
    CopyFileRequest {
        path: format!("{COPIES}/app-config/key"),
        file_size: size,
        file_mode: 0o100_644,
        dir_mode: 0o755,
        offset,
        data: data.into(),
        ..Default::default()
    }
}

const SLEEP: [&str; 2] = ["sleep", "3600"];
/// For one answer, of a busy guest.
const PATIENCE: Duration = Duration::from_secs(60);
