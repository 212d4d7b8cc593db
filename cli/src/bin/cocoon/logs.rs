//! `cocoon logs` and `cocoon console`: what a pod's containers and its guest have said last.

use std::process::ExitCode;

use clap::Args;

use crate::Outcome;
use crate::pods::{Known, container};

#[derive(Args)]
pub struct Logs {
    /// Go on until the container ends.
    #[arg(long, short)]
    follow: bool,
    /// The pod: its id, the beginning of that, or namespace/name.
    pod: String,
    /// The container, by id or name; may be left out if there is one only.
    container: Option<String>,
}

#[derive(Args)]
pub struct Console {
    /// Go on until the pod's machine ends.
    #[arg(long, short)]
    follow: bool,
    /// The pod: its id, the beginning of that, or namespace/name.
    pod: String,
}

/// Prints the last 64 KiB of a container's output.
pub async fn logs(arguments: Logs) -> Outcome {
    let pod = Known::find(&arguments.pod)?;
    let state = pod.state().await?;
    let id = &container(&state, arguments.container.as_deref())?.id;
    let path = format!("/output?container={id}&follow={}", u8::from(arguments.follow));
    pod.copy(&path, tokio::io::stdout()).await?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the last 64 KiB of a guest's console.
pub async fn console(arguments: Console) -> Outcome {
    let pod = Known::find(&arguments.pod)?;
    pod.copy(&format!("/console?follow={}", u8::from(arguments.follow)), tokio::io::stdout()).await?;
    Ok(ExitCode::SUCCESS)
}
