//! What a registry's refusal says: who, why, and what to do.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

/// Why a registry did not deliver.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection.
    #[error(
        "registry {registry} can't be reached: {cause}; next: check its name, the guest's network and image_pull_proxy"
    )]
    Unreachable {
        /// Host and port.
        registry: String,
        /// What happened.
        cause: String,
    },
    /// Somebody else may have answered.
    #[error(
        "registry {registry} can't be trusted: {cause}; next: check its certificate, and add its authority to \
         extra_root_certificates if that is a private one"
    )]
    Untrusted {
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
    /// The connection is not silent, and gets nowhere either.
    #[error(
        "registry {registry} sent only {bytes} bytes in {seconds} seconds; next: check the guest's network and the \
         registry's load, or name a mirror that is closer in registry_config"
    )]
    Slow {
        /// Host and port.
        registry: String,
        /// What came.
        bytes: u64,
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
    /// The registry wants to be asked later.
    #[error("registry {registry} is busy: {cause}; next: try again later, or sign in for a higher limit")]
    Busy {
        /// Host and port.
        registry: String,
        /// What it said.
        cause: String,
        /// When it wants to be asked again, counted from its answer.
        retry_after: Option<Duration>,
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
    #[error(
        "registry {registry} sent other bytes than asked for: {cause}; next: it or a proxy altered them: push the image \
         again or pull it from another registry"
    )]
    Digest {
        /// Host and port.
        registry: String,
        /// The digests.
        cause: String,
    },
    /// The configuration forbids it.
    #[error("the registry {rule:?} is blocked; next: pull the image from another registry, or change registry_config")]
    Blocked {
        /// The rule's prefix.
        rule: String,
    },
    /// The configuration makes a name of it that is none.
    #[error("registry_config gives it no usable name: {cause}; next: change the rule's location")]
    Name {
        /// What is wrong with the name.
        cause: String,
    },
    /// The configuration has no place for it.
    #[error("registry_config has an empty list of unqualified-search-registries; next: add docker.io to it")]
    Nowhere,
    /// Nobody delivered.
    #[error("no source has it: {}", listed(attempts))]
    Nobody {
        /// Every source, in the order in which they were tried.
        attempts: Vec<Attempt>,
    },
}

/// One source that did not deliver.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The image's name there.
    pub source: String,
    /// Why not.
    pub cause: RegistryError,
}

impl RegistryError {
    /// One error of many; a single one speaks for itself.
    pub(crate) fn of(mut attempts: Vec<Attempt>) -> Self {
        match (attempts.len(), attempts.pop()) {
            (_, None) => Self::Nowhere,
            (1, Some(only)) => only.cause,
            (_, Some(last)) => {
                attempts.push(last);
                Self::Nobody { attempts }
            }
        }
    }

    /// Whether the registry says that there is no such thing.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Nobody { attempts } => attempts.iter().all(|attempt| attempt.cause.is_not_found()),
            _ => false,
        }
    }

    /// Whether bytes came that have another digest.
    pub(crate) fn is_wrong_digest(&self) -> bool {
        match self {
            Self::Digest { .. } => true,
            Self::Nobody { attempts } => attempts.iter().any(|attempt| attempt.cause.is_wrong_digest()),
            _ => false,
        }
    }

    /// Whether another try may help.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Stalled { .. }
                | Self::Slow { .. }
                | Self::Broken { .. }
                | Self::Busy { .. }
        )
    }

    /// How long the registry wants to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.cause)
    }
}

fn listed(attempts: &[Attempt]) -> String {
    let numbered = attempts.iter().enumerate().map(|(index, attempt)| format!("({}) {attempt}", index + 1));
    numbered.collect::<Vec<_>>().join("; ")
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
pub(crate) fn causes(error: &dyn StdError) -> String {
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

/// Whether a certificate is the reason: another try will bring the same one.
pub(super) fn blames_certificate(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error shows what its inner error came from, and not that one.
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
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

    #[test]
    fn the_page_about_troubles_has_these_texts() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md"));
        let registry = || "registry.example".to_owned();
        for error in [
            RegistryError::NotFound { registry: registry(), path: "manifests/v1".to_owned() },
            RegistryError::Denied { registry: registry(), cause: "401 Unauthorized".to_owned() },
            RegistryError::Unreachable { registry: registry(), cause: "connection refused".to_owned() },
            RegistryError::Digest { registry: registry(), cause: "sha256:aa, not sha256:bb".to_owned() },
        ] {
            assert!(page.contains(&format!("`{error}`")), "the page lacks: {error}");
        }
    }

    #[test]
    fn every_attempt_is_told() {
        let missing = |host: &str| Attempt {
            source: format!("{host}/x:v1"),
            cause: RegistryError::NotFound { registry: host.to_owned(), path: "manifests/v1".to_owned() },
        };
        let blocked =
            Attempt { source: "c.io/x:v1".to_owned(), cause: RegistryError::Blocked { rule: "c.io".to_owned() } };
        let all = RegistryError::of(vec![missing("a.io"), missing("b.io"), blocked]);
        let text = all.to_string();
        assert!(text.starts_with("no source has it: (1) a.io/x:v1: registry a.io does not have"), "{text}");
        assert!(text.contains("(2) b.io/x:v1: ") && text.contains("(3) c.io/x:v1: the registry \"c.io\" is blocked"));
        assert!(!all.is_not_found() && RegistryError::of(vec![missing("a.io"), missing("b.io")]).is_not_found());
        assert!(RegistryError::of(vec![missing("a.io")]).to_string().starts_with("registry a.io does not have"));
        assert!(matches!(RegistryError::of(Vec::new()), RegistryError::Nowhere));
    }
}
