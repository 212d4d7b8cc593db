//! Configuration files: those of a key broker, an attestation service and a provider of reference values.
//!
//! Sections and keys are those that such files have had before, and more. [`reference`] prints them all.

pub mod admin;
pub mod attestation;
pub mod http_server;
pub mod reference;
pub mod storage;

mod format;
mod plugins;
mod retired;
mod section;
mod unknown;

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use admin::{Admin, AuthorizationMode, Tenant};
use attestation::{AttestationService, AttestationToken, RvpsConfig, ServiceType, TokenBroker, VerifierConfig};
use format::Document;
use http_server::HttpServer;
pub use plugins::Plugin;
use section::{Documented, sections};
use storage::{StorageBackend, StorageType};

sections! {
    /// The configuration of `trustee serve`.
    pub struct Config {
        /// Where clients connect.
        pub http_server: HttpServer,
        /// Where data is kept.
        pub storage_backend: StorageBackend,
        /// Accepted for the sake of older files: sessions travel with the client, sealed, and need no storage.
        pub session_storage_type: Option<StorageType>,
        /// Who verifies evidence. Without this section guests bring tokens that were issued elsewhere (passport mode).
        pub attestation_service: Option<AttestationService>,
        /// Whose attestation tokens are good, besides those of the built-in attestation service.
        pub attestation_token: AttestationToken,
        /// Who may administer.
        pub admin: Admin,
        /// Owners who share this Trustee and can't see each other.
        pub tenants: Vec<Tenant>,
        /// What is put on record.
        pub audit: Audit,
        /// Plugins, each with its name. The plugin `resource` is always there, with storage_backend_type = "kvstorage"
        /// if nothing else is said.
        pub plugins: Vec<Map<String, Value>>,
    }

    /// What is put on record.
    pub struct Audit {
        /// The audit log's file. Created with mode 0600. Without it, `audit.jsonl` in the folder of the storage, or in
        /// the working directory if the storage has no folder.
        pub path: Option<PathBuf>,
    }

    /// The configuration of an attestation service alone, `grpc-as` or `restful-as`.
    pub struct AsConfig {
        /// Where policies, signing keys and reference values are kept.
        pub storage_backend: StorageBackend,
        /// The tokens that are issued.
        pub attestation_token_broker: TokenBroker,
        /// Reference values.
        pub rvps_config: RvpsConfig,
        /// What verifiers of hardware TEEs will be told.
        pub verifier_config: VerifierConfig,
        /// Accept evidence of the sample TEE, which anyone can make. For tests only.
        pub sample_verifier: bool,
    }

    /// The configuration of a provider of reference values alone, `rvps`.
    pub struct ProviderConfig {
        /// Where reference values are kept.
        pub storage: StorageBackend,
        /// Extractors and their settings. All extractors are always there, none has settings.
        pub extractors: Map<String, Value>,
        /// Files with public keys or certificates in PEM, whose signed messages are taken.
        pub trusted_signers: Vec<PathBuf>,
        /// Take messages that nobody signed, from whoever reaches the port.
        pub allow_unsigned: bool,
    }
}

/// A configuration as it was read, and what its owner should know about it.
pub struct Read<T> {
    pub config: T,
    pub warnings: Vec<String>,
}

/// A configuration that is a file of its own.
pub trait File: DeserializeOwned + Default + Documented {
    /// Puts keys of older files in the place of today's; says what it did.
    fn modernize(document: &mut Document) -> Result<Vec<String>, String>;

    /// What turns the sample verifier on, if this role has verifiers.
    fn sample_verifier(&mut self) -> Option<&mut bool>;

    /// Checks what the types can't say, and returns warnings.
    fn check(&self, document: &Document) -> Result<Vec<String>, String>;

    /// Reads a file in TOML, YAML or JSON, as its name says.
    ///
    /// # Errors
    /// [`Error`] with the file's name, the key, and what is wrong with it.
    fn read(path: &Path) -> Result<Read<Self>, Error> {
        let wrong = |reason: String| Error::Content { path: path.to_owned(), reason };
        let mut document = Document::read(path)?;
        let mut warnings = Self::modernize(&mut document).map_err(wrong)?;
        let mut config: Self = serde_path_to_error::deserialize(document.value())
            .map_err(|e| wrong(unknown::explain(&e, &Self::nested())))?;
        config.obey_variable();
        warnings.extend(config.check(&document).map_err(wrong)?);
        Ok(Read { config, warnings })
    }

    /// What is there without a file.
    fn without_file() -> Read<Self> {
        let mut config = Self::default();
        config.obey_variable();
        let open = config.sample_verifier().is_some_and(|on| *on).then(|| SAMPLE.to_owned());
        let lost = "no configuration file: everything is lost when this ends".to_owned();
        Read { config, warnings: [lost].into_iter().chain(open).collect() }
    }

    /// Turns the sample verifier on where the variable says so: the files of foreign tests have no key for it.
    fn obey_variable(&mut self) {
        if std::env::var_os(SAMPLE_VARIABLE).is_some_and(|value| value == "1")
            && let Some(on) = self.sample_verifier()
        {
            *on = true;
        }
    }
}

impl File for Config {
    fn modernize(document: &mut Document) -> Result<Vec<String>, String> {
        retired::of_broker(document)
    }

    fn sample_verifier(&mut self) -> Option<&mut bool> {
        let service = self.attestation_service.as_mut().filter(|service| service.r#type == ServiceType::BuiltIn);
        service.map(|service| &mut service.sample_verifier)
    }

    fn check(&self, document: &Document) -> Result<Vec<String>, String> {
        let mut warnings = Vec::new();
        self.http_server.check()?;
        self.storage_backend.check()?;
        if let Some(kind) = self.session_storage_type {
            kind.check("session_storage_type")?;
            warnings.push("session_storage_type says nothing: sessions travel with the client, sealed".to_owned());
        }
        if let Some(service) = &self.attestation_service {
            service.check()?;
            let given = document.value()["attestation_service"].as_object();
            for key in given.map(|given| service.strays(given)).unwrap_or_default() {
                warnings.push(format!("attestation_service.{key} says nothing under this type of service"));
            }
            let map = given.and_then(|given| given.get("policy_id_map")).and_then(Value::as_object);
            for (wanted, ids) in map.into_iter().flatten() {
                if ids.as_array().is_some_and(|ids| ids.len() > 1) {
                    warnings.push(format!(
                        "attestation_service.policy_id_map.{wanted:.60} has several policies: only the first one counts"
                    ));
                }
            }
            warnings.extend(verifiers(given.and_then(|given| given.get("verifier_config")), service.sample_verifier));
        }
        self.admin.check(&self.tenants)?;
        if let Some(i) = self.tenants.iter().position(|tenant| tenant.name.is_none()) {
            return Err(format!("tenants[{i}] needs name"));
        }
        self.plugins()?;
        if self.admin.authorization_mode == AuthorizationMode::InsecureAllowAll {
            warnings.push("admin.authorization_mode is InsecureAllowAll: anybody can read and change all".to_owned());
        }
        if self.storage_backend.storage_type == StorageType::Memory {
            warnings.push("storage_backend.storage_type is Memory: everything is lost when this ends".to_owned());
        }
        if self.attestation_token.insecure_header_jwk {
            warnings
                .push("attestation_token.insecure_header_jwk is on: anyone can issue the tokens it accepts".to_owned());
        }
        Ok(warnings)
    }
}

impl Config {
    /// The audit log's file.
    pub fn audit_path(&self) -> PathBuf {
        let beside = || self.storage_backend.directory().unwrap_or(Path::new("")).join("audit.jsonl");
        self.audit.path.clone().unwrap_or_else(beside)
    }

    /// The plugins with their settings.
    ///
    /// # Errors
    /// A sentence that names the plugin and the key.
    pub fn plugins(&self) -> Result<Vec<Plugin>, String> {
        self.plugins.iter().enumerate().map(|(i, plugin)| Plugin::read(i, plugin)).collect()
    }
}

impl File for AsConfig {
    fn modernize(document: &mut Document) -> Result<Vec<String>, String> {
        retired::of_attestation_service(document)
    }

    fn sample_verifier(&mut self) -> Option<&mut bool> {
        Some(&mut self.sample_verifier)
    }

    fn check(&self, document: &Document) -> Result<Vec<String>, String> {
        self.storage_backend.check()?;
        self.attestation_token_broker.check()?;
        self.rvps_config.check()?;
        Ok(verifiers(document.value().get("verifier_config"), self.sample_verifier))
    }
}

impl File for ProviderConfig {
    fn modernize(document: &mut Document) -> Result<Vec<String>, String> {
        retired::of_provider(document)
    }

    fn sample_verifier(&mut self) -> Option<&mut bool> {
        None
    }

    fn check(&self, _: &Document) -> Result<Vec<String>, String> {
        self.storage.check()?;
        attestation::extractors(&self.extractors)?;
        let unsigned = "allow_unsigned is on: whoever reaches the port can change reference values".to_owned();
        Ok(self.allow_unsigned.then_some(unsigned).into_iter().collect())
    }
}

/// What the owner should know about verifiers.
fn verifiers(given: Option<&Value>, sample: bool) -> Vec<String> {
    let given = given.and_then(Value::as_object).into_iter().flatten();
    let absent =
        given.map(|(name, _)| format!("verifier_config.{name} says nothing: this version has no such verifier"));
    absent.chain(sample.then(|| SAMPLE.to_owned())).collect()
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: {} can't be read: {source}; next: give the file that trustee setup wrote, or your own", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("configuration: {} has no ending that tells its format; next: name it .toml, .yaml or .json", .0.display())]
    Format(PathBuf),
    #[error("configuration: {}: {reason}; next: correct it there", path.display())]
    Content { path: PathBuf, reason: String },
}

const SAMPLE_VARIABLE: &str = "TRUSTEE_SAMPLE_VERIFIER";
const SAMPLE: &str = "the sample verifier is on, by its key or by TRUSTEE_SAMPLE_VERIFIER: anyone can make the evidence \
                      it accepts";

#[cfg(test)]
mod tests;
