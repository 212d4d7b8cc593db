//! Measures what a guest costs: time to the first answer as a ratio of a bare boot, memory, and sizes.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use guest_image::{BuildOptions, GuestImage, KernelSource};
use hypervisor::acceleration::{self, Preference};
use hypervisor::{Confinement, Disk, Network, Tee, Vm, VmConfig, Vsock};
use sandbox::{Event, GuestFiles, Sandbox, SandboxConfig, SandboxName};
use serde_json::json;
use tests::{Image, InitDataFiles, Lab, Pod, agent_policy};
use tokio::time::Instant;
use wire::initdata::InitData;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let lab = Lab::new();
    let image = GuestImage::open(&Lab::guest_image()).unwrap();
    let bare = bare_image(&lab);

    // In turn, so that a drift of the machine's speed meets both.
    let (mut bare_times, mut guest_times, mut kernel_times) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        bare_times.push(bare_boot(&lab, &bare).await);
        let sandbox = boot(&image, 256).await;
        guest_times.push(sandbox.timeline().at(Event::FirstAnswer).unwrap());
        kernel_times.push(sandbox.timeline().at(Event::Kernel).unwrap());
        sandbox.stop().await;
        eprintln!("round {} of {ROUNDS}: bare {:?}, guest {:?}", round + 1, bare_times[round], guest_times[round]);
    }
    let ratios: Vec<f64> =
        guest_times.iter().zip(&bare_times).map(|(g, b)| g.as_secs_f64() / b.as_secs_f64()).collect();

    let small = boot(&image, SMALLEST).await;
    let guest_memory = resident_in_guest(&small).await;
    small.stop().await;
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

/// The same kernel, modules and layout, with an init that only prints.
fn bare_image(lab: &Lab) -> GuestImage {
    let cache = Lab::guest_image().with_file_name("cache");
    let options = BuildOptions {
        guestd: Lab::program("bare-init"),
        kernel: KernelSource::Debian,
        cache,
        output: lab.path().join("bare"),
    };
    guest_image::build(&options).unwrap()
}

async fn bare_boot(lab: &Lab, image: &GuestImage) -> Duration {
    // The back end has to be there, since the machine is the same.
    let config = vsock_backend::BackendConfig {
        socket: lab.path().join("vhost.sock"),
        uds: lab.path().join("vsock.sock"),
        guest_cid: 3,
    };
    let _backend = vsock_backend::Backend::start(config).unwrap();
    let acceleration = acceleration::probe(Preference::Auto).await.unwrap();
    let start = Instant::now();
    let vm = Vm::launch(VmConfig {
        name: "bare".to_owned(),
        kernel: image.kernel.clone(),
        initramfs: image.initramfs.clone(),
        command_line: guest_image::COMMAND_LINE.to_owned(),
        memory_mib: 256,
        vcpus: 1,
        acceleration,
        vsock: Vsock::UserBackend { socket: lab.path().join("vhost.sock") },
        disks: vec![Disk { path: lab.file("disk", [0; 512]), serial: "initdata".to_owned(), read_only: true }],
        network: Network::User,
        qmp_socket: lab.path().join("qmp.sock"),
        bios: hypervisor::qboot(),
        tee: Tee::None,
        initdata_digest: None,
        confinement: Confinement::default(),
    })
    .await
    .unwrap();
    let line = vm.console().wait_for(|line| line.contains("bare init runs"), start + LIMIT).await.expect("a bare boot");
    let time = line.at - start;
    vm.stop(LIMIT).await;
    time
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
