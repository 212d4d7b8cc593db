//! Upstream's `LocalFs` layout: a folder for each namespace, in it a file for each key, `/` written as `\x2F`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::atomic::{self, Draft};
use super::{Value, make_folder};
use crate::MAX_VALUE;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::key::{Key, is_namespace};

pub(super) struct Folders(PathBuf);

impl Folders {
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    pub fn namespaces(&self) -> Result<Vec<String>, Error> {
        let mut namespaces = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if is_namespace(&name) && entry.path().is_dir() {
                namespaces.push(name);
            }
        }
        Ok(namespaces)
    }

    /// What can't be a key is not there: an editor's copy, a folder.
    pub fn keys(&self, namespace: &str) -> Result<Vec<Key>, Error> {
        let entries = match fs::read_dir(self.0.join(namespace)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut keys = Vec::new();
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if let Ok(key) = Key::parse(&name.replace(SLASH, "/"))
                && entry.path().is_file()
            {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    pub fn read(&self, namespace: &str, key: &Key) -> Result<Option<Value>, Error> {
        let path = self.path(namespace, key)?;
        match atomic::read(&path, MAX_VALUE)? {
            None => Ok(None),
            Some(Some(value)) => Ok(Some(value)),
            Some(None) => Err(Error::TooLarge { size: fs::metadata(&path)?.len() as usize }),
        }
    }

    pub fn time(&self, namespace: &str, key: &Key) -> Result<Timestamp, Error> {
        written(&self.path(namespace, key)?)
    }

    pub fn replace(
        &self,
        namespace: &str,
        changes: &BTreeMap<Key, Option<Value>>,
        history: Vec<Draft>,
    ) -> Result<(), Error> {
        let folder = self.0.join(namespace);
        make_folder(&folder)?;
        let mut drafts = Vec::new();
        for (key, change) in changes {
            if let Some(value) = change {
                drafts.push(Draft::write(&self.path(namespace, key)?, value)?);
            }
        }
        atomic::place_and_settle(history)?;
        for draft in drafts {
            draft.place()?;
        }
        for (key, _) in changes.iter().filter(|(_, change)| change.is_none()) {
            match fs::remove_file(self.path(namespace, key)?) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        Ok(atomic::settle(&folder)?)
    }

    pub fn clean(&self) -> Result<(), Error> {
        for namespace in self.namespaces()? {
            atomic::clean(&self.0.join(namespace))?;
        }
        Ok(())
    }

    fn path(&self, namespace: &str, key: &Key) -> Result<PathBuf, Error> {
        Ok(self.0.join(namespace).join(file_name(key)?))
    }
}

/// The name of a key's file.
pub(super) fn file_name(key: &Key) -> Result<String, Error> {
    let name = key.as_str().replace('/', SLASH);
    if name.len() > MAX_NAME || name == "." || name == ".." {
        return Err(Error::FileName(key.clone()));
    }
    Ok(name)
}

/// When a file was last written.
pub(super) fn written(path: &Path) -> Result<Timestamp, Error> {
    let since_1970 = fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Timestamp::from_unix(since_1970.as_secs()))
}

const SLASH: &str = "\\x2F";
/// What Linux allows in a name.
const MAX_NAME: usize = 255;
