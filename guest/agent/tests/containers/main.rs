//! Real containers, in namespaces of their own: needs root, and a kernel with control groups of version 2.
//!
//! This program is its own container image: it is linked statically, so that it runs in an empty root file system.
//! It plays four parts: the test that `cargo test` starts, the guest's first process in a fresh process namespace,
//! the agent's helper, and the program of the containers.

#![allow(clippy::unwrap_used)]

mod commands;
mod lab;
mod pods;

use std::fs::OpenOptions;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use agent::{AgentEvent, HELPER_ARG, run_helper};
use protobuf::MessageField;
use ttrpc::{Code, context};
use wire_ttrpc::agent::*;
use wire_ttrpc::oci;

use commands::*;
use lab::{DIGEST, Lab, refusal};
use pods::*;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let part = args.next().unwrap_or_default();
    match part.to_str() {
        Some(HELPER_ARG) => ExitCode::from(run_helper()),
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
            a_command_is_confined_as_its_container_is().await;
            a_command_is_never_seen_with_more_than_its_container_has().await;
            a_terminal_has_a_size_and_one_stream().await;
            whoever_a_program_runs_as_can_open_its_streams_again().await;
            commands_that_have_ended_hold_few_descriptors().await;
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
            let status = std::fs::read_to_string("/proc/1/status").unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
            let rights = ["Name:", "Uid:", "CapPrm:", "NoNewPrivs:"].map(|name| field(name).unwrap());
            println!("rights {}", rights.join(" "));
            println!("root {:?}", std::fs::read_dir("/proc/1/root").map(Iterator::count).map_err(|e| e.kind()));
            let note = Path::new("/dev/shm/note");
            println!("note {}", std::fs::read_to_string(note).unwrap_or_default());
            std::fs::write(note, "left by another").unwrap();
            std::fs::write("/dev/termination-log", "why it ended").unwrap();
            ExitCode::SUCCESS
        }
        ["confinement", rest @ ..] => {
            print!("{}", confinement());
            std::io::stdout().flush().unwrap();
            while !rest.is_empty() {
                std::thread::park();
            }
            ExitCode::SUCCESS
        }
        ["watch"] => {
            print!("{}", watch());
            ExitCode::SUCCESS
        }
        ["reopen"] => {
            for (path, text) in [("/dev/stdout", "out"), ("/dev/stderr", "err"), ("/proc/self/fd/1", "again")] {
                let mut stream = OpenOptions::new().write(true).open(path).unwrap();
                writeln!(stream, "{text} as {}", rustix::process::geteuid().as_raw()).unwrap();
            }
            OpenOptions::new().read(true).open("/dev/stdin").unwrap();
            println!("home {}", std::env::var("HOME").unwrap());
            std::io::stdout().flush().unwrap();
            loop {
                std::thread::park();
            }
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

/// What any process here has that this one has not, until standard input ends.
fn watch() -> String {
    let reading = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let has = |process: &str| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let rights = status.lines().find_map(|line| line.strip_prefix("CapPrm:"))?;
        let root = std::fs::metadata(format!("/proc/{process}/root")).ok();
        let root =
            root.map(|root| (std::os::unix::fs::MetadataExt::dev(&root), std::os::unix::fs::MetadataExt::ino(&root)));
        Some((u64::from_str_radix(rights.trim(), 16).unwrap(), root))
    };
    let (rights, root) = has("self").unwrap();
    println!("here");
    std::io::stdout().flush().unwrap();
    let (mut others, mut found) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    while !reading.is_finished() {
        for entry in std::fs::read_dir("/proc").unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.parse() == Ok(std::process::id()) || !name.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let Some((its_rights, its_root)) = has(&name) else { continue };
            others.insert(name);
            if its_rights & !rights != 0 || its_root.is_some_and(|its| Some(its) != root) {
                found.insert(format!("{its_rights:x} {its_root:?}"));
            }
        }
    }
    format!("others {} found {found:?}\n", !others.is_empty())
}

/// All that a process may and has.
fn confinement() -> String {
    let read = |file: &str| std::fs::read_to_string(Path::new("/proc/self").join(file)).unwrap();
    let namespaces = ["cgroup", "ipc", "mnt", "net", "pid", "uts", "user"]
        .map(|name| format!("{}\n", std::fs::read_link(Path::new("/proc/self/ns").join(name)).unwrap().display()));
    let fields = ["Uid:", "Gid:", "Groups:", "Cap", "NoNewPrivs:", "Seccomp:", "Umask:", "SigBlk:"];
    let status: Vec<String> = read("status")
        .lines()
        .filter(|line| fields.iter().any(|field| line.starts_with(field)))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut descriptors: Vec<_> =
        std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    descriptors.sort();
    let mut variables: Vec<_> = std::env::vars().collect();
    variables.sort();
    let leads_its_session = rustix::process::getsid(None).unwrap() == rustix::process::getpid();
    format!(
        "{}{}{}{descriptors:?}\n{variables:?}\n{:?} {leads_its_session}\n",
        namespaces.concat(),
        status.concat(),
        ["cgroup", "limits", "oom_score_adj", "mountinfo"].map(read).concat(),
        std::env::current_dir().unwrap(),
    )
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

const PROGRAM: &str = "program";
const GUEST: &str = "guest";
/// For all stories together, on a slow machine.
const DEADLINE: Duration = Duration::from_secs(120);
