//! What a registry's refusal says: who, why, and what to do.

use std::error::Error as StdError;

/// Why a registry did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or no trusted one.
    #[error(
        "registry {registry} can't be reached: {cause}; next: check its name, the guest's network, and \
         extra_root_certificates if its certificate is a private one"
    )]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What happened.
        cause: String,
    },
    /// The connection went silent.
    #[error(
        "registry {registry} sent nothing for {seconds} seconds; next: check the guest's network and the registry's load"
    )]
    Stalled {
        /// Host and port.
        registry: String,
        /// How long was waited.
        seconds: f32,
    },
    /// The connection broke, or the registry failed.
    #[error("registry {registry} failed: {cause}; next: try again, or check the registry's log")]
    Broken {
        /// Host and port.
        registry: String,
        /// What happened.
        cause: String,
    },
    /// The registry wants other credentials.
    #[error("registry {registry} denies access: {cause}; next: check authenticated_registry_credentials_uri")]
    Denied {
        /// Host and port.
        registry: String,
        /// What it said.
        cause: String,
    },
    /// The registry does not have it.
    #[error("registry {registry} does not have {path}; next: check the image's name and that it was pushed")]
    NotFound {
        /// Host and port.
        registry: String,
        /// The path that was asked for.
        path: String,
    },
    /// The registry refuses the request.
    #[error("registry {registry} refuses the request: {cause}; next: check the image's name")]
    Refused {
        /// Host and port.
        registry: String,
        /// What it said.
        cause: String,
    },
    /// The registry sends more than was announced or is acceptable.
    #[error(
        "registry {registry} sends more than {limit} bytes; next: push the image again or pull it from another registry"
    )]
    TooLong {
        /// Host and port.
        registry: String,
        /// What is acceptable.
        limit: u64,
    },
    /// The registry resumed a blob at another place than asked.
    #[error("registry {registry} resumed a blob at a wrong offset; next: pull the image from another registry")]
    Range {
        /// Host and port.
        registry: String,
    },
    /// The document is not the one that was asked for.
    #[error("registry {registry} sent other bytes than asked for: {cause}; next: push the image again")]
    Digest {
        /// Host and port.
        registry: String,
        /// The digests.
        cause: String,
    },
}

impl RegistryError {
    /// Whether another try may help.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Stalled { .. } | Self::Broken { .. })
    }
}

/// The first message of an error document by the distribution specification, made printable and short.
pub(super) fn explanation(body: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    match document["errors"][0]["message"].as_str() {
        Some(message) => format!(": {}", message.chars().take(200).flat_map(char::escape_default).collect::<String>()),
        None => String::new(),
    }
}

/// An error with its causes; connection errors hide the interesting part in there.
pub(super) fn causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_message_is_printable_and_short() {
        let body = serde_json::json!({ "errors": [{ "message": format!("\u{1b}[31m{}", "x".repeat(999)) }] });
        let text = explanation(body.to_string().as_bytes());
        assert!(text.starts_with(": \\u{1b}[31mx") && text.len() < 300, "{text}");
        assert_eq!(explanation(b"<html>"), "");
    }
}
