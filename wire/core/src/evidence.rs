//! Evidence as it travels in the `primary_evidence` member of an attestation, one type per TEE.
//!
//! Byte strings are standard base64 unless a member says otherwise. What a type can't hold is refused when it is read.

mod az_vtpm;
mod bytes;
mod cca;
mod csv;
mod csv_certificate;
mod hygon_dcu;
mod nvidia;
mod register;
mod sample;
mod se;
mod sgx;
mod snp;
mod tdx;
mod tpm;

pub use az_vtpm::{AzSnpVtpmEvidence, AzTdxVtpmEvidence, AzTpmQuote, HclReport};
pub use bytes::ByteArray;
pub use cca::CcaEvidence;
pub use csv::{CsvCertChain, CsvEvidence, CsvReport, CsvSigner, HskCek};
pub use csv_certificate::{
    CsvCaBody, CsvCaCertificate, CsvCaIds, CsvCaPreamble, CsvCertificate, CsvCertificateBody, CsvCertificateData,
    CsvCertificateSignature, CsvFirmware, CsvPoint, CsvPublicKey, CsvSignature,
};
pub use hygon_dcu::{DcuReport, DcuReportBody, HygonDcuEvidence};
pub use nvidia::{NvidiaDevice, NvidiaDpuDevice, NvidiaDpuEvidence, NvidiaEvidence};
pub use register::RegisterAlgorithm;
pub use sample::SampleEvidence;
pub use se::{SeEvidence, SeRequest};
pub use sgx::SgxEvidence;
pub use snp::{SnpCertificate, SnpCertificateType, SnpEvidence, SnpReport, SnpSignature, SnpTcb, SnpVersion};
pub use tdx::TdxEvidence;
pub use tpm::{TpmEvidence, TpmQuote};

use std::fmt;

/// Why bytes of hardware or evidence can't be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Fewer or more bytes than the structure has.
    #[error("{what} has {actual} bytes, expected {expected}")]
    Length {
        /// The structure.
        what: &'static str,
        /// Its length in bytes.
        expected: usize,
        /// What was given.
        actual: usize,
    },
    /// A field with a value that is not known.
    #[error("{what}: {reason}")]
    Field {
        /// The structure.
        what: &'static str,
        /// The field and its value.
        reason: String,
    },
}

impl Error {
    fn field(what: &'static str, reason: impl fmt::Display) -> Self {
        Self::Field { what, reason: reason.to_string() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// Real data from outside of the project; `None`, with a printed reason, where it is not at hand.
    pub(crate) fn vector(name: &str) -> Option<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors").join(name);
        let bytes = std::fs::read(&path).ok();
        if bytes.is_none() {
            eprintln!("skipped: {} is not there", path.display());
        }
        bytes
    }

    #[test]
    fn members_have_their_names_on_the_wire() {
        let tdx = TdxEvidence { cc_eventlog: None, quote: "cQ==".to_owned() };
        assert_eq!(serde_json::to_string(&tdx).unwrap(), r#"{"cc_eventlog":null,"quote":"cQ=="}"#);
        let cca = CcaEvidence { token: vec![1, 255] };
        assert_eq!(serde_json::to_string(&cca).unwrap(), r#"{"token":[1,255]}"#);
        let sgx = SgxEvidence { quote: "cQ==".to_owned() };
        assert_eq!(serde_json::to_string(&sgx).unwrap(), r#"{"quote":"cQ=="}"#);
    }

    #[test]
    fn real_evidence_of_a_tpm_has_the_form() {
        let Some(bytes) = vector("tpm/tpm_evidence.json") else { return };
        let evidence: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let parsed: TpmEvidence = serde_json::from_value(evidence.clone()).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), evidence);
    }
}
