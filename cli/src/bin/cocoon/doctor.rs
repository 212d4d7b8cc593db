//! `cocoon doctor`: why pods don't start or don't run, from the node down to a pod's last failure.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use management::{Failure, Failures, Identity, State, Trouble};
use node_install::{Finding, Node, Pod, Verdict};
use sandbox::{Agent, SandboxName};
use serde::Serialize;
use tokio::time::timeout;

use crate::pods::{Known, all, label, meant, title};
use crate::{Outcome, node};

#[derive(Args)]
pub struct Arguments {
    /// The pod: its id, the beginning of that, or namespace/name; also one that is gone. All of this node if left out.
    pod: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    node: Vec<Finding>,
    pods: Vec<Examined>,
    /// The last failures on this node, oldest first.
    failures: Vec<Failure>,
}

/// What was found about a pod.
#[derive(Serialize)]
struct Examined {
    pod: Identity,
    findings: Vec<Finding>,
}

/// Examines node and pods. Fails if anything keeps pods from running, or if the pod that was asked for did not run.
pub async fn doctor(arguments: Arguments) -> Outcome {
    let word = arguments.pod.as_deref();
    let mut report = Report { node: Node::at(Path::new("/")).check().await, pods: Vec::new(), failures: Vec::new() };
    for pod in word.map_or_else(all, meant)? {
        report.pods.push(Examined::of(&pod).await);
    }
    report.failures = Failures::of_node().all()?;
    if let Some(word) = word {
        report.failures.retain(|failure| failure.pod.is_meant_by(word));
        if report.pods.is_empty() && report.failures.is_empty() {
            return Err(format!(
                "doctor: nothing is known of {word}; next: see \"cocoon ps\"; the last 32 failures are kept"
            )
            .into());
        }
    }
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    let findings = report.node.iter().chain(report.pods.iter().flat_map(|pod| &pod.findings));
    let failed = findings.into_iter().any(|finding| finding.verdict == Verdict::Failure);
    let lost = word.is_some() && !report.failures.is_empty();
    Ok(if failed || lost { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Report {
    fn print(&self) {
        println!("NODE");
        node::show_findings(&self.node);
        for Examined { pod, findings } in &self.pods {
            println!("\nPOD {}", title(pod));
            node::show_findings(findings);
        }
        for Failure { pod, trouble, timeline, console } in &self.failures {
            println!("\nFAILED {} {}: {}", trouble.at, title(pod), trouble.request);
            show_trouble(trouble);
            if let Some(last) = timeline.last() {
                println!("         it came to \"{}\", {:.1} s after it began", last.event, last.seconds);
            }
            // The rest is in the JSON.
            for line in console.iter().skip(console.len().saturating_sub(CONSOLE)) {
                println!("         console: {line}");
            }
        }
    }
}

fn show_trouble(trouble: &Trouble) {
    let (cause, next) = trouble.error.rsplit_once("; next: ").unwrap_or((&trouble.error, ""));
    let container =
        if trouble.container.is_empty() { String::new() } else { format!("container {}: ", trouble.container) };
    println!("         {container}{cause}");
    if !next.is_empty() {
        println!("         next: {next}");
    }
}

impl Examined {
    async fn of(pod: &Pod) -> Self {
        let identity = pod.identity.clone();
        let identity = identity.unwrap_or_else(|| Identity { id: pod.name.clone(), ..Identity::default() });
        let mut findings = Vec::new();
        match &pod.owner {
            Some(owner) if pod.elsewhere && is_cleaning_up(owner.pid) => {
                let found =
                    format!("its shim was killed; process {} waits to end the pod's machine elsewhere", owner.pid);
                findings.push(Finding::failure("owner", found, "start the adaptor"));
                return Self { pod: identity, findings };
            }
            Some(owner) => findings.push(Finding::good("owner", format!("process {}, {}", owner.pid, owner.program))),
            None if pod.elsewhere => {
                let found = "it is gone, and the pod's machine elsewhere is not ended yet".to_owned();
                let next = format!("start the adaptor; \"containerd-shim-cocoon-v2 -id {} clean-up\"", pod.name);
                findings.push(Finding::failure("owner", found, &next));
                return Self { pod: identity, findings };
            }
            None => {
                let found = "it is gone: its shim was killed, and the pod's machine with it".to_owned();
                findings.push(Finding::failure("owner", found, "delete the pod: containerd removes what is left"));
                return Self { pod: identity, findings };
            }
        }
        let state = async { Known::of(pod)?.state().await };
        let state = match state.await {
            Ok(state) => state,
            Err(error) => {
                let next = "if this lasts, kill its owner: the pod ends, and can be deleted";
                findings.push(Finding::of(Verdict::Failure, "answers", &error, next));
                State::default()
            }
        };
        findings.extend(machine(pod, &state));
        findings.push(boot(&state));
        if (pod.machine.is_some() || pod.elsewhere) && state.ended.is_none() {
            findings.push(guest(&pod.name).await);
        }
        findings.push(initdata(&identity));
        findings.extend(pod.machine.map(|machine| memory(&identity, machine)));
        findings.extend(containers(&state));
        findings.extend(troubles(&state));
        Self { pod: identity, findings }
    }
}

/// Whether a shim's process only ends what another has left.
fn is_cleaning_up(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"clean-up"))
}

fn machine(pod: &Pod, state: &State) -> Option<Finding> {
    let name = "machine";
    if let Some(reason) = &state.ended {
        return Some(Finding::failure(name, format!("it has ended: {reason}"), "delete the pod"));
    }
    if pod.elsewhere {
        return Some(Finding::good(name, "it is elsewhere, made by an adaptor".to_owned()));
    }
    let pid = pod.machine?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stopped = stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with(['T', 't']));
    Some(match stopped {
        true => {
            let next = format!("kill -CONT {pid}, unless somebody has a reason");
            Finding::failure(name, format!("process {pid} is stopped by a signal"), &next)
        }
        false => Finding::good(name, format!("process {pid}")),
    })
}

/// How far it came, and when.
fn boot(state: &State) -> Finding {
    let moments =
        state.timeline.iter().map(|it| format!("{} {:.2} s", it.event, it.seconds)).collect::<Vec<_>>().join(", ");
    match state.timeline.iter().any(|moment| moment.event == ANSWERED) {
        true => Finding::good("boot", moments),
        false => Finding::warning(
            "boot",
            format!("the guest is not up yet: {moments}"),
            "watch it with \"cocoon console --follow\"",
        ),
    }
}

async fn guest(name: &str) -> Finding {
    let begun = Instant::now();
    let ask = async {
        let agent = Agent::of_sandbox(&SandboxName::parse(name)?).await?;
        agent.check().await
    };
    let next = "see \"cocoon console\", and the load of the node";
    match timeout(ANSWER, ask).await {
        Ok(Ok(())) => Finding::good("guest", format!("it answers within {} ms", begun.elapsed().as_millis())),
        Ok(Err(error)) => Finding::of(Verdict::Failure, "guest", &error, next),
        Err(_) => Finding::failure("guest", format!("it does not answer within {} s", ANSWER.as_secs()), next),
    }
}

fn initdata(pod: &Identity) -> Finding {
    match &pod.initdata {
        Some(digest) => Finding::good("initdata", digest.clone()),
        None => Finding::warning(
            "initdata",
            "there is none: the guest has no policy and runs no container".to_owned(),
            "annotate the pod with io.katacontainers.config.hypervisor.cc_init_data",
        ),
    }
}

/// What the machine has, against what its cgroups let it have.
fn memory(pod: &Identity, machine: u32) -> Finding {
    let (process, _) = management::process(machine);
    let resident = process.resident.unwrap_or_default() >> 20;
    let groups = Groups::of(machine);
    let guest = u64::from(pod.memory_mib);
    let limit = groups.limit().map(|bytes| bytes >> 20);
    let within = limit.map_or("without a limit".to_owned(), |limit| format!("its cgroup's limit is {limit} MiB"));
    let found = format!("the machine has {resident} MiB for a guest of {guest} MiB, {within}");
    let next = "raise the overhead of the RuntimeClass, or the pod's limits";
    match limit {
        _ if groups.killed() > 0 => {
            Finding::failure("memory", format!("{found}; the kernel has killed in there for lack of it"), next)
        }
        Some(limit) if limit < guest => {
            Finding::warning("memory", format!("{found}: a guest that uses all of its memory is killed"), next)
        }
        _ => Finding::good("memory", found),
    }
}

/// The memory cgroups that a process is in, the innermost first.
struct Groups(Vec<PathBuf>);

impl Groups {
    fn of(pid: u32) -> Self {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let group = text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            match (parts.next()?, parts.next()?) {
                ("", path) => Some(("/sys/fs/cgroup", path)),
                (controllers, path) if controllers.split(',').any(|it| it == "memory") => {
                    Some(("/sys/fs/cgroup/memory", path))
                }
                _ => None,
            }
        });
        let Some((tree, path)) = group else { return Self(Vec::new()) };
        let inside = Path::new(path.trim_start_matches('/')).ancestors().filter(|it| !it.as_os_str().is_empty());
        Self(inside.map(|path| Path::new(tree).join(path)).collect())
    }

    /// Bytes: the least of all limits.
    fn limit(&self) -> Option<u64> {
        let limit = |group: &PathBuf| {
            let of = |name: &str| fs::read_to_string(group.join(name)).ok();
            of("memory.max").or_else(|| of("memory.limit_in_bytes"))?.trim().parse::<u64>().ok()
        };
        // The older hierarchy's word for none.
        self.0.iter().filter_map(limit).min().filter(|limit| *limit < 1 << 60)
    }

    /// How many processes the kernel has killed in the innermost for lack of memory.
    fn killed(&self) -> u64 {
        let count = |name: &str| {
            let text = fs::read_to_string(self.0.first()?.join(name)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        count("memory.events").or_else(|| count("memory.oom_control")).unwrap_or_default()
    }
}

fn containers(state: &State) -> Option<Finding> {
    let containers: Vec<_> = state.containers.iter().filter(|it| it.phase != "removed").collect();
    let words = containers.iter().map(|it| match it.exit_status {
        Some(status) => format!("{} {} with {status}", label(it), it.phase),
        None => format!("{} {}", label(it), it.phase),
    });
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| Finding::good("containers", words.join(", ")))
}

/// The last requests that failed: what the policy refused, and the rest.
fn troubles(state: &State) -> impl Iterator<Item = Finding> {
    state.troubles.iter().rev().take(TROUBLES).map(|trouble| {
        let what = if trouble.refused { "policy" } else { "request" };
        let container = if trouble.container.is_empty() { String::new() } else { format!(" of {}", trouble.container) };
        let text = format!("{} {}{container}: {}", trouble.at, trouble.request, trouble.error);
        let next = match trouble.refused {
            true => "allow it in the policy of the pod's initdata, if it is meant",
            false => "see containerd's log",
        };
        Finding::of(Verdict::Warning, what, &text, next)
    })
}

/// The point at which a guest has come up.
const ANSWERED: &str = "first answer";
const ANSWER: Duration = Duration::from_secs(5);
const CONSOLE: usize = 5;
const TROUBLES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_cgroups_of_a_process_are_those_around_it() {
        let paths = |text: &str| Groups::parse(text).0.iter().map(|it| it.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            paths("0::/kubepods/pod1/box\n"),
            ["/sys/fs/cgroup/kubepods/pod1/box", "/sys/fs/cgroup/kubepods/pod1", "/sys/fs/cgroup/kubepods"]
        );
        assert_eq!(paths("3:cpu,cpuacct:/a\n5:memory:/p\n"), ["/sys/fs/cgroup/memory/p"]);
        assert_eq!(paths(""), [""; 0]);
    }

    #[test]
    fn the_least_limit_and_the_kills_of_the_innermost_count() {
        let tree = tempfile::tempdir().unwrap();
        let inner = tree.path().join("pod/box");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        fs::write(tree.path().join("pod/memory.max"), "1048576\n").unwrap();
        let groups = Groups(vec![inner, tree.path().join("pod")]);
        assert_eq!((groups.limit(), groups.killed()), (Some(1 << 20), 2));
    }

    #[test]
    fn what_went_wrong_last_is_found_first() {
        let of = |error: &str, refused| Trouble { error: error.to_owned(), refused, ..Trouble::default() };
        let troubles_of = vec![of("old; next: x", false), of("a is blocked by policy", true)];
        let state = State { troubles: troubles_of, ..State::default() };
        let found: Vec<Finding> = troubles(&state).collect();
        assert_eq!((found[0].name.as_str(), found[1].name.as_str()), ("policy", "request"));
        assert_eq!(found[1].next.as_deref(), Some("x"));
        assert!(found[0].next.as_deref().unwrap().contains("policy of the pod's initdata"));
    }
}
