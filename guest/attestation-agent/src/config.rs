//! Configuration of the attestation agent: `aa.toml` of the initdata.

use std::path::PathBuf;

use serde::Deserialize;
use wire::jwe::KeyAlgorithm;

use crate::event_log;

/// The document `aa.toml`. Unknown keys are errors.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct AaConfig {
    /// Where tokens come from.
    pub token_configs: TokenConfigs,
    /// The runtime measurement log.
    pub eventlog_config: EventLogConfig,
    /// Logging.
    pub log: LogConfig,
}

impl AaConfig {
    /// Parses `aa.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that could not be honoured as it is written.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|e| ConfigError::Document(e.message().to_owned()))
    }

    /// The configuration that upstream's `AA_KBC_PARAMS`, or `agent.aa_kbc_params` on the kernel command line, stands
    /// for: `cc_kbc::<url of the KBS>`.
    ///
    /// # Errors
    /// [`ConfigError::KbcParams`] for another form or another KBC.
    pub fn from_kbc_params(params: &str) -> Result<Self, ConfigError> {
        let url = params.strip_prefix("cc_kbc::").ok_or_else(|| ConfigError::KbcParams(params.to_owned()))?;
        let kbs = KbsConfig { url: url.to_owned(), cert: None, tee_key_algorithm: KeyAlgorithm::default() };
        Ok(Self { token_configs: TokenConfigs { kbs: Some(kbs), coco_as: None }, ..Self::default() })
    }
}

/// Table `token_configs`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfigs {
    /// The key broker. Default: none, and then no token and no resource can be had.
    pub kbs: Option<KbsConfig>,
    /// An attestation service that is asked directly. Default: none.
    pub coco_as: Option<AsConfig>,
}

/// Table `token_configs.kbs`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct KbsConfig {
    /// Base URL of the KBS, `http://` or `https://`. Over `http` resources stay secret (they are sealed to this
    /// guest's key), but anyone on the way can refuse them and read the evidence.
    pub url: String,
    /// PEM of the CA certificates to trust instead of the public ones. Default: none, which means the public ones.
    #[serde(default)]
    pub cert: Option<String>,
    /// The kind of key that resources are sealed to: `ECDH-ES+A256KW-P256`, `ECDH-ES+A256KW-P521`, `RSA-OAEP-256` or
    /// `ML-KEM-768+A192KW`. Default: the first.
    #[serde(default)]
    pub tee_key_algorithm: KeyAlgorithm,
}

/// Table `token_configs.coco_as`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct AsConfig {
    /// Base URL of the attestation service's REST API.
    pub url: String,
}

/// Table `eventlog_config`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct EventLogConfig {
    /// Whether events are measured. Default: false.
    pub enable_eventlog: bool,
    /// The PCR that events extend unless they name another. Default: 17, which is RTMR3 on TDX; 23 on TPMs, and so on
    /// Azure, which let software extend PCRs 0 to 16 and 23 alone.
    pub init_pcr: Option<u32>,
    /// Where the log lies. Not a key of the file: the environment of a process can say it.
    #[serde(skip, default = "default_path")]
    pub path: PathBuf,
}

impl Default for EventLogConfig {
    fn default() -> Self {
        Self { enable_eventlog: false, init_pcr: None, path: default_path() }
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
    #[error("aa.toml: {0}")]
    Document(String),
    /// A KBS client other than cc_kbc.
    #[error("KBC parameters are {0:?}; only cc_kbc::<url of the KBS> is supported")]
    KbcParams(String),
    /// A URL that can't be called.
    #[error("URL {url:?}: {cause}; next: write it as https://host:port")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Certificates that can't be used.
    #[error("the CA certificate for {url}: {cause}; next: give it as PEM, from -----BEGIN CERTIFICATE----- on")]
    Certificate {
        /// Whose certificate.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The HTTP client can't be built.
    #[error("the HTTP client can't be built: {0}")]
    Client(String),
}

fn default_path() -> PathBuf {
    PathBuf::from(event_log::PATH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_document_is_read() {
        let config = AaConfig::parse(
            "[token_configs.coco_as]\nurl = \"http://as:8080\"\n\
             [token_configs.kbs]\nurl = \"https://kbs:8080\"\ncert = \"PEM\"\n\
             [eventlog_config]\nenable_eventlog = true\ninit_pcr = 23\n[log]\nlevel = \"debug\"\n",
        )
        .unwrap();
        let kbs = config.token_configs.kbs.unwrap();
        assert_eq!((kbs.url.as_str(), kbs.cert.as_deref()), ("https://kbs:8080", Some("PEM")));
        assert_eq!(config.token_configs.coco_as.unwrap().url, "http://as:8080");
        assert_eq!(config.log.level.as_deref(), Some("debug"));
        assert_eq!((config.eventlog_config.enable_eventlog, config.eventlog_config.init_pcr), (true, Some(23)));
        assert_eq!(AaConfig::parse("").unwrap(), AaConfig::default());
    }

    #[test]
    fn every_kind_of_key_has_upstreams_name() {
        let names = ["ECDH-ES+A256KW-P256", "ECDH-ES+A256KW-P521", "RSA-OAEP-256", "ML-KEM-768+A192KW"];
        for (name, algorithm) in names.into_iter().zip(KeyAlgorithm::ALL) {
            let text = format!("[token_configs.kbs]\nurl = \"u\"\ntee_key_algorithm = \"{name}\"\n");
            let kbs = AaConfig::parse(&text).unwrap().token_configs.kbs.unwrap();
            assert_eq!(kbs.tee_key_algorithm, algorithm);
        }
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_name() {
        for (text, reason) in [
            ("[token_configs.kbs]\nurl = \"u\"\ncertificate = \"x\"\n", "certificate"),
            ("[token_configs.kbs]\ncert = \"x\"\n", "url"),
            ("[eventlog_config]\npath = \"/x\"\n", "path"),
            ("[token_configs.kbs]\nurl = \"u\"\ntee_key_algorithm = \"RSA1_5\"\n", "RSA1_5"),
            ("nonsense", "aa.toml"),
        ] {
            let error = AaConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn kbc_parameters_name_the_kbs() {
        let config = AaConfig::from_kbc_params("cc_kbc::http://10.0.0.1:8080").unwrap();
        assert_eq!(config.token_configs.kbs.unwrap().url, "http://10.0.0.1:8080");
        assert!(AaConfig::from_kbc_params("offline_fs_kbc::null").is_err());
    }
}
