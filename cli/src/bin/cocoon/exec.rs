//! `cocoon exec`: another process in the container of a running pod, if the pod's policy allows it.

use std::process::ExitCode;

use clap::Args;
use sandbox::{Agent, Container, SandboxName, Stream};

use crate::Outcome;
use crate::run::MAIN;

#[derive(Args)]
pub struct Arguments {
    /// Pass standard input on to the command.
    #[arg(long, short)]
    interactive: bool,
    /// Name of the pod.
    name: String,
    /// The command.
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs the command; the exit status is its own.
pub async fn exec(arguments: Arguments) -> Outcome {
    let name = SandboxName::parse(&arguments.name)?;
    let agent = Agent::of_sandbox(&name).await?;
    let container = Container::of(&agent, MAIN);
    let exec_id = format!("exec-{}", std::process::id());
    container.exec(&exec_id, &arguments.command).await?;
    let input = async {
        match arguments.interactive {
            true => container.feed(&exec_id, tokio::io::stdin()).await,
            false => Ok(()),
        }
    };
    let output = async {
        let (stdout, stderr, status) = tokio::join!(
            container.copy(&exec_id, Stream::Stdout, tokio::io::stdout()),
            container.copy(&exec_id, Stream::Stderr, tokio::io::stderr()),
            container.wait(&exec_id),
        );
        stdout.and(stderr).and(status)
    };
    // The command may end before its input does.
    let status = tokio::select! {
        status = output => status?,
        Some(error) = async { input.await.err() } => return Err(error.into()),
    };
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}
