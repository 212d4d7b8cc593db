//! `cocoon ps` and `cocoon metrics`: the pods on this node, and what a pod's shim counts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use node_install::Pod;
use sandbox::{Directory, SandboxName};

use crate::Outcome;

#[derive(Args)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Metrics {
    /// Name of the pod, as "cocoon ps" has it.
    name: SandboxName,
}

/// Lists the pods.
pub fn ps(arguments: Arguments) -> Outcome {
    let pods = Pod::in_folder(&folder()?)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&pods)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<66}  {:>8}  {:>8}  {:>9}  {:>8}  OWNER", "POD", "OWNER'S", "MACHINE", "MEMORY", "AGE");
    for pod in pods {
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
        let (pid, program) = match &pod.owner {
            Some(owner) => (Some(owner.pid), owner.program.as_str()),
            None => (None, "nobody: what its owner left goes with its next owner, or when containerd deletes it"),
        };
        let memory = format!("{} MiB", pod.memory >> 20);
        let (pid, machine, age) = (number(pid), number(pod.machine), age(pod.age));
        println!("{:<66}  {pid:>8}  {machine:>8}  {memory:>9}  {age:>8}  {program}", pod.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a pod's metrics, in Prometheus' text form.
pub async fn metrics(arguments: Metrics) -> Outcome {
    let socket = Directory::path_of(&arguments.name).join(Pod::MANAGEMENT);
    if !socket.exists() {
        let cause = format!(
            "metrics: {} has no {}; next: name a pod of containerd's that runs, see \"cocoon ps\"",
            arguments.name,
            Pod::MANAGEMENT
        );
        return Err(cause.into());
    }
    // No connection is encrypted here, but the client can't be made without somebody who could.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().unix_socket(socket).timeout(LIMIT).build()?;
    let answer = client.get("http://pod/metrics").send().await?.error_for_status()?;
    print!("{}", answer.text().await?);
    Ok(ExitCode::SUCCESS)
}

/// Where pods have their folders.
fn folder() -> Result<PathBuf, sandbox::Error> {
    let mut folder = Directory::path_of(&SandboxName::parse("any")?);
    folder.pop();
    Ok(folder)
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A guest that is asked for its own numbers may take a while.
const LIMIT: Duration = Duration::from_secs(30);
