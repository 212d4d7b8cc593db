//! What an operator sees of confidential pods on a node: their state, output, console, metrics, and why one failed.

use std::fs;
use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use management::{Failure, Failures};
use tests::node::{Cocoon, Containerd};
use tests::{Lab, NewerDebian};

use crate::ground::{Ground, LIMIT, is_full, versions};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_into_a_pod_and_runs_commands_in_it() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("seen").run().await;
        let script = "echo hello; echo oops >&2; exec sleep 3600";
        let app =
            pod.container("app", &ground.image).script(script).env("COLOUR", "green").user(7, 8, &[]).start().await;
        app.said("oops", LIMIT).await;

        let listed = ground.cocoon(&["ps"], "");
        assert!(text(&listed.stdout).contains("default/seen") && text(&listed.stdout).contains(pod.id()), "{listed:?}");
        let logs = text(&ground.cocoon(&["logs", "default/seen"], "").stdout);
        assert!(logs.contains("hello\n") && logs.contains("oops\n"), "{logs}");
        let console = text(&ground.cocoon(&["console", &pod.id()[..12]], "").stdout);
        assert!(console.contains("cocoon: ready"), "{console}");

        // As the container's own user, with its environment; the status is the command's own.
        let script = "echo $COLOUR; id -u; cat; echo wrong >&2; exit 7";
        let executed = ground.cocoon(&["exec", "-i", "default/seen", "app", "--", "sh", "-c", script], "fed\n");
        assert_eq!(
            (text(&executed.stdout), text(&executed.stderr)),
            ("green\n7\nfed\n".to_owned(), "wrong\n".to_owned())
        );
        assert_eq!(executed.status.code(), Some(7));
        let terminal =
            ground.cocoon(&["exec", "-t", "default/seen", "--", "sh", "-c", "test -t 1 && echo a terminal"], "");
        assert_eq!(text(&terminal.stdout).trim(), "a terminal", "{}", text(&terminal.stderr));

        let examined = ground.doctor("default/seen");
        for (name, words) in
            [("guest", "answers"), ("boot", "first answer"), ("machine", "process"), ("containers", "app")]
        {
            let found = examined["pods"][0]["findings"].as_array().unwrap().iter().find(|it| it["name"] == name);
            let found = found.unwrap_or_else(|| panic!("no {name} in {examined}"));
            assert!(found["verdict"] == "good" && found["found"].as_str().unwrap().contains(words), "{found}");
        }
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_understands_all_families_of_a_node_s_pods() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let (one, other) = (ground.pod("one").run().await, ground.pod("other").run().await);
    one.container("app", &ground.image).start().await;

    let metrics = text(&ground.cocoon(&["metrics"], "").stdout);

    for family in FAMILIES {
        assert_eq!(metrics.matches(&format!("# TYPE {family} ")).count(), 1, "{family} in {metrics}");
    }
    for pod in ["one", "other"] {
        assert!(metrics.contains(&format!(",cri_name=\"{pod}\",cri_namespace=\"default\"")), "{pod} in {metrics}");
    }
    match NewerDebian::unpack("bookworm", &["prometheus"]) {
        Err(reason) => eprintln!("skipped: promtool can't be had: {reason}"),
        Ok(debian) => {
            let mut promtool = std::process::Command::new(debian.path().join("usr/bin/promtool"));
            let mut child =
                promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
            let checked = child.wait_with_output().unwrap();
            // 3 means that it has its own opinion about names, which are Kata's.
            assert!(matches!(checked.status.code(), Some(0 | 3)), "{}", text(&checked.stderr));
        }
    }
    one.remove().await;
    other.remove().await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_pod_failed_is_known_when_it_is_gone() {
    let Some(ground) = Ground::with(Containerd::V1, "strict").await else { return };
    let pod = ground.pod("strict").run().await;
    let other = pod.container("app", &ground.image).script("echo never").create().await.unwrap();
    let refused = other.start().await.unwrap_err();
    let other = other.id().to_owned();
    let examined = ground.doctor("default/strict");
    let policy = examined["pods"][0]["findings"].as_array().unwrap().iter().find(|it| it["name"] == "policy").unwrap();
    assert!(policy["found"].as_str().unwrap().contains("CreateContainerRequest is blocked by policy"), "{policy}");
    // Its numbers stay inside, and so does what commands would say.
    assert!(!text(&ground.cocoon(&["metrics", "default/strict"], "").stdout).contains("kata_guest_"));
    assert!(text(&ground.cocoon(&["console", "default/strict"], "").stdout).contains("cocoon: ready"));
    pod.remove().await;

    let broken = ground.lab.file("initramfs", "no archive");
    let configuration = ground.node.path("/etc/cocoon/configuration.toml");
    let settings = fs::read_to_string(&configuration).unwrap();
    let initrd = settings.lines().find(|line| line.starts_with("initrd")).unwrap();
    fs::write(&configuration, settings.replace(initrd, &format!("initrd = {:?}", broken.to_str().unwrap()))).unwrap();
    let panicked = ground.pod("broken").try_run().await.err().unwrap();

    let [first, second] = &ground.failures()[..] else { panic!("{:?}", ground.failures()) };
    assert_eq!(
        (first.pod.full_name().unwrap(), &*first.trouble.container),
        ("default/strict".to_owned(), other.as_str())
    );
    assert!(first.trouble.refused && refused.message().contains(&first.trouble.error), "{first:?}");
    assert_eq!(second.pod.full_name().unwrap(), "default/broken");
    assert!(panicked.message().contains(&second.trouble.error), "{second:?}");
    assert!(second.console.iter().any(|line| line.contains("Unable to mount root fs")), "{second:?}");
    assert!(second.timeline.iter().any(|moment| moment.event == "VMM start"), "{second:?}");
    let told = ground.cocoon(&["doctor", "default/broken"], "");
    assert!(text(&told.stdout).contains("kernel panic: VFS") && text(&told.stdout).contains("next:"), "{told:?}");
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_guest_hangs_ends_by_itself_and_says_so() {
    if !is_full() {
        return eprintln!("skipped: it takes two minutes of waiting; next: set COCOON_TEST_FULL=1");
    }
    let cocoon = Cocoon::new().with("agent.kata.health_check_request_timeout_ms", 3000);
    let Some(ground) = Ground::on(Containerd::V1, "debug", &cocoon).await else { return };
    let pod = ground.pod("hangs").run().await;
    let app = pod.container("app", &ground.image).script("exec sleep 3600").start().await;

    ground.node.freeze(&ground.node.processes("qemu-system")[0]);

    assert_ne!(app.ended(HANGS).await.exit_code, 0);
    pod.ended(LIMIT).await;
    let failures = ground.failures();
    assert!(failures[0].trouble.error.contains("is stopped by a signal"), "{failures:?}");
    pod.remove().await;
    ground.expect_clean().await;
}

impl Ground {
    /// `cocoon` on the node.
    fn cocoon(&self, words: &[&str], input: &str) -> Output {
        let mut command = self.node.command(Lab::program("cocoon"));
        let mut child =
            command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn doctor(&self, pod: &str) -> serde_json::Value {
        let found = self.cocoon(&["doctor", pod, "--json"], "");
        serde_json::from_slice(&found.stdout).unwrap_or_else(|error| panic!("{error}: {found:?}"))
    }

    fn failures(&self) -> Vec<Failure> {
        Failures::at(&self.node.path("/run/cocoon/.failures")).all().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Twice half a minute and the time for an answer, on a busy machine.
const HANGS: Duration = Duration::from_secs(240);
/// What Kata's components tell and ours do, too.
const FAMILIES: [&str; 48] = [
    "kata_agent_io_stat",
    "kata_agent_proc_stat",
    "kata_agent_proc_status",
    "kata_agent_process_cpu_seconds_total",
    "kata_agent_process_max_fds",
    "kata_agent_process_open_fds",
    "kata_agent_process_resident_memory_bytes",
    "kata_agent_process_start_time_seconds",
    "kata_agent_process_virtual_memory_bytes",
    "kata_agent_scrape_count",
    "kata_agent_total_rss",
    "kata_agent_total_time",
    "kata_agent_total_vm",
    "kata_agent_threads",
    "kata_guest_cpu_time",
    "kata_guest_diskstat",
    "kata_guest_load",
    "kata_guest_meminfo",
    "kata_guest_tasks",
    "kata_guest_vm_stat",
    "kata_guest_netdev_stat",
    "kata_guest_filesystem_bytes",
    "kata_guest_filesystem_inodes",
    "kata_hypervisor_fds",
    "kata_hypervisor_io_stat",
    "kata_hypervisor_netdev",
    "kata_hypervisor_proc_stat",
    "kata_hypervisor_proc_status",
    "kata_hypervisor_threads",
    "kata_shim_agent_rpc_durations_histogram_milliseconds",
    "kata_shim_rpc_durations_histogram_milliseconds",
    "kata_shim_fds",
    "kata_shim_io_stat",
    "kata_shim_pod_overhead_cpu",
    "kata_shim_pod_overhead_memory_in_bytes",
    "kata_shim_proc_stat",
    "kata_shim_proc_status",
    "kata_shim_process_cpu_seconds_total",
    "kata_shim_process_max_fds",
    "kata_shim_process_open_fds",
    "kata_shim_process_resident_memory_bytes",
    "kata_shim_process_start_time_seconds",
    "kata_shim_process_virtual_memory_bytes",
    "kata_shim_threads",
    "kata_monitor_running_shim_count",
    "kata_monitor_scrape_count",
    "kata_monitor_scrape_failed_count",
    "kata_monitor_scrape_durations_histogram_milliseconds",
];
