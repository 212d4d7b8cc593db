//! The configuration file of `trustee serve`, in TOML.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// All of the configuration. Unknown keys are an error.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    pub http_server: HttpServer,
    /// Where the Trustee keeps its data.
    pub storage: Storage,
    /// How guests are appraised.
    #[serde(default)]
    pub attestation: Attestation,
    /// Who may administer.
    #[serde(default)]
    pub admin: Admin,
    /// What is put on record.
    pub audit: Audit,
}

/// `[http_server]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpServer {
    /// Addresses to listen on. Default: `["127.0.0.1:8080"]`.
    #[serde(default = "default_sockets")]
    pub sockets: Vec<String>,
    /// Serve plain HTTP. Default: false; then certificate and private_key are needed.
    #[serde(default)]
    pub insecure_http: bool,
    /// File with the certificate chain in PEM, leaf first.
    pub certificate: Option<PathBuf>,
    /// File with the certificate's private key in PEM.
    pub private_key: Option<PathBuf>,
}

/// `[storage]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Storage {
    /// Directory of the database and its master key. Created with mode 0700.
    pub directory: PathBuf,
}

/// `[attestation]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attestation {
    /// Accept evidence of the sample TEE, which anyone can make: for tests only. Default: false.
    pub sample_verifier: bool,
    /// How long an attestation token is valid, 1 to 1440. Default: 5.
    pub token_minutes: u16,
}

impl Default for Attestation {
    fn default() -> Self {
        Self { sample_verifier: false, token_minutes: 5 }
    }
}

/// `[admin]`
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// `DenyAll` (the default) or `AuthenticatedAuthorization`.
    pub authorization_mode: AuthorizationMode,
    /// File with the public key that administrators' tokens are signed with, in PEM: Ed25519 or EC P-256.
    pub public_key: Option<PathBuf>,
    /// Roles that may administer; a token names its own in the claim `role`.
    pub roles: Vec<String>,
}

/// Whether administrators exist.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum AuthorizationMode {
    /// Every administrative request is refused.
    #[default]
    DenyAll,
    /// A signed token is asked for.
    AuthenticatedAuthorization,
}

/// `[audit]`
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// The audit log's file. Created with mode 0600.
    pub path: PathBuf,
}

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    /// [`Error`] with the file's name and what is wrong in it.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
        let config: Self =
            toml::from_str(&text).map_err(|e| Error::Content { path: path.to_owned(), reason: reason(&text, &e) })?;
        config.check().map_err(|reason| Error::Content { path: path.to_owned(), reason: reason.to_owned() })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), &'static str> {
        let server = &self.http_server;
        if server.sockets.is_empty() {
            return Err("[http_server] sockets is empty");
        }
        if !server.insecure_http && (server.certificate.is_none() || server.private_key.is_none()) {
            return Err("[http_server] needs certificate and private_key, or insecure_http = true");
        }
        if server.insecure_http && (server.certificate.is_some() || server.private_key.is_some()) {
            return Err("[http_server] has a certificate or private_key beside insecure_http = true: remove one");
        }
        if !(1..=1440).contains(&self.attestation.token_minutes) {
            return Err("[attestation] token_minutes must be 1 to 1440");
        }
        let authenticated = self.admin.authorization_mode == AuthorizationMode::AuthenticatedAuthorization;
        if authenticated && self.admin.public_key.is_none() {
            return Err("[admin] AuthenticatedAuthorization needs public_key");
        }
        Ok(())
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: {} can't be read: {source}; next: give --config the file that trustee setup wrote", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("configuration: {}: {reason}; next: correct it there", path.display())]
    Content { path: PathBuf, reason: String },
}

/// In one line, where TOML's own text has a picture.
fn reason(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    match line {
        Some(line) => format!("line {line}: {}", error.message()),
        None => error.message().to_owned(),
    }
}

fn default_sockets() -> Vec<String> {
    vec!["127.0.0.1:8080".to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[http_server]\ninsecure_http = true\n[storage]\ndirectory = \"/d\"\n[audit]\npath = \"/a\"\n";

    fn read(text: &str) -> Result<Config, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::read(file.path()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_are_the_safe_ones() {
        let config = read(SMALL).unwrap();
        assert_eq!(config.http_server.sockets, ["127.0.0.1:8080"]);
        assert_eq!(config.admin.authorization_mode, AuthorizationMode::DenyAll);
        assert!(!config.attestation.sample_verifier);
        assert_eq!(config.attestation.token_minutes, 5);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            (format!("{SMALL}[admin]\nmode = 1\n"), "unknown field"),
            (SMALL.replace("insecure_http = true", ""), "needs certificate and private_key"),
            (SMALL.replace("insecure_http = true", "insecure_http = true\nprivate_key = \"/k\""), "remove one"),
            (SMALL.replace("insecure_http", "sockets = []\ninsecure_http"), "sockets is empty"),
            (format!("{SMALL}[attestation]\ntoken_minutes = 0\n"), "token_minutes"),
            (format!("{SMALL}[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n"), "needs public_key"),
            (format!("{SMALL}[admin]\nauthorization_mode = \"InsecureAllowAll\"\n"), "unknown variant"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(expected) && error.contains("; next: ") && !error.contains('\n'), "{error}");
        }
    }
}
