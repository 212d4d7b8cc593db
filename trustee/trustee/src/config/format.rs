//! The formats of configuration files: TOML, YAML and JSON, all read into one form.

use std::io::{self, Read as _};
use std::path::Path;

use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

use super::Error;

/// The content of a configuration file. It may hold passwords, and is wiped when it is dropped.
pub struct Document(Value);

impl Document {
    /// Reads a file of at most 1 MiB.
    ///
    /// # Errors
    /// [`Error`] with the file's name and, if it can't be parsed, the line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        let mut text = Zeroizing::new(String::with_capacity(MAX_LENGTH as usize + 1));
        let mut file = std::fs::File::open(path).map_err(failed)?.take(MAX_LENGTH + 1);
        file.read_to_string(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_LENGTH {
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB")));
        }
        let parsed = match path.extension().and_then(|ending| ending.to_str()) {
            Some("toml") => toml(&text),
            Some("yaml" | "yml") => yaml(&text),
            Some("json") => serde_json::from_str(&text).map_err(|e| e.to_string()),
            _ => return Err(Error::Format(path.to_owned())),
        };
        let document = Self(parsed.map_err(|reason| Error::Content { path: path.to_owned(), reason })?);
        if !document.0.is_object() {
            let reason = "it is no table of sections".to_owned();
            return Err(Error::Content { path: path.to_owned(), reason });
        }
        Ok(document)
    }

    pub fn value(&self) -> &Value {
        &self.0
    }

    pub fn value_mut(&mut self) -> &mut Value {
        &mut self.0
    }
}

impl Drop for Document {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        _ => {}
    }
}

fn toml(text: &str) -> Result<Value, String> {
    toml::from_str(text).map_err(|e| {
        let line = e.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
        match line {
            Some(line) => format!("line {line}: {}", one_line(e.message())),
            None => one_line(e.message()),
        }
    })
}

fn yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|e| {
        // Its own text shows the line itself, which may hold a password.
        match e.location() {
            Some(place) => format!("line {}, column {}: it is no YAML", place.line(), place.column()),
            None => "it is no YAML".to_owned(),
        }
    })
}

fn one_line(text: &str) -> String {
    text.replace('\n', ", ")
}

const MAX_LENGTH: u64 = 1 << 20;
