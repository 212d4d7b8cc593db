//! Measures what confidential pods cost under containerd, against bare boots of the same kernel and ordinary pods of runc in
//! the same run.
//!
//! Prints JSON, and a table by standard error. Whatever it started ends with it, also when it is interrupted.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod channel;
mod report;
mod samples;
mod served;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::future::join_all;
use serde_json::Value;
use tests::node::{Cocoon, Container, Containerd, Node, Pod, PodSpec, Snapshotter};
use tests::{BareMachine, Image, InitDataFiles, Lab, example_policy};
use tokio::signal::unix::{SignalKind, signal};
use tonic::Status;

use channel::Channel;
use report::Report;
use samples::Samples;
use served::Served;

/// Measures confidential pods under containerd.
#[derive(Parser)]
struct Arguments {
    /// How often each thing is measured; medians count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The folder with a release's programs, of which the shim is measured; by default the one that was built for tests.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// What the benchmark of the guest's policy printed.
    // As a value of JSON by itself the text would be a string.
    #[arg(long, value_parser = |text: &str| serde_json::from_str::<Value>(text))]
    policy: Option<Value>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tokio::select! {
        report = measure(arguments) => {
            eprintln!("{report}");
            println!("{}", serde_json::to_string_pretty(&report.json()).unwrap());
            ExitCode::SUCCESS
        }
        // What was started is dropped, and so ends.
        () = interrupted() => {
            eprintln!("interrupted: nothing is measured");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: Arguments) -> Report {
    let lab = Lab::new();
    let bare = BareMachine::new(&lab);
    let registry = lab.registry();
    let image = |name: &str| registry.push(Image::busybox(&lab, name, SLEEP).layout(), name);
    let (app, ordinary) = (image(APP), image("ordinary"));
    let files = InitDataFiles::without_trustee(example_policy("debug", &app), &registry);
    let initdata = files.annotation(&lab, "initdata");
    let mut cocoon = Cocoon::new().with_snapshotter();
    if let Some(folder) = &arguments.programs {
        cocoon = cocoon.with_programs(folder);
    }
    let node = Node::start(&lab, &registry, Containerd::V1, Some(&cocoon)).await;
    let node = node.unwrap_or_else(|cause| panic!("there can't be a node: {cause}"));
    let snapshotter = Snapshotter::start(&node);
    snapshotter.pull(&app).await;
    node.pull(&ordinary).await;
    let bench = Bench { node: &node, app, ordinary, initdata };

    // In turn, so that a drift of the machine's speed meets all.
    let mut samples = Samples::default();
    let mut served = Vec::from([Served::so_far(&registry, APP)]);
    for round in 1..=arguments.rounds {
        samples.add("bare_boot_ms", samples::milliseconds(bare.boot().await));
        bench.confidential(&mut samples).await;
        served.push(Served::so_far(&registry, APP));
        bench.ordinary(&mut samples).await;
        eprintln!("round {round} of {}", arguments.rounds);
    }
    let (running, all_at_once) = bench.all_at_once().await;
    served.push(Served::so_far(&registry, APP));
    let left = node.leftovers().await;
    assert!(left.is_empty(), "pods have left {left:?}");

    Report {
        rounds: arguments.rounds,
        samples,
        for_pull: served[0],
        for_first_pod: served[1].since(served[0]),
        for_later_pods: served.last().unwrap().since(served[1]),
        running,
        all_at_once,
        policy: arguments.policy,
    }
}

/// Waits for the wish that this ends.
async fn interrupted() {
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

struct Bench<'a> {
    node: &'a Node,
    /// What confidential pods run, and what ordinary ones run.
    app: String,
    ordinary: String,
    initdata: String,
}

impl Bench<'_> {
    /// A confidential pod with two containers, the second of which finds its image in the guest.
    async fn confidential(&self, samples: &mut Samples) {
        let pod = samples.time("pod_ms", self.pod("confidential").run()).await;
        let first = samples.time("first_container_ms", container(&pod, "first", &self.app)).await;
        let second = samples.time("next_container_ms", container(&pod, "second", &self.app)).await;
        assert!(first.is_running().await && second.is_running().await);

        let channel = Channel::open(&self.node.path(&format!("/run/cocoon/{}", pod.id()))).await;
        for _ in 0..COMMANDS {
            samples.time("exec_ms", run_true(&first)).await;
            samples.time("round_trip_ms", channel.round_trip()).await;
        }
        samples.add("guest_fork_and_exec_ms", fork_and_exec(&first).await);
        self.shim_memory(samples);
        drop(channel);
        pod.remove().await;
    }

    /// The same with containerd's ordinary runtime, on the node itself.
    async fn ordinary(&self, samples: &mut Samples) {
        let pod = samples.time("runc_pod_ms", self.node.pod("ordinary").run()).await;
        let _first = samples.time("runc_container_ms", container(&pod, "first", &self.ordinary)).await;
        let second = samples.time("runc_container_ms", container(&pod, "second", &self.ordinary)).await;
        for _ in 0..COMMANDS {
            samples.time("runc_exec_ms", run_true(&second)).await;
        }
        pod.remove().await;
    }

    /// How many of [`POD_COUNT`] pods asked for at the same time run a container, and when the last one did.
    async fn all_at_once(&self) -> (usize, Duration) {
        let start = Instant::now();
        let pods = join_all((0..POD_COUNT).map(|number| async move {
            let pod = self.pod(&format!("pod-{number}")).try_run().await?;
            let runs = self.try_container(&pod).await;
            Ok::<_, Status>((pod, runs))
        }))
        .await;
        let wall = start.elapsed();
        let mut running = 0;
        for pod in pods {
            let runs = match pod {
                Ok((pod, runs)) => {
                    pod.remove().await;
                    runs
                }
                Err(status) => Err(status),
            };
            match runs {
                Ok(runs) => running += usize::from(runs),
                Err(status) => eprintln!("a pod does not run: {}", status.message()),
            }
        }
        (running, wall)
    }

    async fn try_container(&self, pod: &Pod<'_>) -> Result<bool, Status> {
        let app = pod.container("app", &self.app).script(SLEEP).create().await?;
        app.start().await?;
        Ok(app.is_running().await)
    }

    fn pod(&self, name: &str) -> PodSpec<'_> {
        self.node.pod(name).handler("cocoon").annotation(INITDATA, &self.initdata)
    }

    /// What the one shim holds, all of it and what is not pages of its program's file.
    fn shim_memory(&self, samples: &mut Samples) {
        let shims = self.node.processes("containerd-shim-cocoon-v2");
        let [shim] = &shims[..] else { panic!("one pod has one shim: {shims:?}") };
        let status = fs::read_to_string(format!("/proc/{}/status", shim.pid)).unwrap();
        for (name, field) in [("shim_resident_mb", "VmRSS:"), ("shim_private_mb", "RssAnon:")] {
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
            samples.add(name, kib / 1024.0);
        }
    }
}

/// Creates and starts a container that does nothing.
async fn container<'a>(pod: &'a Pod<'a>, name: &str, image: &str) -> Container<'a> {
    pod.container(name, image).script(SLEEP).start().await
}

async fn run_true(container: &Container<'_>) {
    assert_eq!(container.exec(&["/bin/busybox", "true"]).await.code, 0);
}

/// What a shell in the container needs to run one program: a process that is forked, becomes the program, and ends.
async fn fork_and_exec(container: &Container<'_>) -> f64 {
    let time = async |count: u32| {
        let script = format!("i=0; while [ $i -lt {count} ]; do /bin/busybox true; i=$((i+1)); done");
        let start = Instant::now();
        assert_eq!(container.exec(&["/bin/sh", "-c", &script]).await.code, 0);
        samples::milliseconds(start.elapsed())
    };
    let nothing = time(0).await;
    (time(FORKS).await - nothing) / f64::from(FORKS)
}

const APP: &str = "app";
const SLEEP: &str = "exec sleep 3600";
/// The annotation with which an owner's initdata travels.
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// Commands of each kind in a round.
const COMMANDS: usize = 10;
const FORKS: u32 = 20;
const POD_COUNT: usize = 10;
