//! What Azure's confidential VMs have in common: the vTPM, whose key the hardware's report in the vTPM vouches for.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use wire::evidence::{AzTpmQuote, HclReport};

use crate::Error;
use crate::attester::padded;
use crate::machine::Machine;
use crate::pcrs::Pcrs;
use crate::tpm_device::TpmDevice;

/// A confidential VM.
#[derive(Debug)]
pub(crate) struct Azure {
    machine: Machine,
    pub(crate) pcrs: Pcrs,
    /// The metadata service, without a slash at the end.
    pub(crate) metadata: String,
    /// How often the report is looked at, and how long to wait in between.
    patience: (u32, Duration),
}

impl Azure {
    /// The report that the vTPM has, if this is a confidential VM.
    ///
    /// # Errors
    /// Why the vTPM did not answer, or [`Error::Malformed`] for a report of neither TEE.
    pub(crate) fn report(machine: &Machine) -> Result<Option<HclReport>, Error> {
        let Some(mut device) = TpmDevice::open(machine)? else { return Ok(None) };
        device.nv_read(REPORT)?.map(|bytes| parsed(&bytes)).transpose()
    }

    pub(crate) fn new(machine: &Machine) -> Self {
        Self {
            machine: machine.clone(),
            pcrs: Pcrs::new(machine),
            metadata: METADATA.to_owned(),
            patience: (100, Duration::from_millis(100)),
        }
    }

    /// A VM with another metadata service, that waits for nothing.
    #[cfg(test)]
    pub(crate) fn for_test(machine: &Machine, metadata: String) -> Self {
        Self { metadata, patience: (3, Duration::ZERO), ..Self::new(machine) }
    }

    /// A report that is bound to `report_data`.
    ///
    /// The host makes it some time after the data was written to the vTPM, and tells nobody: it is looked for until it
    /// has the data.
    pub(crate) fn fresh_report(&self, report_data: &[u8]) -> Result<HclReport, Error> {
        let mut device = TpmDevice::required(&self.machine)?;
        let user_data = padded(report_data);
        device.nv_write(USER_DATA, &user_data)?;
        let (looks, pause) = self.patience;
        for _ in 0..looks {
            let bytes = device.nv_read(REPORT)?.ok_or_else(|| Error::malformed(WHAT, "it is gone from the vTPM"))?;
            let report = parsed(&bytes)?;
            if report.user_data().is_some_and(|bound| bound == user_data) {
                return Ok(report);
            }
            std::thread::sleep(pause);
        }
        Err(Error::malformed(WHAT, format!("it was not bound to new data within {:?}", pause * looks)))
    }

    pub(crate) fn quote(&self, report_data: &[u8]) -> Result<AzTpmQuote, Error> {
        let quote = TpmDevice::required(&self.machine)?.quote(KEY, report_data)?;
        Ok(AzTpmQuote {
            signature: hex::encode(quote.raw_signature),
            message: hex::encode(quote.message),
            pcrs: quote.pcrs.iter().map(hex::encode).collect(),
        })
    }
}

/// Byte strings of Azure's evidence, other than those of the quote.
pub(crate) fn encoded(bytes: &[u8]) -> String {
    URL_SAFE.encode(bytes)
}

fn parsed(bytes: &[u8]) -> Result<HclReport, Error> {
    HclReport::parse(bytes).map_err(|e| Error::malformed(WHAT, e))
}

/// Of evidence: the report is bound to the report data, as well as the quote.
pub(crate) const EVIDENCE_VERSION: u32 = 2;
/// Answers of the metadata service are certificates and quotes.
pub(crate) const MAX_ANSWER: usize = 256 << 10;
const WHAT: &str = "the vTPM's HCL report";
const METADATA: &str = "http://169.254.169.254";
/// Persistent handle of the vTPM's attestation key.
const KEY: u32 = 0x8100_0003;
/// NV indices.
const REPORT: u32 = 0x0140_0001;
const USER_DATA: u32 = 0x0140_0002;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::swtpm::Swtpm;

    /// A vTPM with a key, and a report of the kind that is bound to `report_data`.
    pub(crate) fn vtpm(kind: u32, report_data: &[u8]) -> Option<Swtpm> {
        let swtpm = Swtpm::start()?;
        swtpm.attestation_key(KEY);
        swtpm.device().nv_write(REPORT, &report(kind, report_data)).unwrap();
        Some(swtpm)
    }

    pub(crate) fn report(kind: u32, report_data: &[u8]) -> Vec<u8> {
        let variable = format!(r#"{{"user-data":"{}"}}"#, hex::encode_upper(padded(report_data)));
        let mut bytes = b"HCLA".to_vec();
        bytes.resize(32 + 1184, 4);
        for number in [0, 1, kind, 1, variable.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(variable.as_bytes());
        bytes
    }

    #[test]
    fn a_vtpm_without_the_report_is_no_confidential_vm() {
        let Some(swtpm) = Swtpm::start() else { return };
        assert!(Azure::report(&swtpm.machine()).unwrap().is_none());
    }

    #[test]
    fn a_report_that_stays_bound_to_other_data_is_refused() {
        let Some(swtpm) = vtpm(2, &[1; 48]) else { return };
        let azure = Azure::for_test(&swtpm.machine(), String::new());
        assert!(azure.fresh_report(&[1; 48]).is_ok());
        let error = azure.fresh_report(&[2; 48]).unwrap_err().to_string();
        assert!(error.contains("not bound"), "{error}");
    }
}
