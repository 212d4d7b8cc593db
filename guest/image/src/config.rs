//! The `[image]` section of the data hub's configuration.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::Error;

/// How images are pulled inside the guest. Key names are those of upstream's image configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Document")]
pub struct ImageConfig {
    /// Where layers are unpacked; on the guest's memory or its encrypted storage. Default `/run/kata-containers/image`.
    pub work_dir: PathBuf,
    /// Layers of one image that are fetched and unpacked at the same time. Default: one more than there are cores.
    pub max_concurrent_layer_downloads_per_image: Option<usize>,
    /// Certificate authorities in PEM that are trusted besides Mozilla's. Default: none.
    pub extra_root_certificates: Vec<String>,
    /// A resource such as `kbs:///default/credential/registry` with a Docker `auth.json`. Default: anonymous.
    ///
    /// The data hub fetches it and hands it to [`crate::Puller::set_credentials`].
    pub authenticated_registry_credentials_uri: Option<String>,
    /// Settings of single registries. Default: none.
    pub registry_config: RegistryConfig,
}

/// The subset of a containers-registries document that is supported.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// One entry a registry.
    pub registry: Vec<RegistryEntry>,
}

/// Settings of one registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryEntry {
    /// The registry's host, with its port if it has one.
    pub location: String,
    /// Speak HTTP without TLS to it. Digests are still checked, tags are not protected. Default false.
    #[serde(default)]
    pub insecure: bool,
}

impl ImageConfig {
    /// Refuses what can't work.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.max_concurrent_layer_downloads_per_image == Some(0) {
            return Err(Error::Config { cause: "max_concurrent_layer_downloads_per_image is 0".to_owned() });
        }
        if !self.work_dir.is_absolute() {
            return Err(Error::Config { cause: format!("work_dir {:?} is not an absolute path", self.work_dir) });
        }
        Ok(())
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.max_concurrent_layer_downloads_per_image
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from) + 1)
    }
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            work_dir: DEFAULT_WORK_DIR.into(),
            max_concurrent_layer_downloads_per_image: None,
            extra_root_certificates: Vec::new(),
            authenticated_registry_credentials_uri: None,
            registry_config: RegistryConfig::default(),
        }
    }
}

impl TryFrom<Document> for ImageConfig {
    type Error = Error;

    fn try_from(document: Document) -> Result<Self, Error> {
        let unsupported = [
            ("image_security_policy", document.image_security_policy),
            ("image_security_policy_uri", document.image_security_policy_uri),
            ("sigstore_config", document.sigstore_config),
            ("sigstore_config_uri", document.sigstore_config_uri),
            ("registry_configuration_uri", document.registry_configuration_uri),
            ("image_pull_proxy", document.image_pull_proxy),
        ];
        if let Some((key, _)) = unsupported.iter().find(|(_, value)| value.is_some()) {
            return Err(Error::Config {
                cause: format!("{key} is not supported yet, and ignoring it would be unsafe"),
            });
        }
        let config = Self {
            work_dir: document.work_dir.unwrap_or_else(|| DEFAULT_WORK_DIR.into()),
            max_concurrent_layer_downloads_per_image: document.max_concurrent_layer_downloads_per_image,
            extra_root_certificates: document.extra_root_certificates,
            authenticated_registry_credentials_uri: document.authenticated_registry_credentials_uri,
            registry_config: document.registry_config,
        };
        config.validate()?;
        Ok(config)
    }
}

/// The section as it is written, with the keys that only upstream knows, so that their refusal can say so.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    work_dir: Option<PathBuf>,
    max_concurrent_layer_downloads_per_image: Option<usize>,
    #[serde(default)]
    extra_root_certificates: Vec<String>,
    authenticated_registry_credentials_uri: Option<String>,
    #[serde(default)]
    registry_config: RegistryConfig,
    image_security_policy: Option<IgnoredAny>,
    image_security_policy_uri: Option<IgnoredAny>,
    sigstore_config: Option<IgnoredAny>,
    sigstore_config_uri: Option<IgnoredAny>,
    registry_configuration_uri: Option<IgnoredAny>,
    image_pull_proxy: Option<IgnoredAny>,
}

const DEFAULT_WORK_DIR: &str = "/run/kata-containers/image";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_supported_or_named_in_the_refusal() {
        for (text, expected) in [
            ("", Ok(())),
            ("work_dir = \"/tmp/x\"\nmax_concurrent_layer_downloads_per_image = 3", Ok(())),
            ("[[registry_config.registry]]\nlocation = \"127.0.0.1:5000\"\ninsecure = true", Ok(())),
            ("max_concurrent_layer_downloads_per_image = 0", Err("max_concurrent_layer_downloads_per_image")),
            (
                "image_security_policy_uri = \"kbs:///default/policy/1\"",
                Err("image_security_policy_uri is not supported"),
            ),
            ("image_pull_proxy = { https_proxy = \"http://p\" }", Err("image_pull_proxy is not supported")),
            ("work_dir = \"images\"", Err("not an absolute path")),
            ("snapshotter = \"overlay\"", Err("unknown field `snapshotter`")),
        ] {
            let outcome = toml::from_str::<ImageConfig>(text).map(drop).map_err(|e| e.to_string());
            match (outcome, expected) {
                (Ok(()), Ok(())) => {}
                (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{text:?} gave {actual:?}"),
                (outcome, _) => panic!("{text:?} gave {outcome:?}"),
            }
        }
    }
}
