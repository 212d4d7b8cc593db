//! The older form of a storage: a kind and a path, in the section of each part that kept something.

use std::path::Path;

use serde_json::{Map, Value, json};

/// Where an older file says that something lies.
pub struct Old {
    kind: &'static str,
    path: Option<String>,
}

impl Old {
    /// Takes it out of a section that names its kind under `key`; none if there is no such key and no path.
    pub fn take(section: &mut Map<String, Value>, key: &str) -> Result<Option<Self>, String> {
        let mut settings = match section.remove("store_config") {
            Some(Value::Object(settings)) => settings,
            _ => Map::new(),
        };
        let mut paths = ["file_path", "dir_path"].map(|key| settings.remove(key).or_else(|| section.remove(key)));
        let path = match paths.iter_mut().find_map(Option::take) {
            Some(Value::String(path)) => Some(path),
            Some(_) => return Err("file_path and dir_path of a storage in an older form are strings".to_owned()),
            None => None,
        };
        let kind = match section.remove(key) {
            None if path.is_none() => return Ok(None),
            Some(kind) if kind == "LocalFs" => LOCAL_FS,
            Some(kind) if kind == "LocalJson" => LOCAL_JSON,
            _ => {
                return Err(format!(
                    "{key} of a storage in an older form can only be LocalFs or LocalJson: write storage_type, and \
                     where it lies under backends"
                ));
            }
        };
        Ok(Some(Self { kind, path }))
    }

    /// Its storage_type.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Writes where it lies into a section for storages, whose name is `called`.
    pub fn keep(
        &self,
        section: &mut Map<String, Value>,
        called: &str,
        place: &str,
        warnings: &mut Vec<String>,
    ) -> Result<(), String> {
        let kind = self.kind;
        let mut said = format!("{place} has a storage in an older form, read as storage_type = \"{kind}\"");
        if let Some(path) = &self.path {
            let (name, key, folder) = match kind {
                LOCAL_FS => ("local_fs", "dir_path", path.as_str()),
                // Every namespace has a file of its own now.
                _ => ("local_json", "file_dir_path", parent(path)),
            };
            let backends = section.entry("backends").or_insert(json!({}));
            let wrong = || format!("{called}.backends.{name} is no section");
            let backend = backends.as_object_mut().ok_or_else(wrong)?.entry(name).or_insert(json!({}));
            let known = backend.as_object_mut().ok_or_else(wrong)?.entry(key).or_insert(folder.into());
            if *known != folder {
                return Err(format!(
                    "{place} has a storage in an older form, and another one has the folder in \
                     {called}.backends.{name}.{key}: write that folder once, there, and storage_type in {place}"
                ));
            }
            said += &format!(" with {called}.backends.{name}.{key} = {folder:?}");
        }
        warnings.push(format!("{said}; what an older release kept there is not found: register it again"));
        Ok(())
    }
}

fn parent(file: &str) -> &str {
    match Path::new(file).parent().and_then(Path::to_str) {
        None | Some("") => ".",
        Some(folder) => folder,
    }
}

const LOCAL_FS: &str = "LocalFs";
const LOCAL_JSON: &str = "LocalJson";
