//! `[attestation_service]` and `[attestation_token]`: who verifies evidence, and whose tokens are good.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::{Deserialize as _, Deserializer, Error as _};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::section::{choice, sections};
use super::storage::StorageType;

sections! {
    /// Who verifies evidence. Without this section guests bring tokens that were issued elsewhere (passport mode).
    pub struct AttestationService {
        /// `coco_as_builtin` in this process, `coco_as_grpc` elsewhere over gRPC, `intel_ta` by Intel Trust Authority.
        pub r#type: ServiceType,
        /// How many minutes a challenge can be answered, 1 to 1440.
        pub timeout: u16 = 5,
        /// What guests may ask for as their attestation policy, and the id of the policy that they get, or a list whose
        /// first id it is. Guests that ask for nothing are appraised under `default`, those that ask for anything else
        /// are refused.
        #[serde(deserialize_with = "policies")]
        pub policy_id_map: BTreeMap<String, String>,
        /// Built in: accept evidence of the sample TEE, which anyone can make. For tests only.
        pub sample_verifier: bool,
        /// Built in: the tokens that are issued.
        pub attestation_token_broker: TokenBroker,
        /// Built in: reference values.
        pub rvps_config: RvpsConfig,
        /// Built in: what verifiers of hardware TEEs will be told.
        pub verifier_config: VerifierConfig,
        /// Built in: another kind of storage for attestation policies and signing keys, with the keys of
        /// storage_backend.backends. Without it, the one of storage_backend.
        pub storage_type: Option<StorageType>,
        /// Over gRPC: URL of the attestation service, `http://` or `https://`.
        pub as_addr: String = "http://127.0.0.1:50004".to_owned(),
        /// Over gRPC: most connections to the attestation service, 1 to 1000.
        pub pool_size: u16 = 100,
        /// Over gRPC: `tls` or `insecure`. It may be left out, and must agree with the scheme of as_addr.
        pub tls_mode: Option<TlsMode>,
        /// Over gRPC: file with the authority of the service's certificate in PEM. Without it, the system's ones. Also
        /// called ca_cert_path.
        #[serde(alias = "ca_cert_path")]
        pub ca_cert: Option<PathBuf>,
        /// Over gRPC: file with the certificate chain that is shown to the service, in PEM.
        pub client_certificate: Option<PathBuf>,
        /// Over gRPC: file with the private key of client_certificate, in PEM.
        pub client_private_key: Option<PathBuf>,
        /// Intel Trust Authority: URL of its API.
        pub base_url: Option<String>,
        /// Intel Trust Authority: key of its API.
        pub api_key: Option<Zeroizing<String>>,
        /// Intel Trust Authority: URL of its portal, or path of a JWK set, that its tokens are verified with.
        pub certs_file: Option<String>,
        /// Intel Trust Authority: policies to appraise by.
        pub policy_ids: Vec<String>,
        /// Intel Trust Authority: accept tokens of guests that match none of policy_ids.
        pub allow_unmatched_policy: bool,
    }

    /// The tokens that are issued.
    pub struct TokenBroker {
        /// How many minutes a token is valid, 1 to 1440.
        pub duration_min: u16 = 5,
        /// After how many days the next signing key is made, 1 to 3650, where keys are kept in the storage.
        pub rotation_days: u16 = 30,
        /// The token's `iss`.
        pub issuer_name: String = "CoCo-Attestation-Service".to_owned(),
        /// The token's `ear.verifier-id.developer`.
        pub developer_name: String = "https://confidentialcontainers.org".to_owned(),
        /// The token's `ear.verifier-id.build`. Without it, name and version of this program.
        pub build_name: Option<String>,
        /// The token's `eat_profile`.
        pub profile_name: String = "tag:github.com,2024:confidential-containers/Trustee".to_owned(),
        /// Put the evidence's claims into the token. Resource policies and plugins need them.
        pub verbose_token: bool = true,
        /// A signing key from outside. Without it, keys are made and kept in the storage, and rotated with
        /// `trustee rotate-signing-key`.
        pub signer: Option<Signer>,
    }

    /// A signing key from outside.
    pub struct Signer {
        /// File with the private key in PEM: EC P-256. It is read again when it changes.
        pub key_path: Option<PathBuf>,
        /// File with the key's certificate chain in PEM, leaf first; tokens carry it. It is read again when it changes.
        pub cert_path: Option<PathBuf>,
        /// URL that tokens name for the certificate chain, where cert_path is not set.
        pub cert_url: Option<String>,
    }

    /// Reference values.
    pub struct RvpsConfig {
        /// `BuiltIn` in this process, or `GrpcRemote` elsewhere over gRPC.
        pub r#type: RvpsType,
        /// Over gRPC: URL or address of the provider.
        pub address: String = "127.0.0.1:50003".to_owned(),
        /// Over gRPC: file with the authority of the provider's certificate in PEM. Without it, the system's ones.
        pub ca_cert: Option<PathBuf>,
        /// Over gRPC: file with the certificate chain that is shown to the provider, in PEM.
        pub client_certificate: Option<PathBuf>,
        /// Over gRPC: file with the private key of client_certificate, in PEM.
        pub client_private_key: Option<PathBuf>,
        /// Built in: another kind of storage for reference values, with the keys of storage_backend.backends. Without
        /// it, the one of storage_backend.
        pub storage_type: Option<StorageType>,
        /// Built in: extractors and their settings. All extractors are always there, none has settings.
        pub extractors: Map<String, Value>,
        /// Built in: files with public keys or certificates in PEM, whose signed messages are taken.
        pub trusted_signers: Vec<PathBuf>,
        /// Built in: take messages that nobody signed. Without it, only from administrators of a key broker that has
        /// no trusted_signers; the other roles ask nobody who they are.
        pub allow_unsigned: Option<bool>,
    }

    /// What verifiers of hardware TEEs will be told. This version has none of them: it accepts the keys, and says so at
    /// its start.
    pub struct VerifierConfig {
        /// AMD SEV-SNP.
        pub snp_verifier: SnpVerifier,
        /// Intel TDX and SGX.
        pub dcap_verifier: DcapVerifier,
        /// TPM.
        pub tpm_verifier: TpmVerifier,
        /// NVIDIA GPUs.
        pub nvidia_verifier: NvidiaVerifier,
        /// NVIDIA DPUs.
        pub nvidia_dpu_verifier: NvidiaDpuVerifier,
    }

    /// AMD SEV-SNP.
    pub struct SnpVerifier {
        /// Where certificates of processors come from, in order.
        pub vcek_sources: Vec<VcekSource> = vec![VcekSource::default()],
    }

    /// A place of processors' certificates.
    pub struct VcekSource {
        /// `KDS` is AMD's service, `OfflineStore` a folder.
        pub r#type: VcekSourceType,
        /// KDS: another URL of the service.
        pub base_url: Option<String>,
        /// OfflineStore: the folder, with `vcek/<hardware id>/vcek.der`.
        pub path: PathBuf = "/opt/confidential-containers/attestation-service/kds-store".into(),
    }

    /// Intel TDX and SGX.
    pub struct DcapVerifier {
        /// URL of a PCS or PCCS, or `file://` with the collateral of Intel's PCS client tool. Without it, Intel's PCS.
        pub collateral_service: Option<String>,
        /// Whether the service must show a certificate that the system trusts.
        pub use_secure_cert: bool = true,
        /// `early` appraises by the newest TCB information, `standard` by the one that platforms had time to reach.
        pub tcb_update_type: TcbUpdateType,
    }

    /// TPM.
    pub struct TpmVerifier {
        /// Folder with the attestation keys that are trusted, in PEM.
        pub trusted_ak_keys_dir: PathBuf = "/etc/tpm/trusted_ak_keys".into(),
        /// Most keys in that folder.
        pub max_trusted_ak_keys: u32 = 100,
    }

    /// NVIDIA GPUs.
    pub struct NvidiaVerifier {
        /// `Local` verifies here, `Remote` asks NVIDIA's service.
        pub r#type: NvidiaVerifierType,
        /// URL of the service.
        pub verifier_url: String = "https://nras.attestation.nvidia.com/v4/attest".to_owned(),
    }

    /// NVIDIA DPUs.
    pub struct NvidiaDpuVerifier {
        /// File with the root certificate in PEM.
        pub root_ca_cert_path: Option<PathBuf>,
        /// How many seconds old evidence's certificate may be.
        pub max_cert_age_secs: Option<u64>,
    }

    /// Whose attestation tokens are good, besides those of the built-in attestation service.
    pub struct AttestationToken {
        /// Files with certificates in PEM; the chain in a token's header must lead to one. They are read again when
        /// they change.
        pub trusted_certs_paths: Vec<PathBuf>,
        /// JWK sets or issuers of OpenID Connect: `file://` or `https://`. They are read again when they change, when
        /// their time is up, and when a token names an unknown key.
        pub trusted_jwk_sets: Vec<String>,
        /// Trust the key in a token's own header, which makes every token good. For tests only.
        pub insecure_header_jwk: bool,
        /// More JSON pointers to the guest's key in a token.
        pub extra_teekey_paths: Vec<String>,
        /// Encrypt to guests that ask for RSA PKCS#1 v1.5, which leaks the secret where its user leaks errors.
        pub allow_rsa1_5: bool,
    }
}

choice! {
    /// Who verifies evidence.
    pub enum ServiceType {
        /// This process.
        #[default]
        #[serde(rename = "coco_as_builtin")]
        BuiltIn,
        /// A service over gRPC.
        #[serde(rename = "coco_as_grpc")]
        Grpc,
        /// Intel Trust Authority.
        #[serde(rename = "intel_ta")]
        Intel,
    }
}

choice! {
    /// Whether a connection is under TLS.
    pub enum TlsMode {
        /// It is not.
        #[default]
        #[serde(rename = "insecure")]
        Insecure,
        /// It is.
        #[serde(rename = "tls")]
        Tls,
    }
}

choice! {
    /// Where reference values are.
    pub enum RvpsType {
        /// In this process.
        #[default]
        BuiltIn,
        /// At a provider over gRPC.
        GrpcRemote,
    }
}

choice! {
    /// Where processors' certificates come from.
    pub enum VcekSourceType {
        /// AMD's service.
        #[default]
        #[serde(rename = "KDS")]
        Kds,
        /// A folder.
        OfflineStore,
    }
}

choice! {
    /// Which TCB information counts.
    pub enum TcbUpdateType {
        /// The newest.
        #[default]
        #[serde(rename = "early")]
        Early,
        /// The one that platforms had time to reach.
        #[serde(rename = "standard")]
        Standard,
    }
}

choice! {
    /// Who verifies evidence of GPUs.
    pub enum NvidiaVerifierType {
        /// This process.
        #[default]
        Local,
        /// NVIDIA's service.
        Remote,
    }
}

impl AttestationService {
    pub(super) fn check(&self) -> Result<(), String> {
        let refused = |text: &str| Err(format!("[attestation_service] {text}"));
        if !(1..=1440).contains(&self.timeout) {
            return refused("timeout must be 1 to 1440 minutes");
        }
        if self.tls_mode.is_some_and(|mode| (mode == TlsMode::Tls) != self.as_addr.starts_with("https://")) {
            return refused("tls_mode and as_addr disagree: write https:// with \"tls\", http:// with \"insecure\"");
        }
        if !(1..=1000).contains(&self.pool_size) {
            return refused("pool_size must be 1 to 1000");
        }
        if let Some(kind) = self.storage_type {
            kind.check("attestation_service.storage_type")?;
        }
        let intel = [self.base_url.is_some(), self.api_key.is_some(), self.certs_file.is_some()];
        if self.r#type == ServiceType::Intel && intel.contains(&false) {
            return refused("type = \"intel_ta\" needs base_url, api_key and certs_file");
        }
        self.attestation_token_broker.check()?;
        self.rvps_config.check()
    }

    /// Keys that say nothing under another type.
    pub(super) fn strays(&self, given: &Map<String, Value>) -> Vec<String> {
        let of_type = |key: &str| match key {
            "sample_verifier" | "attestation_token_broker" | "rvps_config" | "verifier_config" | "storage_type" => {
                Some(ServiceType::BuiltIn)
            }
            "as_addr" | "pool_size" | "tls_mode" | "ca_cert" | "ca_cert_path" | "client_certificate"
            | "client_private_key" => Some(ServiceType::Grpc),
            "base_url" | "api_key" | "certs_file" | "policy_ids" | "allow_unmatched_policy" => Some(ServiceType::Intel),
            _ => None,
        };
        given.keys().filter(|key| of_type(key).is_some_and(|kind| kind != self.r#type)).cloned().collect()
    }
}

impl TokenBroker {
    pub(super) fn check(&self) -> Result<(), String> {
        if !(1..=1440).contains(&self.duration_min) {
            return Err("[attestation_token_broker] duration_min must be 1 to 1440".to_owned());
        }
        if !(1..=3650).contains(&self.rotation_days) {
            return Err("[attestation_token_broker] rotation_days must be 1 to 3650".to_owned());
        }
        if self.signer.as_ref().is_some_and(|signer| signer.key_path.is_none()) {
            return Err("[attestation_token_broker.signer] needs key_path".to_owned());
        }
        Ok(())
    }
}

impl RvpsConfig {
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(kind) = self.storage_type {
            kind.check("rvps_config.storage_type")?;
        }
        extractors(&self.extractors)
    }
}

/// Evidence is appraised under one policy: of a list the first one counts.
fn policies<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged, expecting = "it must be the id of a policy, or a list of ids")]
    enum Policies {
        One(String),
        Several(Vec<String>),
    }
    let given = BTreeMap::<String, Policies>::deserialize(deserializer)?;
    let first = |(wanted, policies): (String, Policies)| match policies {
        Policies::One(id) => Ok((wanted, id)),
        Policies::Several(ids) => match ids.into_iter().next() {
            Some(id) => Ok((wanted, id)),
            None => Err(D::Error::custom(format!("{wanted:.60?} has no policy"))),
        },
    };
    given.into_iter().map(first).collect()
}

/// All extractors are always there: what names another, is a mistake.
pub(super) fn extractors(extractors: &Map<String, Value>) -> Result<(), String> {
    const KNOWN: [&str; 3] = ["sample_extractor", "swid_extractor", "corim_extractor"];
    match extractors.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        Some(name) => Err(format!("extractors: {name:.100?} is no extractor; there are {}", KNOWN.join(", "))),
        None => Ok(()),
    }
}
