//! Configuration of the data hub: `cdh.toml` of the initdata.

use std::path::{Component, Path, PathBuf};

use image::ImageConfig;
use serde::Deserialize;
use wire::resource::ResourceUri;

/// The document `cdh.toml`. Unknown keys are errors, and so are keys that ask for what is not there yet.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CdhConfig {
    /// Where the ttrpc services listen. Default: `unix:///run/confidential-containers/cdh.sock`.
    pub socket: String,
    /// The key broker. Default: that of the attestation agent.
    pub kbc: KbcConfig,
    /// Files that are filled with resources before anything is served. Default: none.
    pub credentials: Vec<Credential>,
    /// How images are pulled.
    pub image: ImageConfig,
    /// Default: false. True is refused: there are no sealed secrets yet.
    pub skip_sealed_secret_verification: bool,
    /// Logging.
    pub log: LogConfig,
}

impl CdhConfig {
    /// Parses `cdh.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that could not be honoured as it is written. The table `image` is checked when the
    /// data hub is made.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Document(e.message().to_owned()))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.kbc.name != KBC {
            return Err(ConfigError::Kbc(self.kbc.name.clone()));
        }
        if self.skip_sealed_secret_verification {
            return Err(ConfigError::NotYet("skip_sealed_secret_verification = true"));
        }
        self.credentials.iter().try_for_each(Credential::validate)
    }
}

impl Default for CdhConfig {
    fn default() -> Self {
        Self {
            socket: SOCKET.to_owned(),
            kbc: KbcConfig::default(),
            credentials: Vec::new(),
            image: ImageConfig::default(),
            skip_sealed_secret_verification: false,
            log: LogConfig::default(),
        }
    }
}

/// Table `kbc`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct KbcConfig {
    /// Default and only choice: `cc_kbc`.
    pub name: String,
    /// Base URL of the key broker. Default: the attestation agent's. Another one must trust the tokens of that one.
    #[serde(default)]
    pub url: Option<String>,
    /// PEM of the CA certificates to trust. Default: the public ones; with the attestation agent's URL, as set there.
    #[serde(default)]
    pub kbs_cert: Option<String>,
}

impl Default for KbcConfig {
    fn default() -> Self {
        Self { name: KBC.to_owned(), url: None, kbs_cert: None }
    }
}

/// One entry of the array `credentials`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The file, below `/run/confidential-containers/cdh/kbs`.
    pub path: PathBuf,
    /// The resource that it is filled with, as `kbs:///repository/type/tag`.
    pub resource_uri: String,
}

impl Credential {
    /// The parsed name of the resource.
    pub(crate) fn uri(&self) -> Result<ResourceUri, ConfigError> {
        ResourceUri::parse(&self.resource_uri).map_err(|e| ConfigError::Credential(e.to_string()))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let plain = self.path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            && !self.path.as_os_str().as_encoded_bytes().windows(3).any(|part| part == b"/./")
            && !self.path.as_os_str().as_encoded_bytes().ends_with(b"/.");
        if !plain || !self.path.starts_with(CREDENTIALS) || self.path == Path::new(CREDENTIALS) {
            return Err(ConfigError::Credential(format!(
                "path {:?} is not a file below {CREDENTIALS}, without . and ..",
                self.path
            )));
        }
        self.uri().map(drop)
    }
}

/// Table `log`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Least level that is logged. Default: none, which leaves it to the process.
    pub level: Option<String>,
}

/// Why a configuration was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the TOML document that is expected.
    #[error("cdh.toml: {0}")]
    Document(String),
    /// A key that is known and not supported.
    #[error("cdh.toml: {0} is not supported yet; next: remove the key")]
    NotYet(&'static str),
    /// A key broker client other than ours.
    #[error("cdh.toml: kbc.name is {0:?}; only {KBC:?} is supported yet")]
    Kbc(String),
    /// An entry of `credentials` that can't be honoured.
    #[error("cdh.toml: credentials: {0}")]
    Credential(String),
}

const KBC: &str = "cc_kbc";
const SOCKET: &str = "unix:///run/confidential-containers/cdh.sock";
const CREDENTIALS: &str = "/run/confidential-containers/cdh/kbs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_document_is_read() {
        let config = CdhConfig::parse(
            "socket = \"unix:///run/confidential-containers/cdh.sock\"\n[kbc]\nname = \"cc_kbc\"\n\
             url = \"https://kbs:8080\"\nkbs_cert = \"PEM\"\n\
             [[credentials]]\npath = \"/run/confidential-containers/cdh/kbs/a/b.json\"\nresource_uri = \"kbs:///a/b/c\"\n\
             [image]\nmax_concurrent_layer_downloads_per_image = 3\n[log]\nlevel = \"info\"\n",
        )
        .unwrap();
        assert_eq!(config.kbc.url.as_deref(), Some("https://kbs:8080"));
        assert_eq!(config.credentials.len(), 1);
        assert_eq!(config.image.max_concurrent_layer_downloads_per_image, Some(3));
        assert_eq!(CdhConfig::parse("").unwrap().socket, SOCKET);
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_name() {
        for (text, reason) in [
            ("[kbc]\nname = \"offline_fs_kbc\"\n", "offline_fs_kbc"),
            ("[kbc]\nurl = \"https://kbs\"\n", "name"),
            ("[aa]\naa_socket = \"unix:///x\"\n", "aa"),
            ("skip_sealed_secret_verification = true\n", "skip_sealed_secret_verification"),
            ("[image]\nsnapshotter = \"overlay\"\n", "snapshotter"),
            ("[log]\nlevels = \"info\"\n", "levels"),
        ] {
            let error = CdhConfig::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("cdh.toml: ") && error.contains(reason), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_credential_stays_in_its_folder() {
        for (path, uri, good) in [
            ("/run/confidential-containers/cdh/kbs/k.json", "kbs:///a/b/c", true),
            ("/run/confidential-containers/cdh/kbs", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/kbs/../x", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/kbs/./x", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/kbs/.", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/kbsx/y", "kbs:///a/b/c", false),
            ("k.json", "kbs:///a/b/c", false),
            ("/etc/passwd", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/kbs/k.json", "a/b/c", false),
        ] {
            let credential = Credential { path: path.into(), resource_uri: uri.to_owned() };
            assert_eq!(credential.validate().is_ok(), good, "{path} {uri}");
        }
    }
}
