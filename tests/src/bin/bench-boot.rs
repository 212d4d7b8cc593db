//! Measures what a guest costs: time to the first answer as a ratio of a bare boot, memory, and sizes.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use guest_image::GuestImage;
use sandbox::{Event, GuestFiles, Sandbox, SandboxConfig, SandboxName};
use serde_json::json;
use tests::{BareMachine, Image, InitDataFiles, Lab, Pod, agent_policy};
use wire::initdata::InitData;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let lab = Lab::new();
    let image = GuestImage::open(&Lab::guest_image()).unwrap();
    let bare = BareMachine::new(&lab);

    // In turn, so that a drift of the machine's speed meets both.
    let (mut bare_times, mut guest_times, mut kernel_times) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bare_times.push(bare.boot().await);
        let sandbox = boot(&image, 256).await;
        guest_times.push(sandbox.timeline().at(Event::FirstAnswer).unwrap());
        kernel_times.push(sandbox.timeline().at(Event::Kernel).unwrap());
        sandbox.stop().await.unwrap();
        eprintln!("round {} of {ROUNDS}: bare {:?}, guest {:?}", round + 1, bare_times[round], guest_times[round]);
    }
    let ratios: Vec<f64> =
        guest_times.iter().zip(&bare_times).map(|(g, b)| g.as_secs_f64() / b.as_secs_f64()).collect();

    let small = boot(&image, SMALLEST).await;
    let guest_memory = resident_in_guest(&small).await;
    small.stop().await.unwrap();
    let host_memory = host_memory(&lab);

    let result = json!({
        "rounds": ROUNDS,
        "bare_boot_seconds": median(bare_times.iter().map(Duration::as_secs_f64)),
        "first_answer_seconds": median(guest_times.iter().map(Duration::as_secs_f64)),
        "kernel_up_seconds": median(kernel_times.iter().map(Duration::as_secs_f64)),
        "ratio_first_answer_to_bare_boot": median(ratios.iter().copied()),
        "smallest_guest_mb": SMALLEST,
        "guestd_resident_mb": guest_memory as f64 / 1024.0,
        "host_resident_mb_without_qemu": host_memory as f64 / 1024.0,
        "initramfs_mb": image.manifest.initramfs.size as f64 / 1e6,
    });
    println!("{}", serde_json::to_string_pretty(&result).unwrap());
}

async fn boot(image: &GuestImage, memory_mib: u32) -> Sandbox {
    let policy = agent_policy("image@sha256:00").replace("GuestDetailsRequest", "GetMetricsRequest");
    let text = format!(
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = {}\n",
        toml::Value::from(policy)
    );
    let name = SandboxName::parse(&format!("bench-{}", std::process::id())).unwrap();
    let guest = GuestFiles {
        kernel: image.kernel.clone(),
        initramfs: image.initramfs.clone(),
        command_line: guest_image::COMMAND_LINE.to_owned(),
    };
    let config = SandboxConfig {
        memory_mib,
        initdata: Some(InitData::parse(text).unwrap().into()),
        shm_size: 0,
        ..SandboxConfig::new(name, guest)
    };
    Sandbox::start(config).await.unwrap()
}

/// Resident memory of guestd in KiB, from its own metrics.
async fn resident_in_guest(sandbox: &Sandbox) -> u64 {
    let metrics = sandbox.agent().metrics().await.unwrap();
    let line = metrics.lines().find_map(|line| line.strip_prefix("kata_agent_process_resident_memory_bytes ")).unwrap();
    line.trim().parse::<f64>().unwrap() as u64 / 1024
}

/// Resident memory in KiB of `cocoon run` while its container runs; QEMU is a process of its own.
fn host_memory(lab: &Lab) -> u64 {
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(lab, "app", "echo up; exec sleep 3600").layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(lab, "initdata");
    let pod = Pod::run("bench-memory", &image, Some(&initdata), &["--memory", &SMALLEST.to_string()]);
    pod.process().wait_for("up", LIMIT);
    resident(pod.process().pid())
}

/// `VmRSS` of a process in KiB.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const ROUNDS: usize = 9;
/// Memory in MiB with which a guest must boot and a container must run; the benchmark fails if either does not.
const SMALLEST: u32 = 128;
const LIMIT: Duration = Duration::from_secs(60);
