//! Configuration of the data hub: `cdh.toml` of the initdata, or a file of its own in TOML or JSON.

use std::path::{Component, Path, PathBuf};

use image::ImageConfig;
use serde::Deserialize;
use wire::resource::ResourceUri;

/// The document `cdh.toml`. Unknown keys are errors.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CdhConfig {
    /// Where the services listen: `unix:///path` for ttrpc, `127.0.0.1:port` for gRPC.
    /// Default: `unix:///run/confidential-containers/cdh.sock`.
    pub socket: Option<String>,
    /// The attestation agent, where it is a process of its own.
    pub aa: AaConfig,
    /// Who has the resources. Default: the key broker of the attestation agent.
    pub kbc: KbcConfig,
    /// Files that are filled with resources before anything is served. Default: none.
    pub credentials: Vec<Credential>,
    /// How images are pulled.
    pub image: Option<ImageConfig>,
    /// Whose sealed secrets are opened.
    pub sealed_secret: SealedSecretConfig,
    /// Opens sealed secrets without a look at their signature, so that whoever controls the cluster chooses which
    /// secret a container gets. For tests and migration only. Default: false.
    pub skip_sealed_secret_verification: bool,
    /// Logging.
    pub log: LogConfig,
    /// Where this guest keeps things. Not keys of the file.
    #[serde(skip)]
    pub places: Places,
}

impl CdhConfig {
    /// Parses `cdh.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that could not be honoured as it is written. The tables `image` and `sealed_secret`
    /// are checked when the data hub is made.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|e| ConfigError::Document(e.message().to_owned()))?;
        config.validate()?;
        Ok(config)
    }

    /// Where the services listen.
    pub fn socket(&self) -> &str {
        self.socket.as_deref().unwrap_or(SOCKET)
    }

    /// Refuses what can't work.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if ![CC_KBC, OFFLINE].contains(&self.kbc.name.as_str()) {
            return Err(ConfigError::Kbc(self.kbc.name.clone()));
        }
        self.credentials.iter().try_for_each(Credential::validate)
    }
}

/// Table `aa`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct AaConfig {
    /// Where the attestation agent serves ttrpc. Default: where upstream's does.
    pub aa_socket: Option<String>,
}

/// Table `kbc`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct KbcConfig {
    /// `cc_kbc`, the default: a key broker, with the attestation agent's tokens. `offline_fs_kbc`: files of the guest.
    pub name: String,
    /// Base URL of the key broker. Default: the attestation agent's. Another one must trust the tokens of that one.
    #[serde(default)]
    pub url: Option<String>,
    /// PEM of the CA certificates to trust. Default: the public ones; with the attestation agent's URL, as set there.
    #[serde(default)]
    pub kbs_cert: Option<String>,
}

impl KbcConfig {
    /// What `AA_KBC_PARAMS` and `agent.aa_kbc_params` stand for: `name::url`.
    pub(crate) fn from_params(params: &str) -> Result<Self, ConfigError> {
        let (name, url) = params.split_once("::").ok_or_else(|| ConfigError::KbcParams(params.to_owned()))?;
        let url = Some(url.to_owned()).filter(|_| name == CC_KBC);
        Ok(Self { name: name.to_owned(), url, kbs_cert: None })
    }

    /// The resources are files.
    pub(crate) fn offline() -> Self {
        Self { name: OFFLINE.to_owned(), url: None, kbs_cert: None }
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.name == OFFLINE
    }
}

impl Default for KbcConfig {
    fn default() -> Self {
        Self { name: CC_KBC.to_owned(), url: None, kbs_cert: None }
    }
}

/// One entry of the array `credentials`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The file, below `/run/confidential-containers/cdh/kbs`, or in `/run/confidential-containers/cdh/sealed-secret`,
    /// where keys that verify sealed secrets are looked for.
    pub path: PathBuf,
    /// The resource that it is filled with, as `kbs:///repository/type/tag`.
    pub resource_uri: String,
}

impl Credential {
    /// What `cdh.kbs_resources` on the kernel's command line stands for: `<uri>::<path>`, separated by commas.
    pub(crate) fn list(text: &str) -> Result<Vec<Self>, ConfigError> {
        let entry = |entry: &str| {
            let (uri, path) = entry
                .split_once("::")
                .ok_or_else(|| ConfigError::Credential(format!("{entry:?} is not <resource URI>::<path>")))?;
            let credential = Self { path: path.into(), resource_uri: uri.to_owned() };
            credential.validate()?;
            Ok(credential)
        };
        text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(entry).collect()
    }

    /// The parsed name of the resource.
    pub(crate) fn uri(&self) -> Result<ResourceUri, ConfigError> {
        ResourceUri::parse(&self.resource_uri).map_err(|e| ConfigError::Credential(e.to_string()))
    }

    /// The file, if the data hub's folder is `folder`.
    pub(crate) fn place(&self, folder: &Path) -> PathBuf {
        self.path.strip_prefix(FOLDER).map_or_else(|_| self.path.clone(), |rest| folder.join(rest))
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let text = self.path.as_os_str().as_encoded_bytes();
        let plain = self.path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
            && !text.windows(3).any(|part| part == b"/./")
            && !text.ends_with(b"/.");
        let within = |folder: &str| {
            let folder = Path::new(FOLDER).join(folder);
            self.path.starts_with(&folder) && self.path != folder
        };
        if !plain || !(within(KBS_FOLDER) || within(SEALED_SECRET_FOLDER)) {
            return Err(ConfigError::Credential(format!(
                "path {:?} is not a file below {FOLDER}/{KBS_FOLDER} or {FOLDER}/{SEALED_SECRET_FOLDER}, without . and ..",
                self.path
            )));
        }
        self.uri().map(drop)
    }
}

/// Table `sealed_secret`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SealedSecretConfig {
    /// The keys that may sign sealed secrets. Each is the URI of a resource with a public JWK (`kbs:///…`), the path or
    /// bare name of a file in `/run/confidential-containers/cdh/sealed-secret`, or the text of a JWK that has a `kid`.
    /// A secret of any other key is refused; an empty list refuses all.
    ///
    /// Default: no list. Then a secret names its key, as upstream has it, but only one whose place says that it is
    /// meant for this: a resource of the type `signing-key`, or a file in that folder.
    pub trust_anchors: Option<Vec<String>>,
}

/// Table `log`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Least level that is logged. Default: none, which leaves it to the process.
    pub level: Option<String>,
}

/// Folders and files of the guest.
#[derive(Clone, Debug)]
pub struct Places {
    /// The data hub's own folder, `/run/confidential-containers/cdh`.
    pub folder: PathBuf,
    /// Where `offline_fs_kbc` reads resources.
    pub offline: Vec<PathBuf>,
    /// Credentials for Alibaba Cloud, if not below [`Places::folder`].
    pub aliyun: Option<PathBuf>,
    /// Credentials for AWS, if not below [`Places::folder`].
    pub aws: Option<PathBuf>,
    /// Base URL of a server that stands for all key management services; only tests have one.
    pub kms_endpoint: Option<String>,
}

impl Places {
    /// The folder of all credentials.
    pub(crate) fn kbs(&self) -> PathBuf {
        self.folder.join(KBS_FOLDER)
    }

    /// The folder with keys that verify sealed secrets.
    pub(crate) fn sealed_secret(&self) -> PathBuf {
        self.folder.join(SEALED_SECRET_FOLDER)
    }
}

impl Default for Places {
    fn default() -> Self {
        Self {
            folder: FOLDER.into(),
            offline: OFFLINE_FILES.map(PathBuf::from).to_vec(),
            aliyun: None,
            aws: None,
            kms_endpoint: None,
        }
    }
}

/// Why a configuration was refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the document that is expected.
    #[error("cdh.toml: {0}")]
    Document(String),
    /// A key broker client that is not known.
    #[error("cdh.toml: kbc.name is {0:?}; next: use {CC_KBC:?} or {OFFLINE:?}")]
    Kbc(String),
    /// Parameters of another form.
    #[error("KBC parameters are {0:?}; next: write them as cc_kbc::<url of the KBS>")]
    KbcParams(String),
    /// There is a key broker, and nothing tells where.
    #[error("cdh.toml: kbc.url is missing; next: set it to the URL of the KBS")]
    NoUrl,
    /// An entry of `credentials` that can't be honoured.
    #[error("cdh.toml: credentials: {0}")]
    Credential(String),
    /// An entry of `trust_anchors` that can't be honoured.
    #[error("cdh.toml: sealed_secret.trust_anchors: {0}")]
    Anchor(String),
}

/// The data hub's folder in a guest.
pub(crate) const FOLDER: &str = "/run/confidential-containers/cdh";
const SOCKET: &str = "unix:///run/confidential-containers/cdh.sock";
const CC_KBC: &str = "cc_kbc";
const OFFLINE: &str = "offline_fs_kbc";
const KBS_FOLDER: &str = "kbs";
const SEALED_SECRET_FOLDER: &str = "sealed-secret";
const OFFLINE_FILES: [&str; 2] = ["/etc/aa-offline_fs_kbc-keys.json", "/etc/aa-offline_fs_kbc-resources.json"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_document_is_read() {
        let config = CdhConfig::parse(
            "socket = \"unix:///run/confidential-containers/cdh.sock\"\nskip_sealed_secret_verification = true\n\
             [kbc]\nname = \"cc_kbc\"\nurl = \"https://kbs:8080\"\nkbs_cert = \"PEM\"\n\
             [[credentials]]\npath = \"/run/confidential-containers/cdh/kbs/a/b.json\"\nresource_uri = \"kbs:///a/b/c\"\n\
             [aa]\naa_socket = \"unix:///run/aa.sock\"\n\
             [image]\nmax_concurrent_layer_downloads_per_image = 3\n[log]\nlevel = \"info\"\n",
        )
        .unwrap();
        assert_eq!(config.kbc.url.as_deref(), Some("https://kbs:8080"));
        assert_eq!(config.aa.aa_socket.as_deref(), Some("unix:///run/aa.sock"));
        assert_eq!(config.credentials.len(), 1);
        assert!(config.skip_sealed_secret_verification);
        assert_eq!(config.image.unwrap().max_concurrent_layer_downloads_per_image, Some(3));
        assert_eq!(CdhConfig::parse("").unwrap().socket(), SOCKET);
        assert!(CdhConfig::parse("[kbc]\nname = \"offline_fs_kbc\"\n").unwrap().kbc.is_offline());
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_name() {
        for (text, reason) in [
            ("[kbc]\nname = \"eaa_kbc\"\n", "eaa_kbc"),
            ("[kbc]\nurl = \"https://kbs\"\n", "name"),
            ("[aa]\nsocket = \"unix:///x\"\n", "socket"),
            ("places = 1\n", "places"),
            ("skip_sealed_secret_verification = \"true\"\n", "boolean"),
            ("[sealed_secret]\ntrust_anchors = \"kbs:///a/b/c\"\n", "sequence"),
            ("[image]\nsnapshotter = \"overlay\"\n", "snapshotter"),
            ("[log]\nlevels = \"info\"\n", "levels"),
        ] {
            let error = CdhConfig::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("cdh.toml: ") && error.contains(reason), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_credential_stays_in_its_folders() {
        for (path, uri, good) in [
            ("/run/confidential-containers/cdh/kbs/k.json", "kbs:///a/b/c", true),
            ("/run/confidential-containers/cdh/sealed-secret/key", "kbs:///a/b/c", true),
            ("/run/confidential-containers/cdh/kbs", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/sealed-secret", "kbs:///a/b/c", false),
            ("/run/confidential-containers/cdh/ocicrypt_config.json", "kbs:///a/b/c", false),
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

    #[test]
    fn credentials_are_listed_in_one_word_too() {
        let list = Credential::list(
            "kbs:///a/b/c::/run/confidential-containers/cdh/kbs/k,kbs:///a/b/d::/run/confidential-containers/cdh/kbs/l",
        );
        let list = list.unwrap();
        assert_eq!((list.len(), list[1].resource_uri.as_str()), (2, "kbs:///a/b/d"));
        assert_eq!(list[1].place(Path::new("/tmp/x")), Path::new("/tmp/x/kbs/l"));
        assert!(Credential::list("").unwrap().is_empty());
        for bad in ["kbs:///a/b/c", "kbs:///a/b/c::/etc/passwd", "x::/run/confidential-containers/cdh/kbs/k"] {
            assert!(Credential::list(bad).is_err(), "{bad:?} passed");
        }
    }
}
