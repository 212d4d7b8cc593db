//! Why a service elsewhere could not be asked, or refused.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a service elsewhere could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configured address can't be used.
    #[error("\"{address}\" is no address of a service: {cause}; next: write it as https://host:port")]
    Address {
        /// As it was configured.
        address: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A certificate or key can't be read.
    #[error("can't read {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Certificates or key can't be used.
    #[error("can't speak TLS with {address}: {cause}; next: check certificates and key of this client")]
    Tls {
        /// The service.
        address: String,
        /// Why.
        cause: String,
    },
    /// Certificates or key can't be watched.
    #[error("can't watch the certificates for changes: {0}")]
    Watch(#[from] file_watch::Error),
    /// There is no way to the service, or it ended amid the call.
    #[error("{address} does not answer: {cause}; next: check that it runs and who may reach it")]
    Unreachable {
        /// The service.
        address: String,
        /// Why.
        cause: String,
    },
    /// The service takes too long.
    #[error("{address} gave no answer within {} seconds", timeout.as_secs())]
    Timeout {
        /// The service.
        address: String,
        /// How long it was given.
        timeout: Duration,
    },
    /// The service understood the request and refuses it.
    #[error("{address} refuses: {message}")]
    Refused {
        /// The service.
        address: String,
        /// In its own words.
        message: String,
    },
    /// What the service answers can't be understood.
    #[error("the answer of {address} can't be understood: {cause}")]
    Answer {
        /// The service.
        address: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The evidence is of a kind or form that the service does not take.
    #[error("Intel Trust Authority can't verify this: {0}")]
    Evidence(&'static str),
}
