//! The `[image]` section of the data hub's configuration.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::documents::Location;
use crate::error::Error;
use crate::node_cache::NodeAddress;
use crate::registries::RegistryConfig;

/// How images are pulled inside the guest. Key names are those of upstream's image configuration.
///
/// A key that ends in `_uri` names a document: `file:///path`, `/path`, `kbs:///repository/type/tag` or
/// `kbs+plugin:///…`. It is read anew for each pull.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageConfig {
    /// Where layers are unpacked; on the guest's memory or its encrypted storage. Default `/run/kata-containers/image`.
    pub work_dir: PathBuf,
    /// Layers of one image that are fetched and unpacked at the same time. Default: one more than there are cores.
    pub max_concurrent_layer_downloads_per_image: Option<usize>,
    /// Certificate authorities in PEM that are trusted besides Mozilla's. Default: none.
    pub extra_root_certificates: Vec<String>,
    /// Which images may run, signed by whom: the text of a containers-policy document in JSON. Default: none, which
    /// leaves the decision to the guest's policy.
    pub image_security_policy: Option<String>,
    /// Where such a document is; it counts before [`Self::image_security_policy`].
    pub image_security_policy_uri: Option<String>,
    /// Where signatures made with OpenPGP are: the text of a containers-registries.d document in YAML. Default: none.
    pub sigstore_config: Option<String>,
    /// Where such a document is; it counts before [`Self::sigstore_config`].
    pub sigstore_config_uri: Option<String>,
    /// Where a Docker or containers `auth.json` with accounts for registries is. Default: anonymous.
    pub authenticated_registry_credentials_uri: Option<String>,
    /// Mirrors, remaps and blocks: a table in the form of a containers-registries document, version 2. Default: none.
    pub registry_config: Option<RegistryConfig>,
    /// Where such a document in TOML is; [`Self::registry_config`] counts before it.
    pub registry_configuration_uri: Option<String>,
    /// The way to registries. Default: direct.
    pub image_pull_proxy: ProxyConfig,
    /// Where blobs may be had before a registry is asked for them. Not a key of the file.
    #[serde(skip)]
    pub node_cache: Option<NodeAddress>,
}

/// Table `image_pull_proxy`. User names and passwords in its URLs never show in [`fmt::Debug`].
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// The proxy for registries with TLS, `http[s]://[user:password@]host[:port]`; it is asked for a tunnel (CONNECT).
    pub https_proxy: Option<String>,
    /// The proxy for registries without TLS.
    pub http_proxy: Option<String>,
    /// Who is reached directly, separated by commas: `*`, host names (with those below them), addresses, and networks
    /// such as `10.0.0.0/8`. A port behind a name is not looked at.
    pub no_proxy: Option<String>,
}

impl ImageConfig {
    /// Refuses what can't work.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let refused = |cause: String| Err(Error::Config { cause });
        if self.max_concurrent_layer_downloads_per_image == Some(0) {
            return refused("max_concurrent_layer_downloads_per_image is 0".to_owned());
        }
        if !self.work_dir.is_absolute() {
            return refused(format!("work_dir {:?} is not an absolute path", self.work_dir));
        }
        [
            ("image_security_policy_uri", &self.image_security_policy_uri),
            ("sigstore_config_uri", &self.sigstore_config_uri),
            ("authenticated_registry_credentials_uri", &self.authenticated_registry_credentials_uri),
            ("registry_configuration_uri", &self.registry_configuration_uri),
        ]
        .into_iter()
        .try_for_each(|(key, uri)| Location::of(key, uri.as_deref()).map(drop))
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
            image_security_policy: None,
            image_security_policy_uri: None,
            sigstore_config: None,
            sigstore_config_uri: None,
            authenticated_registry_credentials_uri: None,
            registry_config: None,
            registry_configuration_uri: None,
            image_pull_proxy: ProxyConfig::default(),
            node_cache: None,
        }
    }
}

impl fmt::Debug for ProxyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |value: &Option<String>| value.is_some();
        f.debug_struct("ProxyConfig")
            .field("https_proxy", &set(&self.https_proxy))
            .field("http_proxy", &set(&self.http_proxy))
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

const DEFAULT_WORK_DIR: &str = "/run/kata-containers/image";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_upstream_is_read() {
        let config: ImageConfig = toml::from_str(
            r#"
            work_dir = "/tmp/x"
            max_concurrent_layer_downloads_per_image = 3
            image_security_policy = '{"default":[{"type":"reject"}]}'
            image_security_policy_uri = "kbs:///default/security-policy/test"
            sigstore_config = "default-docker: {}"
            sigstore_config_uri = "file:///etc/sigstore.yaml"
            authenticated_registry_credentials_uri = "/etc/auth.json"
            registry_configuration_uri = "kbs+resource:///default/registry-configuration/test"
            extra_root_certificates = ["PEM"]
            [registry_config]
            unqualified-search-registries = ["docker.io", "example1.com"]
            [[registry_config.registry]]
            prefix = "example.com/foo"
            insecure = false
            blocked = false
            location = "internal-registry-for-example.com/bar"
            [[registry_config.registry.mirror]]
            location = "example-mirror-0.local/mirror-for-foo"
            insecure = true
            [image_pull_proxy]
            https_proxy = "http://me:secret@127.0.0.1:8080"
            http_proxy = "http://127.0.0.1:8081"
            no_proxy = "10.0.0.0/8,.svc"
            "#,
        )
        .unwrap();
        config.validate().unwrap();
        assert_eq!(config.image_pull_proxy.no_proxy.as_deref(), Some("10.0.0.0/8,.svc"));
        assert!(!format!("{config:?}").contains("secret"));
        toml::from_str::<ImageConfig>("").unwrap().validate().unwrap();
    }

    #[test]
    fn a_key_that_can_not_be_honoured_is_refused_by_name() {
        for (text, expected) in [
            ("max_concurrent_layer_downloads_per_image = 0", "max_concurrent_layer_downloads_per_image"),
            ("image_security_policy_uri = \"https://policy\"", "image_security_policy_uri: the scheme"),
            ("sigstore_config_uri = \"sigstore.yaml\"", "sigstore_config_uri: "),
            ("registry_configuration_uri = \"kbs:///a\\u0000\"", "registry_configuration_uri: "),
            ("image_pull_proxy = { all_proxy = \"http://p\" }", "unknown field `all_proxy`"),
            ("[[registry_config.registry]]\ninsecure = true", "neither prefix nor location"),
            ("work_dir = \"images\"", "not an absolute path"),
            ("snapshotter = \"overlay\"", "unknown field `snapshotter`"),
        ] {
            let outcome = toml::from_str::<ImageConfig>(text)
                .map_err(|e| e.to_string())
                .and_then(|config| config.validate().map_err(|e| e.to_string()));
            let error = outcome.unwrap_err();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
    }
}
