//! `cocoon run`: one pod from boot to the end of its container.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use guest_image::GuestImage;
use hypervisor::acceleration::Preference;
use sandbox::{Container, ContainerConfig, GuestFiles, Sandbox, SandboxConfig, SandboxName, Stream};
use tokio::signal::unix::{SignalKind, signal};

use crate::owner::Pod;
use crate::{Outcome, initdata};

#[derive(Args)]
pub struct Arguments {
    /// Name of the pod, for "cocoon exec".
    #[arg(long, default_value_t = format!("pod-{}", std::process::id()))]
    name: String,
    /// The owner's initdata, as "cocoon initdata build" writes it. A guest without one denies containers.
    #[arg(long, value_name = "FILE")]
    initdata: Option<PathBuf>,
    /// Folder with the guest's kernel and initramfs, as "cocoon guest-image build" writes it.
    #[arg(
        long,
        value_name = "DIR",
        env = "COCOON_GUEST_IMAGE",
        default_value = "/opt/cocoon/current/share/guest-image"
    )]
    guest_image: PathBuf,
    /// Memory of the guest in MiB; the image unpacks into it.
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(96..=1_048_576))]
    memory: u32,
    /// Processors of the guest.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    cpus: u32,
    /// Virtualisation of the host: auto uses KVM only where it really runs a guest.
    #[arg(long, value_enum, default_value_t = Acceleration::Auto)]
    acceleration: Acceleration,
    /// Add NAME=VALUE to the container's environment; the guest's policy decides about it.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// Print when the pod reached what to standard error at its end.
    #[arg(long)]
    timeline: bool,
    /// The image, as REGISTRY/REPOSITORY[:TAG][@DIGEST].
    image: String,
    /// The command; the image's own if left out.
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Acceleration {
    Auto,
    Kvm,
    Tcg,
}

/// Runs the pod; the exit status is the container's.
pub async fn run(arguments: Arguments) -> Outcome {
    // Before anything else, so that there is no moment at which a signal ends us without cleaning up.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let timeline = arguments.timeline;
    let mut sandbox = None;
    let outcome = tokio::select! {
        outcome = boot_and_run(arguments, &mut sandbox) => outcome,
        _ = interrupt.recv() => Ok(ExitCode::from(SIGNALLED + 2)),
        _ = terminate.recv() => Ok(ExitCode::from(SIGNALLED + 15)),
    };
    // A sandbox that is still booting was dropped with the future above, which ends it just as well.
    if let Some(sandbox) = sandbox {
        let events = sandbox.timeline().clone();
        if let Err(error) = sandbox.stop().await {
            eprintln!("{error}");
        }
        if timeline {
            eprintln!("{events}");
        }
    }
    outcome
}

async fn boot_and_run(arguments: Arguments, running: &mut Option<Sandbox>) -> Outcome {
    let name = SandboxName::parse(&arguments.name)?;
    let initdata = arguments.initdata.as_deref().map(initdata::read).transpose()?;
    // Takes a moment, since it reads all of the image.
    let guest = tokio::task::spawn_blocking(move || GuestImage::open(&arguments.guest_image)).await??;
    let guest = GuestFiles {
        kernel: guest.kernel.clone(),
        initramfs: guest.initramfs.clone(),
        command_line: guest_image::COMMAND_LINE.to_owned(),
    };
    let mut config = SandboxConfig {
        memory_mib: arguments.memory,
        vcpus: arguments.cpus,
        acceleration: match arguments.acceleration {
            Acceleration::Auto => Preference::Auto,
            Acceleration::Kvm => Preference::Kvm,
            Acceleration::Tcg => Preference::Tcg,
        },
        initdata: initdata.map(Into::into),
        // One container has nobody to share it with.
        shm_size: 0,
        ..SandboxConfig::new(name, guest)
    };
    let container = ContainerConfig { image: arguments.image, args: arguments.command, env: arguments.env };

    let pod = Pod::of(&mut config);
    let outcome = async {
        let sandbox = running.insert(Sandbox::start(config).await?);
        pod.runs(sandbox.pid(), sandbox.agent());
        tokio::select! {
            outcome = run_container(sandbox, &container, &pod) => match outcome {
                Ok(status) => Ok(status),
                Err(error) => Err(sandbox.cause_of(error).await),
            },
            reason = sandbox.exited() => Err(sandbox::Error::Exited(reason)),
        }
    };
    let outcome = outcome.await.inspect_err(|error| pod.failed(error));
    pod.end();
    Ok(outcome?)
}

async fn run_container(sandbox: &Sandbox, config: &ContainerConfig, pod: &Pod) -> Result<ExitCode, sandbox::Error> {
    let container = Container::create(sandbox.agent(), MAIN, config, sandbox.timeline()).await?;
    container.start().await?;
    let (stdout, stderr, status) = tokio::join!(
        container.copy(MAIN, Stream::Stdout, pod.heard(tokio::io::stdout())),
        container.copy(MAIN, Stream::Stderr, pod.heard(tokio::io::stderr())),
        container.wait(MAIN),
    );
    stdout?;
    stderr?;
    let status = status?;
    container.remove().await?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

fn variable(text: &str) -> Result<String, &'static str> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("next: write it as NAME=VALUE"),
    }
}

/// The container's id in its guest.
pub const MAIN: &str = "main";
/// Exit status of a program that a signal ended, less the signal's number.
const SIGNALLED: u8 = 128;
