//! RCAR, the attestation handshake between guest and key broker (request, challenge, attestation, response),
//! protocol version 0.4.0.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// The only version of the protocol that is spoken.
pub const VERSION: &str = "0.4.0";

/// What the guest sends first, to `/auth`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Request {
    /// [`VERSION`].
    pub version: String,
    /// The TEE that the evidence will come from.
    pub tee: Tee,
    /// Any JSON; guests offer their hash algorithms here.
    #[serde(rename = "extra-params", default)]
    pub extra_params: Value,
}

impl Request {
    /// The request of a guest of this version.
    pub fn new(tee: Tee) -> Self {
        let extra_params = json!({ "supported-hash-algorithms": ["sha256", "sha384", "sha512"] });
        Self { version: VERSION.to_owned(), tee, extra_params }
    }
}

/// The broker's answer to a [`Request`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Challenge {
    /// 32 random bytes in standard base64 (IBM SE: a JSON document).
    pub nonce: String,
    /// `""` unless the broker selects a hash algorithm.
    #[serde(rename = "extra-params", default)]
    pub extra_params: Value,
}

impl Challenge {
    /// The hash algorithm for report data: SHA-384 unless the broker selected another.
    ///
    /// # Errors
    /// [`Error::HashAlgorithm`] if it selected one that we can't compute.
    pub fn hash_algorithm(&self) -> Result<HashAlgorithm, Error> {
        match self.extra_params.get("selected-hash-algorithm") {
            None | Some(Value::Null) => Ok(HashAlgorithm::default()),
            Some(Value::String(name)) => name.to_ascii_lowercase().parse(),
            Some(_) => Err(Error::HashAlgorithm("not a string".to_owned())),
        }
    }
}

/// What the guest sends second, to `/attest`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Attestation {
    /// The initdata document whose digest the hardware holds.
    #[serde(rename = "init-data", default)]
    pub init_data: Option<InitDataBody>,
    /// What the evidence's report data is a hash of.
    #[serde(rename = "runtime-data")]
    pub runtime_data: RuntimeData,
    /// The evidence itself.
    #[serde(rename = "tee-evidence")]
    pub tee_evidence: TeeEvidence,
}

/// An initdata document in an [`Attestation`].
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct InitDataBody {
    /// `toml`.
    pub format: String,
    /// The exact text.
    pub body: String,
}

/// Nonce and key that the evidence is bound to.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RuntimeData {
    /// The nonce of the [`Challenge`].
    pub nonce: String,
    /// The guest's public key, a JWK. Kept as it came: its hash covers members that are unknown to us.
    #[serde(rename = "tee-pubkey")]
    pub tee_pubkey: Value,
}

impl RuntimeData {
    /// Report data of the primary evidence: the hash over the canonical JSON (RFC 8785) of nonce, key and the
    /// additional evidence, exactly as it is sent.
    ///
    /// # Errors
    /// [`Error::Canonical`] for a key that has no canonical form, such as one with NaN-like numbers.
    pub fn report_data(&self, additional_evidence: &str, algorithm: HashAlgorithm) -> Result<Vec<u8>, Error> {
        let bound = json!({
            "additional-evidence": additional_evidence,
            "nonce": self.nonce,
            "tee-pubkey": self.tee_pubkey,
        });
        Ok(algorithm.digest(&canonical(&bound)?))
    }

    /// Report data of additional devices: as [`RuntimeData::report_data`], without additional evidence.
    ///
    /// # Errors
    /// As [`RuntimeData::report_data`].
    pub fn device_report_data(&self, algorithm: HashAlgorithm) -> Result<Vec<u8>, Error> {
        Ok(algorithm.digest(&canonical(&json!({ "nonce": self.nonce, "tee-pubkey": self.tee_pubkey }))?))
    }
}

/// The guest's evidence.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TeeEvidence {
    /// Evidence of the TEE, in the form that its verifier knows.
    pub primary_evidence: Value,
    /// Empty, or the text of a JSON object from device to evidence.
    #[serde(default)]
    pub additional_evidence: String,
}

/// The broker's answer to an [`Attestation`].
#[derive(Clone, Deserialize, Serialize)]
pub struct TokenResponse {
    /// The attestation token, a compact JWS.
    pub token: String,
}

/// The body of every refusal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ErrorInformation {
    /// URL whose last segment is the kind of error.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened, for a person.
    pub detail: String,
}

impl ErrorInformation {
    /// An error of the given variant, such as `PolicyDeny`.
    pub fn new(variant: &str, detail: impl Into<String>) -> Self {
        Self { kind: format!("{ERROR_TYPE}{variant}"), detail: detail.into() }
    }

    /// The variant's name.
    pub fn variant(&self) -> &str {
        self.kind.rsplit('/').next().unwrap_or_default()
    }
}

/// Kinds of trusted execution environments and devices, by their names on the wire.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tee {
    /// Azure confidential VM on AMD SEV-SNP with a vTPM.
    AzSnpVtpm,
    /// Azure confidential VM on Intel TDX with a vTPM.
    AzTdxVtpm,
    /// Arm Confidential Compute Architecture.
    Cca,
    /// Hygon Commercial Secure Virtualization.
    Csv,
    /// Hygon DCU accelerator.
    #[serde(rename = "hygondcu")]
    HygonDcu,
    /// NVIDIA GPUs and switches.
    Nvidia,
    /// NVIDIA DPU.
    #[serde(alias = "nvidiadpu")]
    NvidiaDpu,
    /// No TEE: evidence that anyone can make.
    Sample,
    /// The sample TEE's device.
    #[serde(rename = "sampledevice")]
    SampleDevice,
    /// IBM Secure Execution.
    Se,
    /// Intel SGX.
    Sgx,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// A TPM 2.0.
    Tpm,
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl FromStr for Tee {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::deserialize(Value::from(name))
            .map_err(|_| Error::Tee(name.chars().take(40).flat_map(char::escape_default).collect()))
    }
}

/// Hash algorithms for report data.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// SHA-256, 32 bytes.
    Sha256,
    /// SHA-384, 48 bytes.
    #[default]
    Sha384,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl HashAlgorithm {
    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(data).to_vec(),
            Self::Sha384 => Sha384::digest(data).to_vec(),
            Self::Sha512 => Sha512::digest(data).to_vec(),
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

impl FromStr for HashAlgorithm {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::deserialize(Value::from(name))
            .map_err(|_| Error::HashAlgorithm(name.chars().take(40).flat_map(char::escape_default).collect()))
    }
}

/// Why a message of the handshake can't be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("\"{0}\" is not the name of a TEE")]
    Tee(String),
    #[error("hash algorithm \"{0}\" is not known; sha256, sha384 and sha512 are")]
    HashAlgorithm(String),
    #[error("the key in the runtime data has no canonical JSON form")]
    Canonical,
}

fn canonical(value: &Value) -> Result<Vec<u8>, Error> {
    serde_json_canonicalizer::to_vec(value).map_err(|_| Error::Canonical)
}

const ERROR_TYPE: &str = "https://github.com/confidential-containers/kbs/errors/";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_json_is_hashed_as_published() {
        let value = json!({ "c": { "d": "e" }, "b": 1, "a": "test" });
        assert_eq!(
            hex::encode(HashAlgorithm::Sha384.digest(&canonical(&value).unwrap())),
            "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c4597480a186427c813ca941da78870c3"
        );
    }

    #[test]
    fn report_data_covers_every_bound_member() {
        let data = RuntimeData { nonce: "n".to_owned(), tee_pubkey: json!({ "kty": "EC", "future": 1 }) };
        let bound = data.report_data("", HashAlgorithm::Sha384).unwrap();
        assert_eq!(bound.len(), 48);

        let without_member = RuntimeData { tee_pubkey: json!({ "kty": "EC" }), ..data.clone() };
        assert_ne!(bound, without_member.report_data("", HashAlgorithm::Sha384).unwrap());
        assert_ne!(bound, data.report_data("{}", HashAlgorithm::Sha384).unwrap());
        assert_ne!(bound, data.device_report_data(HashAlgorithm::Sha384).unwrap());
    }

    #[test]
    fn names_on_the_wire_are_exact() {
        for (tee, name) in [
            (Tee::AzSnpVtpm, "az-snp-vtpm"),
            (Tee::HygonDcu, "hygondcu"),
            (Tee::NvidiaDpu, "nvidia-dpu"),
            (Tee::SampleDevice, "sampledevice"),
            (Tee::Se, "se"),
        ] {
            assert_eq!(tee.to_string(), name);
            assert_eq!(name.parse::<Tee>().unwrap(), tee);
        }
        assert_eq!("nvidiadpu".parse::<Tee>().unwrap(), Tee::NvidiaDpu);
        assert!("Sample".parse::<Tee>().is_err());

        let request = serde_json::to_value(Request::new(Tee::Sample)).unwrap();
        assert_eq!(request["version"], "0.4.0");
        assert_eq!(request["extra-params"]["supported-hash-algorithms"][1], "sha384");
    }

    #[test]
    fn an_attestation_of_an_upstream_guest_is_read() {
        let text = r#"{"init-data":null,"runtime-data":{"nonce":"n","tee-pubkey":{"kty":"EC"}},
            "tee-evidence":{"primary_evidence":{"svn":"1"},"additional_evidence":""}}"#;
        let attestation: Attestation = serde_json::from_str(text).unwrap();
        assert_eq!(attestation.init_data, None);
        assert_eq!(attestation.tee_evidence.primary_evidence["svn"], "1");
    }

    #[test]
    fn the_challenge_selects_the_hash() {
        for (params, expected) in [
            (json!(""), Ok(HashAlgorithm::Sha384)),
            (json!({ "selected-hash-algorithm": "SHA512" }), Ok(HashAlgorithm::Sha512)),
            (json!({ "selected-hash-algorithm": "md5" }), Err(Error::HashAlgorithm("md5".to_owned()))),
        ] {
            let challenge = Challenge { nonce: String::new(), extra_params: params };
            assert_eq!(challenge.hash_algorithm(), expected);
        }
    }

    #[test]
    fn an_error_names_its_variant() {
        let error = ErrorInformation::new("PolicyDeny", "no");
        assert_eq!(error.variant(), "PolicyDeny");
        assert!(serde_json::to_string(&error).unwrap().starts_with("{\"type\":\"https://github.com/"));
    }
}
