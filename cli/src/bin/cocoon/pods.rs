//! Pods of this node as people name them, and what their owners tell.

use std::io;
use std::time::Duration;

use management::{ContainerState, Identity, SOCKET, State};
use node_install::Pod;
use reqwest::{Client, Response, StatusCode};
use sandbox::{Directory, SandboxName};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

/// Why a pod tells nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Node(#[from] node_install::Error),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("pod: {0} is not running; next: see \"cocoon ps\"; why one is gone, \"cocoon doctor\" may know")]
    NotRunning(String),
    #[error("pod: {word} may be {}; next: write more of the id", .names.join(" or "))]
    Ambiguous { word: String, names: Vec<String> },
    #[error("pod: the owner of {pod} does not answer: {cause}; next: see \"cocoon doctor {pod}\"")]
    Silent { pod: String, cause: String },
    #[error("pod: the owner of {pod} says {status}: {text}; next: see \"cocoon ps\"")]
    Refused { pod: String, status: StatusCode, text: String },
    #[error("pod: which container is meant is not clear, there are {0}; next: name one")]
    Container(String),
    #[error("pod: standard output can't be written: {0}; next: check where it goes")]
    Output(io::Error),
}

/// A pod whose owner can be asked.
pub struct Known {
    pub name: SandboxName,
    client: Client,
}

impl Known {
    /// The pod that `word` means: its id, the beginning of that, or namespace/name.
    pub fn find(word: &str) -> Result<Self, Error> {
        let mut meant = meant(word)?;
        match meant.len() {
            0 => Err(Error::NotRunning(word.to_owned())),
            1 => Self::of(&meant.remove(0)),
            _ => {
                let names = meant.into_iter().map(|pod| pod.name).collect();
                Err(Error::Ambiguous { word: word.to_owned(), names })
            }
        }
    }

    /// This pod.
    pub fn of(pod: &Pod) -> Result<Self, Error> {
        let name = SandboxName::parse(&pod.name)?;
        let socket = Directory::path_of(&name).join(SOCKET);
        // No connection is encrypted here, but the client can't be made without somebody who could.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder().no_proxy().unix_socket(socket).build();
        let client = client.map_err(|error| Error::Silent { pod: pod.name.clone(), cause: error.to_string() })?;
        Ok(Self { name, client })
    }

    /// What its owner knows of it.
    pub async fn state(&self) -> Result<State, Error> {
        let text = self.text("/state").await?;
        serde_json::from_str(&text).map_err(|error| self.silent(error.to_string()))
    }

    /// A text that its owner has.
    pub async fn text(&self, path: &str) -> Result<String, Error> {
        self.ask(path, LIMIT).await?.text().await.map_err(|error| self.broken(&error))
    }

    /// The same, passed on as it comes, however long that takes.
    pub async fn copy(&self, path: &str, mut to: impl AsyncWrite + Unpin) -> Result<(), Error> {
        let mut answer = self.ask(path, FOREVER).await?;
        while let Some(piece) = answer.chunk().await.map_err(|error| self.broken(&error))? {
            to.write_all(&piece).await.map_err(Error::Output)?;
            to.flush().await.map_err(Error::Output)?;
        }
        Ok(())
    }

    async fn ask(&self, path: &str, limit: Duration) -> Result<Response, Error> {
        let asked = self.client.get(format!("http://pod{path}")).timeout(limit).send().await;
        let answer = asked.map_err(|error| self.broken(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (pod, status) = (self.name.to_string(), answer.status());
        let text = answer.text().await.unwrap_or_default().trim().to_owned();
        Err(Error::Refused { pod, status, text })
    }

    /// The innermost cause says the most.
    fn broken(&self, error: &reqwest::Error) -> Error {
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        self.silent(cause.to_string())
    }

    fn silent(&self, cause: String) -> Error {
        Error::Silent { pod: self.name.to_string(), cause }
    }
}

/// All pods of this node.
pub fn all() -> Result<Vec<Pod>, node_install::Error> {
    Pod::in_folder(&Directory::of_all())
}

/// The pods that `word` may mean; one alone if it is its whole id.
pub fn meant(word: &str) -> Result<Vec<Pod>, node_install::Error> {
    let mut pods = all()?;
    match pods.iter().position(|pod| pod.name == word) {
        Some(at) => Ok(vec![pods.swap_remove(at)]),
        None => {
            pods.retain(|pod| pod.is_meant_by(word));
            Ok(pods)
        }
    }
}

/// The container that is meant: the one of this id, beginning of it, or name, or the only one there is.
pub fn container<'a>(state: &'a State, word: Option<&str>) -> Result<&'a ContainerState, Error> {
    let all = || state.containers.iter().rev();
    let found: Vec<_> = match word {
        Some(word) => {
            let exact: Vec<_> = all().filter(|it| it.name == word || it.id == word).take(1).collect();
            if exact.is_empty() { all().filter(|it| it.id.starts_with(word)).collect() } else { exact }
        }
        None => {
            let running: Vec<_> = all().filter(|it| it.phase == "running").collect();
            if running.is_empty() { all().take(1).collect() } else { running }
        }
    };
    match found[..] {
        [one] => Ok(one),
        _ => {
            let names: Vec<_> = state.containers.iter().map(label).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(Error::Container(names))
        }
    }
}

/// What people call a container.
pub fn label(container: &ContainerState) -> &str {
    if container.name.is_empty() { &container.id } else { &container.name }
}

/// What people call a pod.
pub fn title(identity: &Identity) -> String {
    identity.full_name().map_or_else(|| identity.id.clone(), |name| format!("{name} ({})", short(&identity.id)))
}

fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

/// A guest that is asked for its own numbers may take a while.
const LIMIT: Duration = Duration::from_secs(30);
/// A year.
const FOREVER: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_meant_by_name_id_or_by_being_the_only_one() {
        let of = |id: &str, name: &str, phase: &str| ContainerState {
            id: id.into(),
            name: name.into(),
            phase: phase.into(),
            ..ContainerState::default()
        };
        let state = State {
            containers: vec![of("a1", "app", "removed"), of("a2", "app", "running"), of("b1", "side", "ended")],
            ..State::default()
        };
        for (word, id) in
            [(None, "a2"), (Some("app"), "a2"), (Some("a1"), "a1"), (Some("b"), "b1"), (Some("side"), "b1")]
        {
            assert_eq!(container(&state, word).unwrap().id, id, "{word:?}");
        }
        for word in ["a", "c", "ap"] {
            let error = container(&state, Some(word)).unwrap_err().to_string();
            assert!(error.contains("there are app, app, side"), "{word}: {error}");
        }
        assert!(container(&State::default(), None).unwrap_err().to_string().contains("there are none"));
    }
}
