//! The message with which reference values are registered (RVPS message version 0.1.0).

use serde::{Deserialize, Serialize};

/// Reference values in transit: what they are is up to the extractor that `kind` names.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Message {
    /// Version of the message format, [`VERSION`] where it is left out.
    #[serde(default = "default_version")]
    pub version: String,
    /// Name of the extractor: `sample`, `swid`, `corim`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The payload in standard base64.
    pub payload: String,
}

fn default_version() -> String {
    VERSION.to_owned()
}

/// The only version of [`Message`].
pub const VERSION: &str = "0.1.0";
