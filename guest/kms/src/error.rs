//! Why a key management service could not be used. No credential and no secret is ever part of a text.

use std::path::PathBuf;

/// A failure.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A service that is not known here.
    #[error("the provider {0:?} is not supported; next: use kbs, aliyun or aws")]
    Provider(String),
    /// Settings or annotations of the secret that can't be used.
    #[error("{service}: {what}: {cause}; next: correct it and seal again")]
    Settings {
        /// Whose.
        service: &'static str,
        /// `provider_settings` or `annotations`.
        what: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// A credential that can't be used.
    #[error("credentials {}: {cause}; next: fill the file through \"credentials\" in cdh.toml", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// No answer.
    #[error("{service}: no answer: {cause}; next: check that the guest's network reaches it")]
    Unreachable {
        /// Who was asked.
        service: String,
        /// The transport's error.
        cause: String,
    },
    /// An answer that says no. The service's own words are left out: they can repeat what was signed.
    #[error(
        "{service} answered {status} {code}; next: check that the key or secret exists, and what the credentials may do"
    )]
    Refused {
        /// Who answered.
        service: String,
        /// HTTP status.
        status: u16,
        /// The service's code for the reason.
        code: String,
    },
    /// An answer that can't be used.
    #[error("{service}: the answer can't be used: {cause}")]
    Answer {
        /// Who answered.
        service: String,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// What this client can't do.
    #[error("{service}: the client {client} can't decrypt; next: use client_key, or seal the secret as a vault")]
    CannotDecrypt {
        /// Whose client.
        service: &'static str,
        /// Its name.
        client: &'static str,
    },
    /// No client can be made.
    #[error("the HTTP client can't be made: {0}")]
    Client(String),
}

/// What somebody wrote, fit for a log: cut, and of letters, digits and plain marks alone.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}
