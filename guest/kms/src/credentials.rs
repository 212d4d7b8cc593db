//! Files with credentials, and the names in them that become a part of paths and hosts.

use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::error::{Error, excerpt};

/// The folders with credentials.
pub(crate) struct Credentials {
    pub(crate) root: PathBuf,
    pub(crate) aliyun: PathBuf,
    pub(crate) aws: PathBuf,
}

impl Credentials {
    /// The file that a secret's settings name. It is one of the credentials, whoever wrote the secret.
    pub(crate) fn named(&self, service: &'static str, path: &str) -> Result<PathBuf, Error> {
        let path = Path::new(path);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if plain && path.is_absolute() && path.starts_with(&self.root) && path != self.root {
            return Ok(path.to_owned());
        }
        let cause = format!("the path {:?} is not below {}", excerpt(&path.to_string_lossy()), self.root.display());
        Err(Error::Settings { service, what: "provider_settings", cause })
    }
}

/// Reads a file of at most 64 KiB.
pub(crate) async fn read(path: PathBuf) -> Result<Zeroizing<Vec<u8>>, Error> {
    let outcome = tokio::task::spawn_blocking(move || {
        let failed = |cause: String| Error::Credentials { path: path.clone(), cause };
        let file = std::fs::File::open(&path).map_err(|e| failed(e.to_string()))?;
        // At its full size from the start, so that no copy stays behind where it grew.
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_FILE + 1));
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut content).map_err(|e| failed(e.to_string()))?;
        if content.len() > MAX_FILE { Err(failed(format!("longer than {MAX_FILE} bytes"))) } else { Ok(content) }
    });
    outcome.await.map_err(|e| Error::Client(e.to_string()))?
}

/// Reads a file of JSON. What is wrong with it is not told in the parser's words, which could repeat it.
pub(crate) async fn read_json<T: DeserializeOwned>(path: PathBuf, expected: &'static str) -> Result<T, Error> {
    let content = read(path.clone()).await?;
    serde_json::from_slice(&content).map_err(|_| Error::Credentials { path, cause: format!("it is not {expected}") })
}

/// Reads a text without the white space around it.
pub(crate) async fn read_text(path: PathBuf) -> Result<Zeroizing<String>, Error> {
    let content = read(path.clone()).await?;
    match std::str::from_utf8(&content) {
        Ok(text) => Ok(Zeroizing::new(text.trim().to_owned())),
        Err(_) => Err(Error::Credentials { path, cause: "it is not text".to_owned() }),
    }
}

/// Settings or annotations as a type.
pub(crate) fn typed<T: DeserializeOwned>(
    service: &'static str,
    what: &'static str,
    members: &Map<String, Value>,
) -> Result<T, Error> {
    serde_json::from_value(Value::Object(members.clone())).map_err(|e| Error::Settings {
        service,
        what,
        cause: excerpt(&e.to_string()),
    })
}

/// A name that becomes a part of a host's or a file's name: letters, digits, `-`, `_` and, not in front, `.`.
pub(crate) fn plain<'a>(service: &'static str, member: &str, name: &'a str) -> Result<&'a str, Error> {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with('.') && name.bytes().all(good) {
        return Ok(name);
    }
    let cause = format!("{member} is {:?}, which has characters that none has", excerpt(name));
    Err(Error::Settings { service, what: "provider_settings", cause })
}

const MAX_FILE: usize = 64 << 10;
const MAX_NAME: usize = 128;
