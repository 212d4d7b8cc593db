//! Real containers, in namespaces of their own: needs root, and a kernel with control groups of version 2.
//!
//! This program is its own container image: it is linked statically, so that it runs in an empty root file system.
//! It plays four parts: the test that `cargo test` starts, the guest's first process in a fresh process namespace,
//! the agent's helper, and the program of the containers.

#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use agent::{
    Agent, AgentConfig, AgentEvent, HELPER_ARG, ImageError, ImageProcess, Images, PAUSE_ARG, Policy, PulledImage,
    ResolvedImage, run_helper, run_pause,
};
use async_trait::async_trait;
use protobuf::MessageField;
use tokio::sync::Notify;
use ttrpc::{Code, context};
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::oci;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let part = args.next().unwrap_or_default();
    match part.to_str() {
        Some(HELPER_ARG) => ExitCode::from(run_helper(args)),
        Some(PAUSE_ARG) => ExitCode::from(run_pause()),
        Some(PROGRAM) => program(args.map(|arg| arg.into_string().unwrap()).collect()),
        Some(GUEST) => guest(),
        Some("--list") => ExitCode::SUCCESS,
        _ => test(),
    }
}

/// Starts the guest in namespaces of its own.
fn test() -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        println!("containers: skipped, since namespaces take root");
        return ExitCode::SUCCESS;
    }
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts", "--ipc"]);
    let status = command.arg(std::env::current_exe().unwrap()).arg(GUEST).status().unwrap();
    println!("containers: {status}");
    if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn guest() -> ExitCode {
    use rustix::mount::{MountFlags, mount};
    if let Err(error) = mount("cgroup", "/sys/fs/cgroup", "cgroup2", MountFlags::empty(), None) {
        println!("containers: skipped, since there are no control groups of version 2: {error}");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stories = async {
            a_container_runs_what_its_image_says().await;
            commands_run_in_a_container_and_end_with_it().await;
            a_terminal_has_a_size_and_one_stream().await;
            a_container_that_can_t_be_made_leaves_nothing().await;
            a_creation_that_its_caller_gave_up_leaves_nothing().await;
            a_pull_holds_up_nobody_else().await;
            a_pod_shares_names_memory_and_processes().await;
            what_the_host_copies_can_be_mounted_and_changed().await;
            a_paused_container_does_nothing_until_it_goes_on().await;
        };
        tokio::time::timeout(DEADLINE, stories).await.expect("the stories end in time");
    });
    // The hierarchy of control groups is the machine's own.
    std::fs::remove_dir("/sys/fs/cgroup/containers").unwrap();
    ExitCode::SUCCESS
}

/// What the containers run.
fn program(args: Vec<String>) -> ExitCode {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["show"] => {
            println!("uid {} gid {}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            println!("pid {}", std::process::id());
            println!("cwd {}", std::env::current_dir().unwrap().display());
            println!("hostname {}", rustix::system::uname().nodename().to_str().unwrap());
            println!("mode {}", std::env::var("MODE").unwrap_or_default());
            println!("hosts {}", std::fs::read_to_string("/etc/hostname").unwrap().trim());
            println!("resolver {}", std::fs::read_to_string("/etc/resolv.conf").unwrap().trim());
            println!(
                "devices {}",
                Path::new("/dev/null").exists() && OpenOptions::new().write(true).open("/dev/null").is_ok()
            );
            println!("sys {}", std::fs::write("/sys/kernel/mm/x", "").is_err());
            println!(
                "group {}",
                std::fs::read_to_string("/proc/self/cgroup").unwrap().lines().any(|line| line == "0::/")
            );
            eprintln!("to standard error");
            ExitCode::from(7)
        }
        ["copy"] => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).unwrap();
            print!("{text}");
            ExitCode::SUCCESS
        }
        ["terminal"] => {
            println!("terminal {}", std::io::stdin().is_terminal());
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            let size = rustix::termios::tcgetwinsize(std::io::stdin()).unwrap();
            println!("size {}x{} after {}", size.ws_row, size.ws_col, line.trim());
            ExitCode::SUCCESS
        }
        ["pod"] => {
            for namespace in ["ipc", "uts", "pid"] {
                println!("{namespace} {}", std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap().display());
            }
            println!("first {}", std::fs::read_to_string("/proc/1/cmdline").unwrap().replace('\0', " "));
            let note = Path::new("/dev/shm/note");
            println!("note {}", std::fs::read_to_string(note).unwrap_or_default());
            std::fs::write(note, "left by another").unwrap();
            std::fs::write("/dev/termination-log", "why it ended").unwrap();
            ExitCode::SUCCESS
        }
        ["read", path] => {
            print!("{}", std::fs::read_to_string(path).unwrap());
            ExitCode::SUCCESS
        }
        ["stay"] => {
            println!("here");
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::park();
            }
        }
        _ => ExitCode::from(99),
    }
}

async fn a_container_runs_what_its_image_says() {
    let mut lab = Lab::start("a").await;
    lab.create("c1", &[], |request| {
        request.OCI.mut_or_insert_default().Process.mut_or_insert_default().Env = vec!["MODE=request".into()];
    })
    .await
    .unwrap();
    lab.expect(AgentEvent::ContainerCreated { id: "c1".into(), digest: Some(DIGEST.into()) }).await;
    let (code, _) = refusal(lab.create("c1", &[], |_| {}).await);
    assert_eq!(code, Code::ALREADY_EXISTS);

    lab.start_container("c1").await.unwrap();
    lab.expect(AgentEvent::ContainerStarted { id: "c1".into() }).await;
    assert_eq!(refusal(lab.start_container("c1").await).0, Code::FAILED_PRECONDITION);
    let (first, second) = tokio::join!(lab.wait("c1", ""), lab.wait("c1", "c1"));
    assert_eq!((first, second), (7, 7));
    lab.expect(AgentEvent::ContainerEnded { id: "c1".into(), status: 7 }).await;

    let output = lab.read_all("c1", "").await;
    for line in [
        "uid 12 gid 34",
        "pid 1",
        "cwd /srv",
        "hostname pod-1",
        "mode request",
        "hosts pod-1",
        "resolver nameserver 10.0.0.10",
        "devices true",
        "sys true",
        "group true",
    ] {
        assert!(output.lines().any(|found| found == line), "{line:?} in {output}");
    }
    let read = ReadStreamRequest { container_id: "c1".into(), len: 100, ..Default::default() };
    let errors = lab.agent.read_stderr(context::with_timeout(0), &read).await.unwrap();
    assert_eq!(errors.data, b"to standard error\n");

    lab.remove("c1", 5).await.unwrap();
    lab.assert_clean("c1");
    lab.create("c1", &["/app", PROGRAM, "show"], |_| {}).await.unwrap();
    lab.end().await;
}

async fn commands_run_in_a_container_and_end_with_it() {
    let lab = Lab::start("b").await;
    lab.create("c1", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    assert!(lab.exec("c1", "early", &["/app", PROGRAM, "copy"], false).await.is_err(), "nothing runs there yet");
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

async fn a_terminal_has_a_size_and_one_stream() {
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

async fn a_container_that_can_t_be_made_leaves_nothing() {
    let lab = Lab::start("d").await;
    let (_, text) = refusal(lab.create("c1", &["/no/such/program"], |_| {}).await);
    assert!(text.contains("/no/such/program"), "{text}");
    lab.assert_clean("c1");
    let (code, _) =
        refusal(lab.create("c1", &["/app"], |request| request.shared_mounts.push(Default::default())).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    lab.assert_clean("c1");

    // The volume of a container that failed goes with it, and comes back with one that works.
    let volume = lab.root.join("sandbox/ephemeral/cache");
    let with_volume = |request: &mut CreateContainerRequest| {
        request.storages.push(Storage {
            driver: "ephemeral".into(),
            fstype: "tmpfs".into(),
            mount_point: volume.to_str().unwrap().into(),
            options: vec!["size=1m".into()],
            ..Default::default()
        });
        request.OCI.mut_or_insert_default().Mounts.push(oci::Mount {
            destination: "/cache".into(),
            source: volume.to_str().unwrap().into(),
            type_: "bind".into(),
            options: vec!["rbind".into()],
            ..Default::default()
        });
    };
    assert!(lab.create("c1", &["/no/such/program"], with_volume).await.is_err());
    assert!(!volume.exists());
    lab.create("c1", &["/app", PROGRAM, "stay"], with_volume).await.unwrap();
    assert!(volume.exists());
    lab.end().await;
}

async fn a_creation_that_its_caller_gave_up_leaves_nothing() {
    let lab = Lab::start("e").await;
    let request = lab.request("slow", &["/app", PROGRAM, "stay"]);
    let timeout = context::with_duration(Duration::from_millis(200));
    assert!(lab.agent.create_container(timeout, &request).await.is_err());
    lab.end().await;
    // So is one that is still going on when the pod ends.
    let lab = Lab::start("e, going on").await;
    let request = lab.request("slow", &["/app", PROGRAM, "stay"]);
    let slow = tokio::spawn({
        let agent = lab.agent.clone();
        async move { agent.create_container(context::with_timeout(0), &request).await }
    });
    lab.images.pulling.notified().await;
    lab.end().await;
    assert_eq!(refusal(slow.await.unwrap()).0, Code::CANCELLED);
}

async fn a_pull_holds_up_nobody_else() {
    let lab = Lab::start("f").await;
    let request = lab.request("slow", &["/app", PROGRAM, "stay"]);
    let slow = tokio::spawn({
        let agent = lab.agent.clone();
        async move { agent.create_container(context::with_timeout(0), &request).await }
    });
    lab.images.pulling.notified().await;
    lab.create("c1", &["/app", PROGRAM, "show"], |_| {}).await.unwrap();
    lab.start_container("c1").await.unwrap();
    assert_eq!(lab.wait("c1", "").await, 7);
    assert_eq!(refusal(lab.start_container("slow").await).0, Code::FAILED_PRECONDITION);
    lab.images.proceed.notify_one();
    slow.await.unwrap().unwrap();
    lab.end().await;
}

async fn a_pod_shares_names_memory_and_processes() {
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
    lab.start_container("pause").await.unwrap();

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
    assert_eq!(lines(&outputs[1], &["first"]), [format!("first /pause {PAUSE_ARG} ")]);
    assert_eq!(lines(&outputs[0], &["note"]), ["note "]);
    assert_eq!(lines(&outputs[1], &["note"]), ["note left by another"]);

    // A signal that a container's process doesn't handle ends that process, and the container's others with it.
    lab.create("c3", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c3").await.unwrap();
    lab.exec("c3", "other", &["/app", PROGRAM, "stay"], false).await.unwrap();
    lab.signal("c3", "", 15).await.unwrap();
    assert_eq!((lab.wait("c3", "").await, lab.wait("c3", "other").await), (143, 137));

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

async fn what_the_host_copies_can_be_mounted_and_changed() {
    let lab = Lab::start("h").await;
    lab.copy("c1-config/..v1/key", 0o100_644, b"old").await;
    lab.copy("c1-config/..data", 0o120_777, b"..v1").await;
    lab.copy("c1-config/key", 0o120_777, b"..data/key").await;
    lab.copy("c1-hosts", 0o100_644, b"10.0.0.7 friend").await;
    let copies = lab.root.join("shared/containers");
    let with_copies = |request: &mut CreateContainerRequest| {
        for (destination, name) in [("/etc/config", "c1-config"), ("/etc/hosts", "c1-hosts")] {
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
    let part = async |offset: usize, data: &[u8]| lab.part("c1-config/..v2/key", 0o100_644, 5, offset, data).await;
    tokio::join!(part(3, b"er"), part(0, b"new"));
    lab.copy("c1-config/..data", 0o120_777, b"..v2").await;
    assert_eq!(read("e3", "/etc/config/key").await, "newer");

    lab.remove("c1", 5).await.unwrap();
    assert!(std::fs::read_dir(&copies).unwrap().next().is_none(), "copies are left");
    // What was copied for a container that can't be made goes with it.
    lab.copy("c2-hosts", 0o100_644, b"x").await;
    let with_hosts = |request: &mut CreateContainerRequest| {
        request.OCI.mut_or_insert_default().Mounts.push(oci::Mount {
            destination: "/etc/hosts".into(),
            source: copies.join("c2-hosts").to_str().unwrap().into(),
            options: vec!["bind".into()],
            ..Default::default()
        });
    };
    assert!(lab.create("c2", &["/no/such/program"], with_hosts).await.is_err());
    assert!(!copies.join("c2-hosts").exists());
    lab.end().await;
}

async fn a_paused_container_does_nothing_until_it_goes_on() {
    let lab = Lab::start("i").await;
    lab.create("c1", &["/app", PROGRAM, "copy"], |_| {}).await.unwrap();
    lab.start_container("c1").await.unwrap();
    let request = PauseContainerRequest { container_id: "c1".into(), ..Default::default() };
    lab.agent.pause_container(context::with_timeout(0), &request).await.unwrap();
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

    // A paused container can be killed and removed.
    lab.create("c2", &["/app", PROGRAM, "stay"], |_| {}).await.unwrap();
    lab.start_container("c2").await.unwrap();
    let request = PauseContainerRequest { container_id: "c2".into(), ..Default::default() };
    lab.agent.pause_container(context::with_timeout(0), &request).await.unwrap();
    lab.signal("c2", "", 9).await.unwrap();
    assert_eq!(lab.wait("c2", "").await, 137);
    lab.end().await;
}

/// An image with this program in it. The pull for the container `slow` waits until it is told to proceed.
#[derive(Default)]
struct SelfImage {
    pulling: Notify,
    proceed: Notify,
}

#[async_trait]
impl Images for SelfImage {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        Ok(ResolvedImage { reference: reference.into(), digest: DIGEST.into() })
    }

    async fn pull(&self, image: &ResolvedImage, bundle: &Path) -> Result<PulledImage, ImageError> {
        if bundle.ends_with("slow") {
            self.pulling.notify_one();
            self.proceed.notified().await;
        }
        let rootfs = bundle.join("rootfs");
        std::fs::create_dir_all(rootfs.join("srv")).unwrap();
        std::fs::copy("/proc/self/exe", rootfs.join("app")).unwrap();
        let process = ImageProcess {
            args: ["/app", PROGRAM, "show"].map(str::to_owned).to_vec(),
            env: vec!["MODE=image".into()],
            cwd: "/srv".into(),
            user: "12:34".into(),
        };
        Ok(PulledImage { digest: image.digest.clone(), rootfs, process })
    }

    async fn release(&self, bundle: &Path) {
        let _ = std::fs::remove_dir_all(bundle.join("rootfs"));
    }
}

/// An agent and its client.
struct Lab {
    _folder: tempfile::TempDir,
    root: PathBuf,
    images: Arc<SelfImage>,
    agent: AgentServiceClient,
    events: tokio::sync::broadcast::Receiver<AgentEvent>,
}

impl Lab {
    async fn start(name: &str) -> Self {
        Self::start_with(name, |_, _| {}).await
    }

    async fn start_with(name: &str, change: impl FnOnce(&Path, &mut CreateSandboxRequest)) -> Self {
        println!("containers: story {name}");
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let images = Arc::new(SelfImage::default());
        let rules = [
            "CreateSandbox",
            "DestroySandbox",
            "CreateContainer",
            "StartContainer",
            "RemoveContainer",
            "ExecProcess",
            "SignalProcess",
            "WaitProcess",
            "ReadStream",
            "WriteStream",
            "CloseStdin",
            "TtyWinResize",
            "CopyFile",
            "StatsContainer",
            "PauseContainer",
            "ResumeContainer",
            "GetDiagnosticData",
        ]
        .map(|rule| format!("{rule}Request := true\n"));
        let agent = Arc::new(
            Agent::new(AgentConfig {
                policy: Policy::parse(&format!("package agent_policy\n{}", rules.concat())).unwrap(),
                images: images.clone(),
                secrets: None,
                helper: "/proc/self/exe".into(),
                root: root.clone(),
                resolv_conf: None,
                drivers: tokio::sync::watch::channel(true).1,
                version: "test".into(),
            })
            .unwrap(),
        );
        let mut events = agent.events();
        let address = format!("unix://{}/agent.sock", folder.path().display());
        tokio::spawn({
            let address = address.clone();
            async move { agent.serve(&address).await.unwrap() }
        });
        assert_eq!(events.recv().await.unwrap(), AgentEvent::Listening);
        let agent = AgentServiceClient::new(ttrpc::r#async::Client::connect(&address).await.unwrap());
        let mut sandbox =
            CreateSandboxRequest { hostname: "pod-1".into(), dns: vec!["10.0.0.10".into()], ..Default::default() };
        change(&root, &mut sandbox);
        agent.create_sandbox(context::with_timeout(0), &sandbox).await.unwrap();
        Self { _folder: folder, root, images, agent, events }
    }

    async fn expect(&mut self, event: AgentEvent) {
        while self.events.recv().await.unwrap() != event {}
    }

    fn request(&self, id: &str, args: &[&str]) -> CreateContainerRequest {
        let process = oci::Process { Args: args.iter().map(ToString::to_string).collect(), ..Default::default() };
        CreateContainerRequest {
            container_id: id.into(),
            exec_id: id.into(),
            storages: vec![Storage {
                driver: "image_guest_pull".into(),
                source: "registry/self:1".into(),
                mount_point: self.root.join(id).join("rootfs").to_str().unwrap().into(),
                ..Default::default()
            }],
            OCI: MessageField::some(oci::Spec { Process: MessageField::some(process), ..Default::default() }),
            ..Default::default()
        }
    }

    async fn create(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut CreateContainerRequest),
    ) -> ttrpc::Result<()> {
        let mut request = self.request(id, args);
        change(&mut request);
        self.agent.create_container(context::with_timeout(0), &request).await.map(drop)
    }

    async fn start_container(&self, id: &str) -> ttrpc::Result<()> {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent.start_container(context::with_timeout(0), &request).await.map(drop)
    }

    async fn exec(&self, id: &str, exec: &str, args: &[&str], terminal: bool) -> ttrpc::Result<()> {
        let args = args.iter().map(ToString::to_string).collect();
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: MessageField::some(oci::Process { Args: args, Terminal: terminal, ..Default::default() }),
            ..Default::default()
        };
        self.agent.exec_process(context::with_timeout(0), &request).await.map(drop)
    }

    async fn signal(&self, id: &str, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request =
            SignalProcessRequest { container_id: id.into(), exec_id: exec.into(), signal, ..Default::default() };
        self.agent.signal_process(context::with_timeout(0), &request).await.map(drop)
    }

    async fn wait(&self, id: &str, exec: &str) -> i32 {
        let request = WaitProcessRequest { container_id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.agent.wait_process(context::with_timeout(0), &request).await.unwrap().status
    }

    async fn copy(&self, path: &str, mode: u32, data: &[u8]) {
        self.part(path, mode, data.len(), 0, data).await;
    }

    async fn part(&self, path: &str, mode: u32, size: usize, offset: usize, data: &[u8]) {
        let request = CopyFileRequest {
            path: self.root.join("shared/containers").join(path).to_str().unwrap().into(),
            file_mode: mode,
            dir_mode: 0o755,
            file_size: size.try_into().unwrap(),
            offset: offset.try_into().unwrap(),
            data: data.into(),
            ..Default::default()
        };
        self.agent.copy_file(context::with_timeout(0), &request).await.unwrap();
    }

    async fn write(&self, id: &str, exec: &str, data: &[u8]) {
        let request = WriteStreamRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            data: data.into(),
            ..Default::default()
        };
        assert_eq!(self.agent.write_stdin(context::with_timeout(0), &request).await.unwrap().len as usize, data.len());
    }

    async fn read(&self, id: &str, exec: &str) -> String {
        let request =
            ReadStreamRequest { container_id: id.into(), exec_id: exec.into(), len: 4096, ..Default::default() };
        String::from_utf8(self.agent.read_stdout(context::with_timeout(0), &request).await.unwrap().data).unwrap()
    }

    async fn read_all(&self, id: &str, exec: &str) -> String {
        let mut text = String::new();
        loop {
            match self.read(id, exec).await {
                part if part.is_empty() => return text,
                part => text.push_str(&part),
            }
        }
    }

    async fn remove(&self, id: &str, timeout: u32) -> ttrpc::Result<()> {
        let request = RemoveContainerRequest { container_id: id.into(), timeout, ..Default::default() };
        self.agent.remove_container(context::with_timeout(0), &request).await.map(drop)
    }

    #[track_caller]
    fn assert_clean(&self, id: &str) {
        for path in
            [self.root.join(id), self.root.join(".state").join(id), Path::new("/sys/fs/cgroup/containers").join(id)]
        {
            assert!(!path.exists(), "{} is left", path.display());
        }
    }

    /// Ends the pod, after which nothing may be left.
    async fn end(mut self) {
        self.agent.destroy_sandbox(context::with_timeout(0), &DestroySandboxRequest::new()).await.unwrap();
        self.expect(AgentEvent::SandboxDestroyed).await;
        let left: Vec<_> = std::fs::read_dir(&self.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| name == ".state"), "{left:?}");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.root.to_str().unwrap()), "{mounts}");
    }
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other:?}"),
    }
}

const PROGRAM: &str = "program";
const GUEST: &str = "guest";
const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
/// For all stories together, on a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);
