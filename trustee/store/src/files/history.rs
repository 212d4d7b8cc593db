//! What keys in files held before: a JSON file for each key, in a folder of its own beside the namespaces.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::atomic::{self, Draft};
use super::folders::file_name;
use super::{Value, make_folder, version_of};
use crate::backend::Version;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::key::Key;
use crate::seal::random;
use crate::{HISTORY, MAX_VALUE};

pub(super) struct History(PathBuf);

/// A version that was overwritten, or a deletion, which has no value.
#[derive(Deserialize, Serialize)]
pub(super) struct Past {
    version: u64,
    time: Timestamp,
    value: Option<Zeroizing<String>>,
}

impl History {
    pub fn new(directory: &Path) -> Self {
        Self(directory.join(".history"))
    }

    /// Oldest first.
    pub fn read(&self, namespace: &str, key: &Key) -> Result<Vec<Past>, Error> {
        let path = self.0.join(namespace).join(file_name(key)?);
        match atomic::read(&path, MAX_FILE)? {
            None => Ok(Vec::new()),
            Some(Some(text)) => serde_json::from_slice(&text).map_err(|_| Error::DamagedFile(path)),
            Some(None) => Err(Error::DamagedFile(path)),
        }
    }

    /// The history with the version that is about to go, and its deletion if that is the reason.
    pub fn draft(
        &self,
        namespace: &str,
        key: &Key,
        value: &Value,
        time: Timestamp,
        deleted: Option<Timestamp>,
    ) -> Result<Draft, Error> {
        let mut all = self.read(namespace, key)?;
        let version = version_of(value);
        all.pop_if(|past| past.version == version);
        all.push(Past { version, time, value: Some(STANDARD.encode(value).into()) });
        if let Some(time) = deleted {
            // A number no value has by intent: the absence of a value has no hash.
            let version = random::<8>()?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)) >> 11;
            all.push(Past { version, time, value: None });
        }
        all.drain(..all.len().saturating_sub(HISTORY - 1));
        let text = Zeroizing::new(serde_json::to_vec(&all).map_err(std::io::Error::from)?);
        let folder = self.0.join(namespace);
        make_folder(&folder)?;
        Ok(Draft::write(&folder.join(file_name(key)?), &text)?)
    }

    /// Removes what a process that ended in the middle has left behind.
    pub fn clean(&self) -> Result<(), Error> {
        make_folder(&self.0)?;
        for folder in fs::read_dir(&self.0)? {
            atomic::clean(&folder?.path())?;
        }
        Ok(())
    }
}

impl Past {
    pub fn version(&self) -> Version {
        Version { version: self.version, time: self.time, deleted: self.value.is_none() }
    }

    pub fn into_value(self) -> Option<Value> {
        STANDARD.decode(self.value?.as_bytes()).ok().map(Zeroizing::new)
    }
}

/// Every version at its largest, in base64.
const MAX_FILE: usize = HISTORY * (MAX_VALUE / 3 * 4 + 1024);
