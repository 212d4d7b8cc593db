//! Upstream's `LocalJson` layout: a file for each namespace, a JSON object of keys and values in URL-safe base64.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::Value;
use super::atomic::{self, Draft};
use super::folders::written;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::key::{Key, is_namespace};

pub(super) struct Json(PathBuf);

type Entries = BTreeMap<String, Zeroizing<String>>;

impl Json {
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    pub fn namespaces(&self) -> Result<Vec<String>, Error> {
        let mut namespaces = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().into_string().unwrap_or_default();
            if is_namespace(&name) && entry.path().is_file() {
                namespaces.push(name);
            }
        }
        Ok(namespaces)
    }

    pub fn keys(&self, namespace: &str) -> Result<Vec<Key>, Error> {
        Ok(self.entries(namespace)?.keys().filter_map(|key| Key::parse(key).ok()).collect())
    }

    pub fn read(&self, namespace: &str, key: &Key) -> Result<Option<Value>, Error> {
        let entries = self.entries(namespace)?;
        let Some(text) = entries.get(key.as_str()) else { return Ok(None) };
        let value = BASE64.decode(text.as_bytes()).map_err(|_| Error::DamagedFile(self.0.join(namespace)))?;
        Ok(Some(value.into()))
    }

    pub fn time(&self, namespace: &str) -> Result<Timestamp, Error> {
        written(&self.0.join(namespace))
    }

    pub fn replace(
        &self,
        namespace: &str,
        changes: &BTreeMap<Key, Option<Value>>,
        history: Vec<Draft>,
    ) -> Result<(), Error> {
        let mut entries = self.entries(namespace)?;
        for (key, change) in changes {
            match change {
                Some(value) => _ = entries.insert(key.to_string(), BASE64.encode(value).into()),
                None => _ = entries.remove(key.as_str()),
            }
        }
        let text = Zeroizing::new(serde_json::to_vec(&entries).map_err(std::io::Error::from)?);
        if text.len() > MAX_FILE {
            return Err(Error::TooLarge { size: text.len() });
        }
        let draft = Draft::write(&self.0.join(namespace), &text)?;
        atomic::place_and_settle(history)?;
        Ok(atomic::place_and_settle(vec![draft])?)
    }

    pub fn clean(&self) -> Result<(), Error> {
        Ok(atomic::clean(&self.0)?)
    }

    fn entries(&self, namespace: &str) -> Result<Entries, Error> {
        let path = self.0.join(namespace);
        match atomic::read(&path, MAX_FILE)? {
            None => Ok(Entries::new()),
            // The parser's own words could hold parts of a value.
            Some(Some(text)) => serde_json::from_slice(&text).map_err(|_| Error::DamagedFile(path)),
            Some(None) => Err(Error::DamagedFile(path)),
        }
    }
}

/// Written with padding as upstream does; read with and without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// Largest file in bytes: it is read and written as a whole.
const MAX_FILE: usize = 64 << 20;
