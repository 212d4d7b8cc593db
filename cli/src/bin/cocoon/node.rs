//! `cocoon node`: what an operator does on a node, and whether it can run pods.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use node_install::{Finding, Node, Outcome, Release, Status, Verdict};
use serde::Serialize;

use crate::Outcome as Ended;

#[derive(Subcommand)]
pub enum Command {
    /// Install this release, or another one, beside those that are there, and give it to new pods. Pods that run go on.
    Install(Install),
    /// Go back to the version before the current one. Pods that run go on.
    Rollback(Change),
    /// Remove all versions and take back what was written into containerd's configuration; refused while pods run.
    Uninstall(Change),
    /// Show what is installed, and which pods run from which version.
    Status(Place),
    /// Find out whether pods can run here, and if not, why and what to do. Fails if they can't.
    Check(Place),
}

#[derive(Args)]
pub struct Install {
    /// Folder with a release, as "cargo xtask release" makes it; the release of which this program is part if left out.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    #[command(flatten)]
    change: Change,
}

#[derive(Args)]
pub struct Change {
    /// Restart containerd, or the service that runs it, by systemd at the end, whether it has to be or not.
    #[arg(long)]
    restart_containerd: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Place {
    /// Folder where the node's "/" is mounted.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub async fn node(command: Command) -> Ended {
    match command {
        Command::Install(Install { from, change }) => {
            let release = from.as_deref().map_or_else(Release::of_this_program, Release::open)?;
            changed(change, |node| node.install(&release))
        }
        Command::Rollback(change) => changed(change, Node::rollback),
        Command::Uninstall(change) => changed(change, Node::uninstall),
        Command::Status(place) => {
            let status = Node::at(&place.root).status()?;
            print(place.json, &status, show_status)
        }
        Command::Check(place) => {
            let findings = Node::at(&place.root).check().await;
            print(place.json, &findings, |findings| show_findings(findings))?;
            let failed = findings.iter().any(|finding| finding.verdict == Verdict::Failure);
            Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

fn changed(change: Change, operation: impl FnOnce(&Node) -> Result<Outcome, node_install::Error>) -> Ended {
    let node = Node::at(&change.place.root);
    let mut outcome = operation(&node)?;
    if change.restart_containerd {
        node.restart_containerd()?;
        outcome.next.retain(|next| !next.starts_with("restart containerd"));
    }
    print(change.place.json, &outcome, show_outcome)
}

fn show_outcome(outcome: &Outcome) {
    if let Some(operation) = &outcome.taken_back {
        println!("taken back    \"{operation}\", which was interrupted");
    }
    match &outcome.version {
        Some(version) => println!("version       {version}"),
        None => println!("version       none"),
    }
    println!("changed       {}", if outcome.changed { "yes" } else { "nothing" });
    for (name, list) in
        [("handlers", &outcome.handlers), ("removed", &outcome.removed), ("still in use", &outcome.in_use)]
    {
        if !list.is_empty() {
            println!("{name:<12}  {}", list.join(", "));
        }
    }
    for left_out in &outcome.left_out {
        println!("left out      {}: {}", left_out.class, left_out.reason);
    }
    for next in &outcome.next {
        println!("next          {next}");
    }
}

fn show_status(status: &Status) {
    println!("containerd    {}", status.containerd);
    println!(
        "handlers      {}",
        if status.handlers.names.is_empty() { "none".to_owned() } else { status.handlers.names.join(", ") }
    );
    if status.handlers.restart_needed {
        println!("              containerd runs with an older configuration; next: restart it");
    }
    if let Some(operation) = &status.interrupted {
        println!("interrupted   \"{operation}\"; next: repeat it");
    }
    if status.versions.is_empty() {
        println!("versions      none; next: run \"cocoon node install\"");
    }
    for it in &status.versions {
        let is = |other: &Option<String>| other.as_ref() == Some(&it.version);
        let role = match (is(&status.current), is(&status.previous)) {
            (true, _) => " (current)",
            (_, true) => " (rollback leads to it)",
            _ => "",
        };
        let users: Vec<&str> = it.pods.iter().chain(&it.programs).map(String::as_str).collect();
        let users = if users.is_empty() { "nothing runs from it".to_owned() } else { users.join(", ") };
        println!("version       {}{role}: {users}", it.version);
    }
}

/// Prints findings, a line or two each.
pub fn show_findings(findings: &[Finding]) {
    for finding in findings {
        println!("{:<7}  {:<13}  {}", finding.verdict, finding.name, finding.found);
        if let Some(next) = &finding.next {
            println!("{:26}next: {next}", "");
        }
    }
}

fn print<T: Serialize>(json: bool, value: &T, show: impl FnOnce(&T)) -> Ended {
    match json {
        true => println!("{}", serde_json::to_string_pretty(value)?),
        false => show(value),
    }
    Ok(ExitCode::SUCCESS)
}
