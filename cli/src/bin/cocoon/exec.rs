//! `cocoon exec`: another process in a container of a running pod, if the pod's policy allows it.
//!
//! It asks the guest's agent itself, as the pod's owner does for a kubelet: the same requests, the same decisions of the policy.

use std::fs;
use std::io::stdin;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use management::ContainerState;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use sandbox::{Agent, Container, Execution, Stream};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::Outcome;
use crate::pods::{self, Known};

#[derive(Args)]
pub struct Arguments {
    /// Pass standard input on to the command.
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal.
    #[arg(long, short)]
    tty: bool,
    /// The pod: its id, the beginning of that, or namespace/name.
    pod: String,
    /// The container, by id or name; may be left out if there is one only.
    container: Option<String>,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs the command; the exit status is its own.
pub async fn exec(arguments: Arguments) -> Outcome {
    let pod = Known::find(&arguments.pod)?;
    let state = pod.state().await?;
    let found = pods::container(&state, arguments.container.as_deref())?;
    let execution = Execution { terminal: arguments.tty, ..of_container(found, &arguments.command)? };

    let agent = Agent::of_sandbox(&pod.name).await?;
    let container = Container::of(&agent, &found.id);
    let exec_id = format!("cocoon-exec-{}", std::process::id());
    container.exec(&exec_id, &execution).await?;
    let _raw = arguments.tty.then(Raw::standard_input).flatten();
    let input = async {
        match arguments.interactive {
            true => container.feed(&exec_id, tokio::io::stdin()).await,
            false => Ok(()),
        }
    };
    let errors = async {
        // A terminal has one stream.
        match arguments.tty {
            true => Ok(()),
            false => container.copy(&exec_id, Stream::Stderr, tokio::io::stderr()).await,
        }
    };
    let output = async {
        let (stdout, stderr, status) = tokio::join!(
            container.copy(&exec_id, Stream::Stdout, tokio::io::stdout()),
            errors,
            container.wait(&exec_id),
        );
        stdout.and(stderr).and(status)
    };
    let resized = async {
        match arguments.tty {
            true => follow_size(&container, &exec_id).await,
            false => std::future::pending().await,
        }
    };
    // The command may end before its input does.
    let status = tokio::select! {
        status = output => status?,
        Some(error) = async { input.await.err() } => return Err(error.into()),
        error = resized => return Err(error.into()),
    };
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

/// The command as the container's first process would run it: the same user, environment and folder.
fn of_container(container: &ContainerState, command: &[String]) -> Result<Execution, Box<dyn std::error::Error>> {
    let bare = Execution::new(command);
    let Some(bundle) = &container.bundle else { return Ok(bare) };
    let path = Path::new(bundle).join("config.json");
    let unread = |error: &dyn std::fmt::Display| {
        format!("exec: {}: {error}; next: check that the container still is there", path.display())
    };
    let text = fs::read(&path).map_err(|error| unread(&error))?;
    let Specification { process } = serde_json::from_slice(&text).map_err(|error| unread(&error))?;
    Ok(Execution {
        env: process.env,
        cwd: process.cwd,
        user: Some(sandbox::User {
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids,
        }),
        no_new_privileges: process.no_new_privileges,
        ..bare
    })
}

/// Gives the command's terminal the size of ours, again and again; returns only if that fails.
async fn follow_size(container: &Container, exec_id: &str) -> sandbox::Error {
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(error) => return sandbox::Error::Input(error),
    };
    loop {
        if let Ok(size) = tcgetwinsize(stdin()) {
            // A command that has just ended has no terminal any more.
            match container.resize(exec_id, size.ws_row, size.ws_col).await {
                Ok(()) | Err(sandbox::Error::Guest { .. }) => {}
                Err(error) => return error,
            }
        }
        if changes.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Our terminal while every key is the command's; as before when this is dropped.
struct Raw(Termios);

impl Raw {
    fn standard_input() -> Option<Self> {
        let before = isatty(stdin()).then(|| tcgetattr(stdin()).ok()).flatten()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.0);
    }
}

/// What of a container's specification another process in it needs.
#[derive(Deserialize)]
struct Specification {
    process: Process,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    #[serde(default)]
    env: Vec<String>,
    cwd: String,
    #[serde(default)]
    user: User,
    #[serde(default)]
    no_new_privileges: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_as_the_container_does() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"ociVersion": "1.1.0", "process": {"args": ["app"], "cwd": "/srv", "env": ["A=b"], "noNewPrivileges": true,
            "user": {"uid": 7, "gid": 8, "additionalGids": [8, 9]}, "terminal": true}}"#;
        fs::write(folder.path().join("config.json"), text).unwrap();
        let mut container = ContainerState::default();
        let command = ["id".to_owned()];
        assert_eq!(of_container(&container, &command).unwrap(), Execution::new(&command));

        container.bundle = Some(folder.path().display().to_string());
        let execution = of_container(&container, &command).unwrap();
        assert_eq!((execution.cwd.as_str(), &execution.env[..]), ("/srv", &["A=b".to_owned()][..]));
        assert_eq!(execution.user, Some(sandbox::User { uid: 7, gid: 8, groups: vec![8, 9] }));
        assert!(execution.no_new_privileges && !execution.terminal && execution.args == command);

        container.bundle = Some("/nowhere".to_owned());
        assert!(of_container(&container, &command).unwrap_err().to_string().contains("next:"));
    }
}
