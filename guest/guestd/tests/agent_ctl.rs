//! The agent as a process of its own, asked what upstream's `kata-agent-ctl` asks with its defaults, and what upstream's
//! tests of the agent's API ask with it.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use ttrpc::r#async::Client;
use ttrpc::{Code, context};
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::health::CheckRequest;
use wire_ttrpc::health_ttrpc::HealthClient;
use wire_ttrpc::oci;

/// Asks one after the other, and names the one whose answer is another.
macro_rules! expect {
    ($agent:expr, $($method:ident($request:expr) => $code:ident),+ $(,)?) => {
        $(assert_eq!(code($agent.$method(soon(), &$request).await), Code::$code, stringify!($method));)+
    };
}

#[tokio::test]
async fn every_command_of_agent_ctl_has_its_answer() {
    let Some(agent) = Agent::start(&everything(), Network::Own).await else { return };
    let (health, agent) = (&agent.health, &agent.client);
    assert_eq!(health.check(soon(), &CheckRequest::new()).await.unwrap().status.value(), 1);
    assert!(!health.version(soon(), &CheckRequest::new()).await.unwrap().agent_version.is_empty());

    // Without a sandbox and without any value.
    expect!(agent,
        get_guest_details(GuestDetailsRequest::new()) => OK,
        get_metrics(GetMetricsRequest::new()) => OK,
        list_interfaces(ListInterfacesRequest::new()) => OK,
        list_routes(ListRoutesRequest::new()) => OK,
        update_routes(UpdateRoutesRequest::new()) => OK,
        add_arp_neighbors(AddARPNeighborsRequest::new()) => OK,
        reseed_random_dev(ReseedRandomDevRequest::new()) => OK,
        online_cpu_mem(OnlineCPUMemRequest::new()) => OK,
        update_interface(UpdateInterfaceRequest::new()) => INVALID_ARGUMENT,
        get_volume_stats(VolumeStatsRequest::new()) => NOT_FOUND,
        add_swap(AddSwapRequest::new()) => FAILED_PRECONDITION,
        mem_agent_memcg_set(MemAgentMemcgConfig::new()) => UNIMPLEMENTED,
        mem_agent_compact_set(MemAgentCompactConfig::new()) => UNIMPLEMENTED,
        set_policy(SetPolicyRequest::new()) => INVALID_ARGUMENT,
        set_guest_date_time(SetGuestDateTimeRequest::new()) => PERMISSION_DENIED,
    );
    let details = GuestDetailsRequest { mem_block_size: true, mem_hotplug_probe: true, ..Default::default() };
    assert!(!agent.get_guest_details(soon(), &details).await.unwrap().agent_details.version.is_empty());

    // Containers by no name, which is what comes without values, and by one that agent-ctl makes up.
    let made_up = "abcdef0123456789".repeat(4);
    for (container_id, exec_id) in [(String::new(), String::new()), (made_up.clone(), made_up)] {
        let expected = if container_id.is_empty() { Code::INVALID_ARGUMENT } else { Code::NOT_FOUND };
        macro_rules! of_container {
            ($($method:ident($request:ident { $($field:ident),* })),+ $(,)?) => {
                $(
                    let request = $request { $($field: $field.clone(),)* ..Default::default() };
                    assert_eq!(code(agent.$method(soon(), &request).await), expected, stringify!($method));
                )+
            };
        }
        of_container!(
            start_container(StartContainerRequest { container_id }),
            remove_container(RemoveContainerRequest { container_id }),
            pause_container(PauseContainerRequest { container_id }),
            resume_container(ResumeContainerRequest { container_id }),
            stats_container(StatsContainerRequest { container_id }),
            update_container(UpdateContainerRequest { container_id }),
            exec_process(ExecProcessRequest { container_id, exec_id }),
            wait_process(WaitProcessRequest { container_id, exec_id }),
            read_stdout(ReadStreamRequest { container_id, exec_id }),
            read_stderr(ReadStreamRequest { container_id, exec_id }),
            write_stdin(WriteStreamRequest { container_id, exec_id }),
            close_stdin(CloseStdinRequest { container_id, exec_id }),
            tty_win_resize(TtyWinResizeRequest { container_id, exec_id }),
        );
        let kill = SignalProcessRequest { container_id, exec_id, signal: 9, ..Default::default() };
        assert_eq!(code(agent.signal_process(soon(), &kill).await), expected);
    }

    // It waits until memory runs out in a container, and so does not answer here.
    let waiting = tokio::spawn({
        let agent = agent.clone();
        async move { agent.get_oom_event(context::with_timeout(0), &GetOOMEventRequest::new()).await }
    });
    let sandbox = CreateSandboxRequest { sandbox_id: "12345".into(), ..Default::default() };
    expect!(agent,
        create_sandbox(sandbox) => OK,
        create_sandbox(CreateSandboxRequest::new()) => ALREADY_EXISTS,
        destroy_sandbox(DestroySandboxRequest::new()) => OK,
        destroy_sandbox(DestroySandboxRequest::new()) => OK,
    );
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test]
async fn upstreams_cases_of_the_agents_api_hold_where_the_guest_trusts_no_host() {
    let Some(agent) = Agent::start(&everything(), Network::Own).await else { return };
    let copy = |path: &str, mode: u32, data: &[u8]| CopyFileRequest {
        path: path.into(),
        file_size: if mode & 0o170_000 == 0o100_000 { data.len().try_into().unwrap() } else { 0 },
        file_mode: mode,
        // As agent-ctl has it: more bits than a mode has.
        dir_mode: 0o20_000_000_750,
        data: data.into(),
        ..Default::default()
    };
    let below = |name: &str| format!("/run/kata-containers/shared/containers/{name}");
    expect!(agent.client,
        copy_file(copy(&below("foo"), 0o100_600, b"")) => OK,
        copy_file(copy(&below("dir"), 0o040_700, b"")) => OK,
        copy_file(copy("/tmp/foo", 0o100_600, b"")) => INVALID_ARGUMENT,
        copy_file(copy("/run/kata-containers/shared/foo", 0o100_600, b"")) => INVALID_ARGUMENT,
        copy_file(copy("/run/kata-containers/foo", 0o100_600, b"")) => INVALID_ARGUMENT,
        // By design: what lies directly there is mounted by its name. Links lie in folders, as Kubernetes has them.
        copy_file(copy(&below("link"), 0o120_777, b"/tmp/tmp.1")) => INVALID_ARGUMENT,
        copy_file(copy(&below("dir/link"), 0o120_777, b"/tmp/tmp.1")) => OK,
    );
    let half = vec![0; 1 << 20];
    for offset in [0, 1 << 20] {
        let part = CopyFileRequest { offset, file_size: 2 << 20, ..copy(&below("large"), 0o100_644, &half) };
        assert_eq!(code(agent.client.copy_file(soon(), &part).await), Code::OK);
    }

    // By design: a root file system that the host has filled is run by no guest. agent-ctl mounts one, and names no image.
    let spec = oci::Spec {
        Root: Some(oci::Root { Path: "/tmp/bundle/rootfs".into(), ..Default::default() }).into(),
        ..Default::default()
    };
    let create = CreateContainerRequest {
        container_id: "test_container_1".into(),
        OCI: Some(spec).into(),
        ..Default::default()
    };
    let id = "test_container_1".to_owned();
    expect!(agent.client,
        create_sandbox(CreateSandboxRequest { sandbox_id: "12345".into(), ..Default::default() }) => OK,
        create_container(create) => INVALID_ARGUMENT,
        start_container(StartContainerRequest { container_id: id.clone(), ..Default::default() }) => NOT_FOUND,
        remove_container(RemoveContainerRequest { container_id: id, ..Default::default() }) => NOT_FOUND,
    );

    let policy = |policy: String| SetPolicyRequest { policy, ..Default::default() };
    expect!(agent.client,
        set_policy(policy(everything())) => OK,
        copy_file(copy(&below("foo"), 0o100_600, b"")) => OK,
        set_policy(policy(everything().replace("CopyFileRequest := true", "CopyFileRequest := false"))) => OK,
        copy_file(copy(&below("foo"), 0o100_600, b"")) => PERMISSION_DENIED,
        destroy_sandbox(DestroySandboxRequest::new()) => OK,
    );
}

#[tokio::test]
async fn it_listens_where_its_environment_says_and_refuses_everything_without_a_policy() {
    // As upstream's tests have it, by a name without a file.
    let Some(agent) = Agent::start("", Network::Hosts).await else { return };
    assert_eq!(agent.health.check(soon(), &CheckRequest::new()).await.unwrap().status.value(), 1);
    expect!(agent.client,
        get_guest_details(GuestDetailsRequest::new()) => OK,
        set_policy(SetPolicyRequest { policy: everything(), ..Default::default() }) => PERMISSION_DENIED,
        copy_file(CopyFileRequest::new()) => PERMISSION_DENIED,
        create_container(CreateContainerRequest::new()) => PERMISSION_DENIED,
    );
}

#[tokio::test]
async fn what_is_wrong_with_its_environment_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.rego");
    std::fs::write(&policy, "package other").unwrap();
    let run = async |arguments: &[&str], name: &str, value: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guestd"));
        let output = command.arg("kata-agent").args(arguments).env_clear().env(name, value).output().await.unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let file = "KATA_AGENT_POLICY_FILE";
    for (said, part) in [
        (run(&[], file, "/no/such/file").await, "/no/such/file"),
        (run(&[], file, policy.to_str().unwrap()).await, "package agent_policy"),
        (run(&[], "KATA_AGENT_LOG_LEVEL", "loud").await, "loud"),
        (run(&["--config", "x"], "A", "b").await, "no arguments"),
    ] {
        assert!(said.starts_with("kata-agent: ") && said.contains(part) && said.contains("next:"), "{said}");
    }
}

/// A policy that allows all that agent-ctl asks for, but to set the clock, which is the machine's own.
fn everything() -> String {
    let rules = [
        "AddARPNeighbors",
        "AddSwap",
        "CloseStdin",
        "CopyFile",
        "CreateContainer",
        "CreateSandbox",
        "DestroySandbox",
        "ExecProcess",
        "GetMetrics",
        "GetOOMEvent",
        "GuestDetails",
        "ListInterfaces",
        "ListRoutes",
        "OnlineCPUMem",
        "PauseContainer",
        "ReadStream",
        "RemoveContainer",
        "ReseedRandomDev",
        "ResumeContainer",
        "SetPolicy",
        "SignalProcess",
        "StartContainer",
        "StatsContainer",
        "TtyWinResize",
        "UpdateContainer",
        "UpdateInterface",
        "UpdateRoutes",
        "VolumeStats",
        "WaitProcess",
        "WriteStream",
    ];
    let rules = rules.map(|name| format!("default {name}Request := true\n")).concat();
    // As upstream's own policies have them, which are of an older Rego.
    format!(
        "package agent_policy\n\n{rules}default MemAgentMemcgConfig := true\ndefault MemAgentCompactConfig := true\n"
    )
}

enum Network {
    /// In which requests change nothing of the machine's.
    Own,
    /// In which a name without a file can be connected to from here.
    Hosts,
}

/// An agent with a `/run` of its own. It ends with this value.
struct Agent {
    _folder: tempfile::TempDir,
    process: Child,
    client: AgentServiceClient,
    health: HealthClient,
}

impl Agent {
    /// None where this user can't have one.
    async fn start(policy: &str, network: Network) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped, since namespaces take root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("policy.rego");
        let socket = folder.path().join("agent.sock").display().to_string();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).env_clear();
        let address = match network {
            Network::Own => {
                command.arg("--net");
                format!("unix://{socket}")
            }
            Network::Hosts => format!("unix://@{socket}"),
        };
        if !policy.is_empty() {
            std::fs::write(&file, policy).unwrap();
            command.env("KATA_AGENT_POLICY_FILE", file);
        }
        let program = folder.path().join("kata-agent");
        symlink(env!("CARGO_BIN_EXE_guestd"), &program).unwrap();
        command.args(["sh", "-c", "mount -t tmpfs run /run && \"$0\""]).arg(program).kill_on_drop(true);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("KATA_AGENT_SERVER_ADDR", &address).env("KATA_AGENT_LOG_LEVEL", "debug");
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let listens = async {
            while let Some(line) = log.next_line().await.unwrap() {
                if line.contains("listening") {
                    return;
                }
                eprintln!("{line}");
            }
            panic!("the agent ended");
        };
        tokio::time::timeout(DEADLINE, listens).await.expect("the agent listens");
        // Read on, or its log would block it.
        tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                eprintln!("{line}")
            }
        });
        let client = Client::connect(&address).await.unwrap();
        let (health, client) = (HealthClient::new(client.clone()), AgentServiceClient::new(client));
        Some(Self { _folder: folder, process, client, health })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(id) = self.process.id() {
            let _ = kill(Pid::from_raw(id.try_into().unwrap()), Signal::SIGKILL);
        }
    }
}

fn code<T>(answer: ttrpc::Result<T>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(other) => panic!("no status: {other:?}"),
    }
}

fn soon() -> ttrpc::context::Context {
    context::with_duration(DEADLINE)
}

const DEADLINE: Duration = Duration::from_secs(60);
