//! Commands in containers: what they get, whom they run as, and what is left of them.

use super::*;

pub(super) async fn commands_run_in_a_container_and_end_with_it() {
    let lab = Lab::start("b").await;
    lab.create("c1", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    let (code, text) = refusal(lab.exec("c1", "early", &["/app", PROGRAM, "copy"], false).await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(text.contains("has not been started"), "{text}");
    lab.start_container("c1").await.unwrap();
    assert_eq!(lab.read("c1", "").await, "here\n");

    // Streams of a command, both ways.
    lab.exec("c1", "copy", &["/app", PROGRAM, "copy"], false).await.unwrap();
    assert_eq!(refusal(lab.exec("c1", "copy", &["/app", PROGRAM, "copy"], false).await).0, Code::ALREADY_EXISTS);
    lab.write("c1", "copy", b"hello").await;
    let close = CloseStdinRequest { container_id: "c1".into(), exec_id: "copy".into(), ..Default::default() };
    lab.agent.close_stdin(context::with_timeout(0), &close).await.unwrap();
    assert_eq!(lab.read_all("c1", "copy").await, "hello");
    assert_eq!(lab.wait("c1", "copy").await, 0);

    // What can't be run is an error, and the name is free again.
    let (_, text) = refusal(lab.exec("c1", "wrong", &["/none"], false).await);
    assert!(text.contains("/none"), "{text}");
    lab.exec("c1", "wrong", &["/app", PROGRAM, "stay"], false).await.unwrap();
    lab.signal("c1", "wrong", 15).await.unwrap();
    assert_eq!(lab.wait("c1", "wrong").await, 143);

    // A signal that the first process doesn't handle still ends it, and takes its commands along.
    lab.exec("c1", "other", &["/app", PROGRAM, "stay"], false).await.unwrap();
    assert_eq!(lab.read("c1", "other").await, "here\n");
    lab.signal("c1", "", 15).await.unwrap();
    assert_eq!(lab.wait("c1", "").await, 137);
    assert_eq!(lab.wait("c1", "other").await, 137);
    assert_eq!(lab.read_all("c1", "").await, "");
    lab.signal("c1", "", 9).await.unwrap();
    assert_eq!(refusal(lab.signal("c1", "", 99).await).0, Code::INVALID_ARGUMENT);
    lab.remove("c1", 0).await.unwrap();
    lab.assert_clean("c1");
    assert_eq!(refusal(lab.remove("c1", 0).await).0, Code::NOT_FOUND);

    // A container that was never started can be removed, and one that runs.
    lab.create("c2", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.remove("c2", 5).await.unwrap();
    lab.create("c3", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c3").await.unwrap();
    lab.remove("c3", 5).await.unwrap();
    lab.assert_clean("c3");
    lab.end().await;
}

pub(super) async fn a_command_is_confined_as_its_container_is() {
    let lab = Lab::start("k").await;
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
    let narrow = oci::Process {
        Env: words(&["PATH=/bin", "A=1"]),
        Cwd: "/srv".into(),
        User: MessageField::some(oci::User { UID: 12, GID: 34, AdditionalGids: vec![5, 6], ..Default::default() }),
        Capabilities: MessageField::some(oci::LinuxCapabilities {
            Bounding: words(&["CAP_KILL", "CAP_CHOWN"]),
            Permitted: words(&["CAP_KILL"]),
            Effective: words(&["CAP_KILL"]),
            Inheritable: words(&["CAP_KILL"]),
            Ambient: words(&["CAP_KILL"]),
            ..Default::default()
        }),
        Rlimits: vec![oci::POSIXRlimit { Type: "RLIMIT_NOFILE".into(), Soft: 100, Hard: 200, ..Default::default() }],
        NoNewPrivileges: true,
        OOMScoreAdj: 500,
        ..Default::default()
    };
    let root = oci::Process { Env: words(&["HOME=/x"]), ..Default::default() };
    for (id, process) in [("narrow", narrow), ("root", root)] {
        let process = |args: &[&str]| {
            let process = oci::Process { Args: words(&[&["/app", PROGRAM], args].concat()), ..process.clone() };
            MessageField::some(process)
        };
        let first = process(&["confinement", "stay"]);
        lab.create(id, &[], |request| request.OCI.mut_or_insert_default().Process = first).await.unwrap();
        lab.start_container(id).await.unwrap();
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: "e1".into(),
            process: process(&["confinement"]),
            ..Default::default()
        };
        let expected = lab.read(id, "").await;
        lab.agent.exec_process(context::with_timeout(0), &request).await.unwrap();
        assert_eq!(lab.read_all(id, "e1").await, expected, "{id}");
        assert_eq!(lab.wait(id, "e1").await, 0);
        lab.signal(id, "", 9).await.unwrap();
    }
    lab.end().await;
}

pub(super) async fn a_command_is_never_seen_with_more_than_its_container_has() {
    let lab = Lab::start("n").await;
    let process = |args: &[&str]| {
        let args = [&["/app", PROGRAM], args].concat().iter().map(ToString::to_string).collect();
        let rights = vec!["CAP_SYS_PTRACE".to_owned()];
        MessageField::some(oci::Process {
            Args: args,
            User: MessageField::some(oci::User::default()),
            Capabilities: MessageField::some(oci::LinuxCapabilities {
                Bounding: rights.clone(),
                Permitted: rights.clone(),
                Effective: rights,
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let first = process(&["watch"]);
    lab.create("c1", &[], |request| request.OCI.mut_or_insert_default().Process = first).await.unwrap();
    lab.start_container("c1").await.unwrap();
    assert_eq!(lab.read("c1", "").await, "here\n");
    for number in 0..30 {
        let exec_id = format!("e{number}");
        let command = process(&["read", "/etc/hostname"]);
        let request = ExecProcessRequest {
            container_id: "c1".into(),
            exec_id: exec_id.clone(),
            process: command,
            ..Default::default()
        };
        lab.agent.exec_process(context::with_timeout(0), &request).await.unwrap();
        assert_eq!(lab.read_all("c1", &exec_id).await, "pod-1\n");
    }
    let close = CloseStdinRequest { container_id: "c1".into(), ..Default::default() };
    lab.agent.close_stdin(context::with_timeout(0), &close).await.unwrap();
    assert_eq!(lab.read_all("c1", "").await, "others true found {}\n");
    lab.end().await;
}

pub(super) async fn a_terminal_has_a_size_and_one_stream() {
    let lab = Lab::start("c").await;
    let id = "t".repeat(128);
    lab.create(&id, &["/app", PROGRAM, "terminal"], |request| {
        request.OCI.mut_or_insert_default().Process.mut_or_insert_default().Terminal = true;
    })
    .await
    .unwrap();
    lab.start_container(&id).await.unwrap();
    assert_eq!(lab.read(&id, "").await, "terminal true\r\n");
    let resize = TtyWinResizeRequest { container_id: id.clone(), row: 33, column: 99, ..Default::default() };
    lab.agent.tty_win_resize(context::with_timeout(0), &resize).await.unwrap();
    lab.write(&id, "", b"enter\n").await;
    let output = lab.read_all(&id, "").await;
    assert!(output.contains("size 33x99 after enter"), "{output}");
    assert_eq!(lab.wait(&id, "").await, 0);
    lab.remove(&id, 5).await.unwrap();

    lab.create("c2", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c2").await.unwrap();
    lab.exec("c2", "e1", &["/app", PROGRAM, "terminal"], true).await.unwrap();
    assert_eq!(lab.read("c2", "e1").await, "terminal true\r\n");
    let resize = TtyWinResizeRequest { container_id: "c2".into(), row: 1, column: 2, ..Default::default() };
    assert_eq!(refusal(lab.agent.tty_win_resize(context::with_timeout(0), &resize).await).0, Code::FAILED_PRECONDITION);
    lab.end().await;
}

pub(super) async fn whoever_a_program_runs_as_can_open_its_streams_again() {
    let lab = Lab::start("l").await;
    for (id, terminal) in [("pipes", false), ("terminal", true)] {
        let process = MessageField::some(oci::Process {
            Args: ["/app", PROGRAM, "reopen"].map(str::to_owned).to_vec(),
            User: MessageField::some(oci::User { UID: 1000, GID: 1000, ..Default::default() }),
            Terminal: terminal,
            ..Default::default()
        });
        let first = process.clone();
        lab.create(id, &[], |request| request.OCI.mut_or_insert_default().Process = first).await.unwrap();
        lab.start_container(id).await.unwrap();
        let exec_id = "e1".to_owned();
        let request = ExecProcessRequest { container_id: id.into(), exec_id, process, ..Default::default() };
        lab.agent.exec_process(context::with_timeout(0), &request).await.unwrap();
        for exec in ["", "e1"] {
            let mut output = String::new();
            while !output.contains("home ") {
                let part = lab.read(id, exec).await;
                assert!(!part.is_empty(), "{id} {exec:?}: {output}");
                output.push_str(&part);
            }
            let expected = match terminal {
                true => "out as 1000\r\nerr as 1000\r\nagain as 1000\r\nhome /\r\n",
                false => "out as 1000\nagain as 1000\nhome /\n",
            };
            assert_eq!(output, expected, "{id} {exec:?}");
        }
    }
    let read = ReadStreamRequest { container_id: "pipes".into(), len: 100, ..Default::default() };
    let errors = lab.agent.read_stderr(context::with_timeout(0), &read).await.unwrap();
    assert_eq!(errors.data, b"err as 1000\n");
    lab.end().await;
}

pub(super) async fn commands_that_have_ended_hold_few_descriptors() {
    let lab = Lab::start("m").await;
    lab.create("c1", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c1").await.unwrap();
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for number in 0..40 {
        let exec = format!("e{number}");
        lab.exec("c1", &exec, &["/app", PROGRAM, "show"], false).await.unwrap();
        let read =
            ReadStreamRequest { container_id: "c1".into(), exec_id: exec.clone(), len: 4096, ..Default::default() };
        assert!(lab.read_all("c1", &exec).await.contains("pid "));
        while !lab.agent.read_stderr(context::with_timeout(0), &read).await.unwrap().data.is_empty() {}
        assert_eq!(lab.wait("c1", &exec).await, 7);
    }
    assert!(descriptors() < before + 80, "{before} have become {}", descriptors());
    // Whoever comes late is still told.
    assert_eq!(lab.wait("c1", "e38").await, 7);
    lab.end().await;
}
