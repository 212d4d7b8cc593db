//! `cocoon ps`: the pods on this node.

use std::process::ExitCode;

use clap::Args;

use crate::{Outcome, pods};

#[derive(Args)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Lists the pods.
pub fn ps(arguments: Arguments) -> Outcome {
    let pods = pods::all()?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&pods)?);
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<String> = pods.iter().map(|pod| pod.full_name().unwrap_or_else(|| "-".to_owned())).collect();
    let (ids, width) = (pods.iter().map(|pod| pod.name.len()), names.iter().map(String::len));
    let (id, width) = (ids.max().unwrap_or(3).max(3), width.max().unwrap_or(4).max(4));
    println!(
        "{:<id$}  {:<width$}  {:>8}  {:>9}  {:>9}  {:>8}  OWNER",
        "POD", "NAME", "OWNER'S", "MACHINE", "MEMORY", "AGE"
    );
    for (pod, name) in pods.iter().zip(names) {
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |number| number.to_string());
        let (pid, program) = match &pod.owner {
            Some(owner) => (Some(owner.pid), owner.program.as_str()),
            None => (None, "nobody: what its owner left goes with its next owner, or when containerd deletes it"),
        };
        let memory = format!("{} MiB", pod.memory >> 20);
        let machine = if pod.elsewhere { "elsewhere".to_owned() } else { number(pod.machine) };
        let (pid, age) = (number(pid), age(pod.age));
        println!("{:<id$}  {name:<width$}  {pid:>8}  {machine:>9}  {memory:>9}  {age:>8}  {program}", pod.name);
    }
    Ok(ExitCode::SUCCESS)
}

fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
