//! Evidence of Azure's confidential VMs: a vTPM's quote, and the hardware's report that vouches for the vTPM's key.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Error;

/// Evidence of a VM on SEV-SNP.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AzSnpVtpmEvidence {
    /// 2: the report data is in the HCL report too. 1: it is in the quote alone.
    pub version: u32,
    /// The vTPM's quote.
    pub tpm_quote: AzTpmQuote,
    /// An [`HclReport`] in base64url with padding.
    pub hcl_report: String,
    /// The chip's certificate: DER in base64url with padding.
    pub vcek: String,
}

/// Evidence of a VM on TDX.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AzTdxVtpmEvidence {
    /// As in [`AzSnpVtpmEvidence`].
    pub version: u32,
    /// The vTPM's quote.
    pub tpm_quote: AzTpmQuote,
    /// An [`HclReport`] in base64url with padding.
    pub hcl_report: String,
    /// The DCAP quote in base64url with padding.
    pub td_quote: String,
}

/// A quote over PCRs 0 to 23 of the SHA-256 bank. Everything is hexadecimal.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AzTpmQuote {
    /// An RSA signature, PKCS #1 v1.5 with SHA-256.
    pub signature: String,
    /// A marshalled `TPMS_ATTEST`.
    pub message: String,
    /// The PCRs.
    pub pcrs: Vec<String>,
}

/// What the host compatibility layer keeps in the vTPM: the hardware's report, and the data that it is bound to.
///
/// Layout: a header of 32 bytes; the report, 1184 bytes; then, each 4 bytes and little endian, length, version, type of
/// report (2 is SEV-SNP, 4 is TDX), type of hash (1 is SHA-256) and length of the variable data, which ends the report.
#[derive(Clone, Debug, PartialEq)]
pub struct HclReport {
    bytes: Vec<u8>,
    variable_data: Value,
    is_tdx: bool,
}

impl HclReport {
    /// Reads the contents of the vTPM's index.
    ///
    /// # Errors
    /// [`Error`] if it is cut short, of neither TEE, or its variable data is not JSON.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let short = || Error::field(WHAT, format!("it ends after {} bytes", bytes.len()));
        if !bytes.starts_with(SIGNATURE) {
            return Err(Error::field(WHAT, "it does not start with \"HCLA\""));
        }
        let is_tdx = match number(REQUEST + 8).ok_or_else(short)? {
            REPORT_SNP => false,
            REPORT_TDX => true,
            other => return Err(Error::field(WHAT, format!("its report has type {other}, neither SEV-SNP nor TDX"))),
        };
        let length = number(REQUEST + 16).ok_or_else(short)? as usize;
        let variable = bytes.get(VARIABLE..).and_then(|rest| rest.get(..length)).ok_or_else(short)?;
        let variable_data = serde_json::from_slice(variable)
            .map_err(|e| Error::field(WHAT, format!("its variable data is not JSON (column {})", e.column())))?;
        Ok(Self { bytes: bytes.to_vec(), variable_data, is_tdx })
    }

    /// Whether the report is one of TDX; it is one of SEV-SNP else.
    pub fn is_tdx(&self) -> bool {
        self.is_tdx
    }

    /// The hardware's report: SEV-SNP's of 1184 bytes, or a `TDREPORT` of 1024 bytes.
    pub fn hardware_report(&self) -> &[u8] {
        let length = if self.is_tdx { TD_REPORT } else { SNP_REPORT };
        &self.bytes[HEADER..HEADER + length]
    }

    /// The `user-data` that the report is bound to, if the layer is new enough.
    pub fn user_data(&self) -> Option<Vec<u8>> {
        hex::decode(self.variable_data.get("user-data")?.as_str()?).ok()
    }

    /// All of it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

const WHAT: &str = "the HCL report";
const SIGNATURE: &[u8] = b"HCLA";
const HEADER: usize = 32;
const SNP_REPORT: usize = 1184;
const TD_REPORT: usize = 1024;
const REQUEST: usize = HEADER + SNP_REPORT;
const VARIABLE: usize = REQUEST + 20;
const REPORT_SNP: u32 = 2;
const REPORT_TDX: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE;
    use proptest::prelude::*;

    fn report(kind: u32, variable: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.resize(REQUEST, 7);
        for number in [0, 1, kind, 1, variable.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(variable);
        bytes.extend([0; 100]);
        bytes
    }

    #[test]
    fn a_report_tells_its_tee_and_its_user_data() {
        let snp = HclReport::parse(&report(REPORT_SNP, br#"{"user-data":"0AFF"}"#)).unwrap();
        assert_eq!(
            (snp.is_tdx(), snp.user_data(), snp.hardware_report()),
            (false, Some(vec![10, 255]), &[7; 1184][..])
        );

        let tdx = HclReport::parse(&report(REPORT_TDX, b"{}")).unwrap();
        assert_eq!((tdx.is_tdx(), tdx.user_data(), tdx.hardware_report()), (true, None, &[7; 1024][..]));
    }

    #[test]
    fn what_is_not_a_report_is_refused_with_its_reason() {
        let whole = report(REPORT_SNP, b"{}");
        for (bytes, reason) in [
            (b"HCLB".to_vec(), "HCLA"),
            (whole[..REQUEST + 10].to_vec(), "ends after"),
            (whole[..VARIABLE + 1].to_vec(), "ends after"),
            (report(3, b"{}"), "type 3"),
            (report(REPORT_SNP, b"{"), "not JSON"),
        ] {
            let error = HclReport::parse(&bytes).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn real_evidence_has_the_form_and_a_report_of_its_tee() {
        let Some(evidence) = vector("az-snp-vtpm/evidence-v1.json") else { return };
        let snp: AzSnpVtpmEvidence = serde_json::from_value(evidence.clone()).unwrap();
        assert_eq!(serde_json::to_value(&snp).unwrap(), evidence);
        let report = HclReport::parse(&URL_SAFE.decode(snp.hcl_report).unwrap()).unwrap();
        assert!(!report.is_tdx());
        super::super::SnpReport::parse(report.hardware_report()).unwrap();

        let Some(evidence) = vector("az-tdx-vtpm/evidence-v1.json") else { return };
        let tdx: AzTdxVtpmEvidence = serde_json::from_value(evidence.clone()).unwrap();
        assert_eq!(serde_json::to_value(&tdx).unwrap(), evidence);
        assert!(HclReport::parse(&URL_SAFE.decode(tdx.hcl_report).unwrap()).unwrap().is_tdx());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
            let _ = HclReport::parse(&[SIGNATURE, &bytes].concat());
        }
    }

    fn vector(name: &str) -> Option<Value> {
        super::super::tests::vector(name).map(|bytes| serde_json::from_slice(&bytes).unwrap())
    }
}
