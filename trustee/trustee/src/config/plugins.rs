//! `[[plugins]]`: what each plugin is told.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::section::Nested;
use super::unknown;

/// A plugin's settings.
pub enum Plugin {
    /// Where resources lie.
    Resource(resource_backends::Config),
    /// Any other.
    Other(plugins::Config),
}

impl Plugin {
    /// Reads the settings of the plugin at a position in the list.
    pub(super) fn read(position: usize, settings: &Map<String, Value>) -> Result<Self, String> {
        let place = format!("plugins[{position}]");
        let Some(name) = settings.get("name").and_then(Value::as_str) else {
            return Err(format!("{place} needs name"));
        };
        if name != "resource" {
            return parse(&place, &Value::Object(settings.clone())).map(Self::Other);
        }
        let mut settings = settings.clone();
        settings.remove("name");
        settings.entry("storage_backend_type").or_insert("kvstorage".into());
        parse(&place, &Value::Object(settings)).map(Self::Resource)
    }
}

fn parse<T: DeserializeOwned>(place: &str, settings: &Value) -> Result<T, String> {
    // What is inside a plugin's settings is told by the plugin alone.
    serde_path_to_error::deserialize(settings).map_err(|e| format!("{place}: {}", unknown::explain(&e, &Nested::Value)))
}
