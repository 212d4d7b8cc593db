//! Stories of whole pods: what their containers share, what the host copies into them, what it measures.

use agent::{AgentEvent, HELPER_ARG};
use ttrpc::{Code, context};
use wire_ttrpc::agent::*;
use wire_ttrpc::oci;

use crate::PROGRAM;
use crate::lab::{Lab, refusal};

pub(crate) async fn a_pod_shares_names_memory_and_processes() {
    let mut lab = Lab::start_with("g", |root, sandbox| {
        sandbox.sandbox_pidns = true;
        sandbox.storages.push(Storage {
            driver: "ephemeral".into(),
            source: "shm".into(),
            fstype: "tmpfs".into(),
            mount_point: root.join("sandbox/shm").to_str().unwrap().into(),
            options: ["noexec", "nosuid", "nodev", "mode=1777", "size=1048576"].map(str::to_owned).to_vec(),
            ..Default::default()
        });
    })
    .await;

    // Whatever the host would like the sandbox container to be, it is the guest's own.
    let pause = |request: &mut CreateContainerRequest| {
        let spec = request.OCI.mut_or_insert_default();
        spec.Annotations.insert("io.katacontainers.pkg.oci.container_type".into(), "pod_sandbox".into());
        spec.Mounts.push(oci::Mount { destination: "/proc".into(), source: "/".into(), ..Default::default() });
    };
    lab.create("pause", &["/bin/sh", "-c", "evil"], pause).await.unwrap();
    lab.expect(AgentEvent::ContainerCreated { id: "pause".into(), digest: None }).await;
    let (code, text) = refusal(lab.exec("pause", "e", &["/bin/sh"], false).await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
    lab.start_container("pause").await.unwrap();
    let (_, text) = refusal(lab.exec("pause", "e", &["/bin/sh"], false).await);
    assert!(text.contains("in which nothing runs"), "{text}");

    let with_shm = |request: &mut CreateContainerRequest| {
        let source = lab.root.join("sandbox/shm").to_str().unwrap().into();
        let options = vec!["rbind".into()];
        let mount =
            oci::Mount { destination: "/dev/shm".into(), source, type_: "bind".into(), options, ..Default::default() };
        request.OCI.mut_or_insert_default().Mounts.push(mount);
    };
    let mut outputs = Vec::new();
    for id in ["c1", "c2"] {
        lab.create(id, &["/app", PROGRAM, "pod"], with_shm).await.unwrap();
        lab.start_container(id).await.unwrap();
        assert_eq!(lab.wait(id, "").await, 0);
        outputs.push(lab.read_all(id, "").await);
        let log = GetDiagnosticDataRequest {
            log_type: "termination_log".into(),
            container_id: id.into(),
            ..Default::default()
        };
        assert_eq!(lab.agent.get_diagnostic_data(context::with_timeout(0), &log).await.unwrap().data, "why it ended");
    }
    let lines = |output: &str, names: &[&str]| -> Vec<String> {
        output.lines().filter(|line| names.iter().any(|name| line.starts_with(name))).map(str::to_owned).collect()
    };
    let shared = lines(&outputs[0], &["ipc", "uts", "pid"]);
    assert_eq!(shared.len(), 3);
    assert_eq!(shared, lines(&outputs[1], &["ipc", "uts", "pid"]));
    // The first one is a fork of the helper, without rights, and gives no view of the guest's files.
    let [first, rights, root] = &lines(&outputs[1], &["first", "rights", "root"])[..] else { panic!("{}", outputs[1]) };
    assert!(first.trim_end().ends_with(HELPER_ARG), "{first}");
    assert_eq!(rights, "rights pause 65535 0000000000000000 1");
    assert_eq!(root, "root Err(PermissionDenied)");
    assert_eq!(lines(&outputs[0], &["note"]), ["note "]);
    assert_eq!(lines(&outputs[1], &["note"]), ["note left by another"]);

    // A signal that a container's process doesn't handle ends that process, and the container's others with it.
    lab.create("c3", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c3").await.unwrap();
    lab.exec("c3", "other", &["/app", PROGRAM, "stay"], false).await.unwrap();
    lab.signal("c3", "", 15).await.unwrap();
    assert_eq!((lab.wait("c3", "").await, lab.wait("c3", "other").await), (143, 137));

    // A command that enters a container while that is removed ends with it, or finds it gone.
    for number in 0..10 {
        let id = format!("r{number}");
        lab.create(&id, &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
        lab.start_container(&id).await.unwrap();
        let command = ["/app", PROGRAM, "stay"];
        let (removed, _) = tokio::join!(lab.remove(&id, 30), lab.exec(&id, "late", &command, false));
        removed.unwrap();
        lab.assert_clean(&id);
    }

    // The pod's processes end with the sandbox container, and a new one takes their place.
    lab.create("c4", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c4").await.unwrap();
    lab.signal("pause", "", 15).await.unwrap();
    assert_eq!((lab.wait("pause", "").await, lab.wait("c4", "").await), (0, 137));
    lab.remove("pause", 5).await.unwrap();
    lab.create("pause", &[], pause).await.unwrap();
    lab.create("c5", &["/app", PROGRAM, "show"], |_| {}).await.unwrap();
    lab.start_container("c5").await.unwrap();
    assert_eq!(lab.wait("c5", "").await, 7);
    lab.end().await;
}

pub(crate) async fn what_the_host_copies_can_be_mounted_and_changed() {
    let lab = Lab::start("h").await;
    lab.copy("c1-0123456789abcdef-config/..v1/key", 0o100_644, b"old").await;
    lab.copy("c1-0123456789abcdef-config/..data", 0o120_777, b"..v1").await;
    lab.copy("c1-0123456789abcdef-config/key", 0o120_777, b"..data/key").await;
    lab.copy("c1-0123456789abcdef-hosts", 0o100_644, b"10.0.0.7 friend").await;
    let copies = lab.root.join("shared/containers");
    let with_copies = |request: &mut CreateContainerRequest| {
        for (destination, name) in
            [("/etc/config", "c1-0123456789abcdef-config"), ("/etc/hosts", "c1-0123456789abcdef-hosts")]
        {
            request.OCI.mut_or_insert_default().Mounts.push(oci::Mount {
                destination: destination.into(),
                source: copies.join(name).to_str().unwrap().into(),
                type_: "bind".into(),
                options: ["rbind", "rprivate", "ro"].map(str::to_owned).to_vec(),
                ..Default::default()
            });
        }
    };
    lab.create("c1", &["/app", PROGRAM, "stay"], with_copies).await.unwrap();
    lab.start_container("c1").await.unwrap();
    let read = async |exec: &str, path: &str| {
        lab.exec("c1", exec, &["/app", PROGRAM, "read", path], false).await.unwrap();
        lab.read_all("c1", exec).await
    };
    assert_eq!(read("e1", "/etc/config/key").await, "old");
    assert_eq!(read("e2", "/etc/hosts").await, "10.0.0.7 friend");

    // As Kubernetes updates a volume, and a part at a time.
    let part = async |offset: usize, data: &[u8]| {
        lab.part("c1-0123456789abcdef-config/..v2/key", 0o100_644, 5, offset, data).await
    };
    tokio::join!(part(3, b"er"), part(0, b"new"));
    lab.copy("c1-0123456789abcdef-config/..data", 0o120_777, b"..v2").await;
    assert_eq!(read("e3", "/etc/config/key").await, "newer");

    lab.remove("c1", 5).await.unwrap();
    assert!(std::fs::read_dir(&copies).unwrap().next().is_none(), "copies are left");
    // What was copied for a container that can't be made goes with it.
    lab.copy("c2-0123456789abcdef-hosts", 0o100_644, b"x").await;
    let with_hosts = |request: &mut CreateContainerRequest| {
        request.OCI.mut_or_insert_default().Mounts.push(oci::Mount {
            destination: "/etc/hosts".into(),
            source: copies.join("c2-0123456789abcdef-hosts").to_str().unwrap().into(),
            options: vec!["bind".into()],
            ..Default::default()
        });
    };
    assert!(lab.create("c2", &["/no/such/program"], with_hosts).await.is_err());
    assert!(!copies.join("c2-0123456789abcdef-hosts").exists());
    lab.end().await;
}

pub(crate) async fn a_paused_container_does_nothing_until_it_goes_on() {
    let lab = Lab::start("i").await;
    lab.create("c1", &["/app", PROGRAM, "copy"], |_| {}).await.unwrap();
    lab.start_container("c1").await.unwrap();
    let request = PauseContainerRequest { container_id: "c1".into(), ..Default::default() };
    lab.agent.pause_container(context::with_timeout(0), &request).await.unwrap();
    let (code, text) = refusal(lab.exec("c1", "e1", &["/app", PROGRAM, "show"], false).await);
    assert!(code == ttrpc::Code::FAILED_PRECONDITION && text.contains("is paused"), "{text}");
    lab.write("c1", "", b"hello").await;
    let close = CloseStdinRequest { container_id: "c1".into(), ..Default::default() };
    lab.agent.close_stdin(context::with_timeout(0), &close).await.unwrap();
    let frozen = std::fs::read_to_string("/sys/fs/cgroup/containers/c1/cgroup.events").unwrap();
    assert!(frozen.contains("frozen 1"), "{frozen}");

    let stats = StatsContainerRequest { container_id: "c1".into(), ..Default::default() };
    let stats = lab.agent.stats_container(context::with_timeout(0), &stats).await.unwrap();
    assert!(stats.cgroup_stats.cpu_stats.cpu_usage.total_usage > 0, "{stats:?}");
    assert!(stats.network_stats.iter().any(|interface| interface.name == "lo"));

    let request = ResumeContainerRequest { container_id: "c1".into(), ..Default::default() };
    lab.agent.resume_container(context::with_timeout(0), &request).await.unwrap();
    assert_eq!(lab.read_all("c1", "").await, "hello");
    assert_eq!(lab.wait("c1", "").await, 0);
    let (code, text) = refusal(lab.exec("c1", "e1", &["/app", PROGRAM, "show"], false).await);
    assert!(code == ttrpc::Code::FAILED_PRECONDITION && text.contains("has ended"), "{text}");

    // A paused container can be killed and removed.
    lab.create("c2", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c2").await.unwrap();
    let request = PauseContainerRequest { container_id: "c2".into(), ..Default::default() };
    lab.agent.pause_container(context::with_timeout(0), &request).await.unwrap();
    lab.signal("c2", "", 9).await.unwrap();
    assert_eq!(lab.wait("c2", "").await, 137);
    lab.end().await;
}
