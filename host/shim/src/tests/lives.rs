//! Lives of pods and containers: in order, in each other's way, and cut short.

use tokio::io::AsyncWriteExt as _;

use super::fake::PID;
use super::*;

#[tokio::test]
async fn a_pod_lives_and_containerd_hears_of_it_in_order() {
    let mut lab = Lab::with_pod().await;
    let stdout = lab.fifo("stdout");
    let request = CreateTaskRequest { stdout: stdout.clone(), ..lab.container("web", json!([])) };
    assert_eq!(lab.create(request).await.unwrap(), PID);
    assert_eq!(lab.state("web").await.unwrap(), Status::CREATED);
    let output = tokio::spawn(async move { read_to_end(&stdout).await });
    lab.start("web", "").await.unwrap();
    assert_eq!(lab.state("web").await.unwrap(), Status::RUNNING);
    lab.agent.say("web", "", "hello\n");

    lab.exec("web", "e1").await.unwrap();
    lab.start("web", "e1").await.unwrap();
    lab.agent.exit("web", "e1", 3);
    assert_eq!(lab.wait("web", "e1").await.unwrap(), 3);
    assert_eq!(lab.delete("web", "e1").await.unwrap(), 3);
    assert!(lab.agent.executed.lock().unwrap()[0].process.Capabilities.is_none());

    assert_eq!(code(lab.delete("web", "").await.unwrap_err()).0, ttrpc::Code::FAILED_PRECONDITION);
    lab.kill("web", "", 15).await.unwrap();
    assert_eq!(lab.wait("web", "").await.unwrap(), 143);
    assert_eq!(output.await.unwrap(), "hello\n");
    assert_eq!(code(lab.kill("web", "", 9).await.unwrap_err()).0, ttrpc::Code::NOT_FOUND);
    assert_eq!(lab.delete("web", "").await.unwrap(), 143);
    assert_eq!(*lab.agent.removed.lock().unwrap(), ["web"]);

    lab.kill(POD, "", 9).await.unwrap();
    assert_eq!(lab.wait(POD, "").await.unwrap(), 137);
    assert_eq!(lab.delete(POD, "").await.unwrap(), 137);
    assert_eq!(*lab.boot.machines.borrow(), (1, 1));
    soon(lab.task.shutdown(Context::default(), &ShutdownRequest { id: POD.into(), ..Default::default() }))
        .await
        .unwrap();
    soon(lab.shim.over()).await;

    for event in [
        "/tasks/create web",
        "/tasks/start web",
        "/tasks/exec-added e1",
        "/tasks/exec-started e1",
        "/tasks/exit e1 3",
        "/tasks/exit web 143",
        "/tasks/delete web",
        "/tasks/exit pod-1 137",
        "/tasks/delete pod-1",
    ] {
        assert_eq!(lab.containerd.next().await, event);
    }
}

#[tokio::test]
async fn a_pod_with_annotations_that_are_not_followed_runs_and_tells_which() {
    let lab = Lab::new().await;
    let config = json!({
        "ociVersion": "1.1.0",
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": POD,
            "io.katacontainers.config.hypervisor.path": "/bin/sh",
            "io.katacontainers.config.runtime.internetworking_model": "macvtap",
        },
        "linux": {"namespaces": [{"type": "network", "path": "/run/netns/pod"}, {"type": "pid"}, {"type": "ipc"}]},
    });

    lab.create(lab.request(POD, config)).await.unwrap();

    let troubles = lab.shim.journal.state().troubles;
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    assert!(troubles[0].error.contains("config.hypervisor.path is not followed"), "{troubles:?}");
}

#[tokio::test]
async fn siblings_are_answered_while_a_container_waits_for_its_image() {
    let lab = Lab::with_pod().await;
    lab.create(lab.container("web", json!([]))).await.unwrap();
    lab.start("web", "").await.unwrap();
    lab.agent.hold_up("slow");
    let request = lab.container("slow", json!([]));
    let task = lab.task.clone();
    let slow = tokio::spawn(async move { task.create(Context::default(), &request).await });
    lab.asked_for("slow").await;

    assert_eq!(lab.state("web").await.unwrap(), Status::RUNNING);
    let stats = StatsRequest { id: "web".into(), ..Default::default() };
    soon(lab.task.stats(Context::default(), &stats)).await.unwrap();
    lab.exec("web", "e").await.unwrap();
    lab.start("web", "e").await.unwrap();
    lab.kill("web", "e", 9).await.unwrap();
    lab.kill("web", "", 9).await.unwrap();
    assert_eq!(lab.wait("web", "").await.unwrap(), 137);
    assert_eq!(code(lab.state("slow").await.unwrap_err()).0, ttrpc::Code::NOT_FOUND);
    // Nor does it stop the pod from being created twice.
    assert_eq!(code(lab.create(lab.container("slow", json!([]))).await.unwrap_err()).0, ttrpc::Code::ALREADY_EXISTS);

    lab.agent.let_go("slow");
    soon(slow).await.unwrap().unwrap();
    assert_eq!(lab.state("slow").await.unwrap(), Status::CREATED);
}

#[tokio::test]
async fn a_refused_container_leaves_nothing_and_can_be_tried_again() {
    let mut lab = Lab::with_pod().await;
    lab.agent.deny("CreateContainer");
    let (why, text) = code(lab.create(lab.container("web", json!([]))).await.unwrap_err());
    assert_eq!(why, ttrpc::Code::PERMISSION_DENIED);
    assert_eq!(text, "CreateContainer: CreateContainer is blocked by policy");
    assert_eq!(code(lab.state("web").await.unwrap_err()).0, ttrpc::Code::NOT_FOUND);

    lab.agent.allow("CreateContainer");
    lab.create(lab.container("web", json!([]))).await.unwrap();
    assert_eq!(lab.containerd.next().await, "/tasks/create web");
}

#[tokio::test]
async fn a_container_is_created_again_in_a_live_pod() {
    let lab = Lab::with_pod().await;
    for _ in 0..2 {
        lab.create(lab.container("web", json!([]))).await.unwrap();
        lab.start("web", "").await.unwrap();
        lab.agent.exit("web", "", 1);
        assert_eq!(lab.wait("web", "").await.unwrap(), 1);
        lab.delete("web", "").await.unwrap();
    }
    assert_eq!(*lab.boot.machines.borrow(), (1, 0));
}

#[tokio::test]
async fn a_container_that_takes_too_long_is_taken_back_and_the_error_says_what_to_do() {
    let lab = Lab::new().await;
    std::fs::write(lab.path("configuration.toml"), "[agent.kata]\ncreate_container_timeout = 1\n").unwrap();
    lab.create(lab.sandbox(POD)).await.unwrap();
    lab.agent.hold_up("slow");
    let (why, text) = code(lab.create(lab.container("slow", json!([]))).await.unwrap_err());
    assert_eq!(why, ttrpc::Code::DEADLINE_EXCEEDED);
    assert!(text.contains("within 1 s; next: raise create_container_timeout"), "{text}");
    assert_eq!(*lab.agent.removed.lock().unwrap(), ["slow"]);
}

#[tokio::test]
async fn a_creation_that_containerd_gives_up_leaves_nothing() {
    let lab = Lab::with_pod().await;
    lab.agent.hold_up("slow");
    let (request, task) = (lab.container("slow", json!([])), lab.task.clone());
    let slow = tokio::spawn(async move { task.create(Context::default(), &request).await });
    lab.asked_for("slow").await;

    // What containerd does when it has lost patience.
    assert_eq!(code(lab.delete("slow", "").await.unwrap_err()).0, ttrpc::Code::NOT_FOUND);
    let request = ShutdownRequest { id: "slow".into(), ..Default::default() };
    soon(lab.task.shutdown(Context::default(), &request)).await.unwrap();
    lab.agent.let_go("slow");

    let (_, text) = code(soon(slow).await.unwrap().unwrap_err());
    assert!(text.contains("given up"), "{text}");
    assert_eq!(*lab.agent.removed.lock().unwrap(), ["slow"]);
    assert_eq!(lab.state(POD).await.unwrap(), Status::RUNNING);
    lab.create(lab.container("slow", json!([]))).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_is_given_up_while_it_boots_ends_its_shim() {
    let lab = Lab::new().await;
    lab.boot.held.send_replace(true);
    let (request, task) = (lab.sandbox(POD), lab.task.clone());
    let booting = tokio::spawn(async move { task.create(Context::default(), &request).await });
    soon(async {
        while lab.boot.held.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(code(lab.create(lab.sandbox(POD)).await.unwrap_err()).0, ttrpc::Code::ALREADY_EXISTS);

    let request = ShutdownRequest { id: POD.into(), ..Default::default() };
    soon(lab.task.shutdown(Context::default(), &request)).await.unwrap();

    let (_, text) = code(soon(booting).await.unwrap().unwrap_err());
    assert!(text.contains("given up"), "{text}");
    soon(lab.shim.over()).await;
    assert_eq!(*lab.boot.machines.borrow(), (0, 0));
}

#[tokio::test]
async fn a_pod_that_can_t_be_created_has_no_machine_and_may_come_again() {
    let lab = Lab::new().await;
    lab.agent.deny("CreateContainer");
    assert!(lab.create(lab.sandbox(POD)).await.is_err());
    assert_eq!(*lab.boot.machines.borrow(), (1, 1));
    lab.agent.allow("CreateContainer");
    lab.create(lab.sandbox(POD)).await.unwrap();
    assert_eq!(*lab.boot.machines.borrow(), (2, 1));
}

#[tokio::test]
async fn when_the_machine_dies_all_processes_have_ended_and_the_pod_can_be_removed() {
    let mut lab = Lab::with_pod().await;
    lab.create(lab.container("web", json!([]))).await.unwrap();
    lab.start("web", "").await.unwrap();
    lab.exec("web", "e").await.unwrap();
    lab.start("web", "e").await.unwrap();
    for _ in 0..4 {
        lab.containerd.next().await;
    }

    lab.boot.crash("QEMU ended with signal 9");

    for event in ["/tasks/exit e 137", "/tasks/exit web 137", "/tasks/exit pod-1 137"] {
        assert_eq!(lab.containerd.next().await, event);
    }
    assert_eq!(lab.wait("web", "").await.unwrap(), 137);
    assert_eq!(code(lab.kill("web", "", 9).await.unwrap_err()).0, ttrpc::Code::NOT_FOUND);
    let (_, text) = code(lab.create(lab.container("late", json!([]))).await.unwrap_err());
    assert!(text.contains("QEMU ended with signal 9"), "{text}");
    assert_eq!(lab.delete("web", "").await.unwrap(), 137);
    assert_eq!(lab.delete(POD, "").await.unwrap(), 137);
}

#[tokio::test]
async fn a_guest_that_kills_nobody_doesn_t_keep_its_machine() {
    for (victim, attempts) in [(POD, 1), ("web", 2)] {
        let lab = Lab::with_pod().await;
        lab.create(lab.container("web", json!([]))).await.unwrap();
        lab.agent.deny("SignalProcess");
        assert_eq!(code(lab.kill(victim, "", 15).await.unwrap_err()).0, ttrpc::Code::PERMISSION_DENIED);
        for _ in 1..attempts {
            assert_eq!(code(lab.kill(victim, "", 9).await.unwrap_err()).0, ttrpc::Code::PERMISSION_DENIED);
        }
        assert_eq!(*lab.boot.machines.borrow(), (1, 0));
        lab.kill(victim, "", 9).await.unwrap();
        assert_eq!(lab.wait("web", "").await.unwrap(), 137);
        assert_eq!(*lab.boot.machines.borrow(), (1, 1));
    }
}

#[tokio::test]
async fn standard_input_ends_when_containerd_says_so_and_not_before() {
    let lab = Lab::with_pod().await;
    let stdin = lab.fifo("stdin");
    let request = CreateTaskRequest { stdin: stdin.clone(), ..lab.container("cat", json!([])) };
    lab.create(request).await.unwrap();
    lab.start("cat", "").await.unwrap();
    let mut received = lab.agent.stdin.subscribe();
    // A writer that comes and goes, as containerd does when it restarts.
    for text in ["one ", "two"] {
        let mut writer = pipe::OpenOptions::new().open_sender(&stdin).unwrap();
        writer.write_all(text.as_bytes()).await.unwrap();
    }
    let all = soon(received.wait_for(|(data, _)| data == b"one two")).await.unwrap().1;
    assert!(!all, "it ended");

    let request = CloseIORequest { id: "cat".into(), stdin: true, ..Default::default() };
    soon(lab.task.close_io(Context::default(), &request)).await.unwrap();
    drop(soon(received.wait_for(|(_, closed)| *closed)).await.unwrap());
}

#[tokio::test]
async fn a_pause_a_resume_and_a_lack_of_memory_are_told() {
    let mut lab = Lab::with_pod().await;
    lab.create(lab.container("web", json!([]))).await.unwrap();
    lab.start("web", "").await.unwrap();
    lab.containerd.next().await;
    lab.containerd.next().await;

    soon(lab.task.pause(Context::default(), &PauseRequest { id: "web".into(), ..Default::default() })).await.unwrap();
    assert_eq!(lab.state("web").await.unwrap(), Status::PAUSED);
    soon(lab.task.resume(Context::default(), &ResumeRequest { id: "web".into(), ..Default::default() })).await.unwrap();
    assert_eq!(lab.state("web").await.unwrap(), Status::RUNNING);
    // Of a container that isn't there nobody hears.
    for id in ["nobody", "web"] {
        lab.agent.oom.0.send(id.into()).await.unwrap();
    }

    for event in ["/tasks/paused web", "/tasks/resumed web", "/tasks/oom web"] {
        assert_eq!(lab.containerd.next().await, event);
    }
}

#[tokio::test]
async fn version_2_is_served_under_its_own_name() {
    let lab = Lab::with_pod().await;
    let state = StateRequest { id: POD.into(), ..Default::default() };
    let request = ttrpc::Request {
        service: "containerd.task.v2.Task".into(),
        method: "State".into(),
        payload: protobuf::Message::write_to_bytes(&state).unwrap(),
        ..Default::default()
    };
    let response = soon(lab.client.request(request)).await.unwrap();
    let state: StateResponse = protobuf::Message::parse_from_bytes(&response.payload).unwrap();
    assert_eq!((state.pid, state.status.enum_value_or_default()), (PID, Status::RUNNING));
}

#[tokio::test]
async fn a_pod_can_be_made_through_the_sandbox_api() {
    use containerd_shim_protos::sandbox_api::*;
    let lab = Lab::new().await;
    let sandbox = containerd_shim_protos::sandbox_async::SandboxClient::new(lab.client.clone());
    let id = || POD.to_owned();
    // A pod's configuration with the annotation that makes the guest's memory 130 MiB.
    let (name, value) = ("io.katacontainers.config.hypervisor.default_memory", "130");
    let entry = [&[0x0a, name.len() as u8], name.as_bytes(), &[0x12, value.len() as u8], value.as_bytes()].concat();
    let options = Any { value: [&[0x3a, entry.len() as u8], &entry[..]].concat(), ..Any::default() };
    let create = CreateSandboxRequest {
        sandbox_id: id(),
        netns_path: "/run/netns/x".into(),
        options: Some(options).into(),
        ..Default::default()
    };
    soon(sandbox.create_sandbox(Context::default(), &create)).await.unwrap();
    let start = StartSandboxRequest { sandbox_id: id(), ..Default::default() };
    assert_eq!(soon(sandbox.start_sandbox(Context::default(), &start)).await.unwrap().pid, PID);
    assert_eq!(*lab.boot.memory.borrow(), 130);
    lab.create(lab.container("web", json!([]))).await.unwrap();

    let status = SandboxStatusRequest { sandbox_id: id(), ..Default::default() };
    let state = soon(sandbox.sandbox_status(Context::default(), &status)).await.unwrap().state;
    assert_eq!(state, "SANDBOX_READY");
    let stop = StopSandboxRequest { sandbox_id: id(), ..Default::default() };
    soon(sandbox.stop_sandbox(Context::default(), &stop)).await.unwrap();
    let wait = WaitSandboxRequest { sandbox_id: id(), ..Default::default() };
    soon(sandbox.wait_sandbox(Context::default(), &wait)).await.unwrap();
    assert_eq!(lab.wait("web", "").await.unwrap(), 137);
}
