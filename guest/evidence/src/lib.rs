//! Attesters: find out which TEE the guest runs in and collect its evidence, one module a TEE.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod detect;
mod sample;

use std::path::Path;

use serde_json::Value;
use wire::rcar::Tee;

/// Collects the evidence of the TEE that the guest runs in.
#[derive(Debug)]
pub enum Attester {
    /// No TEE: evidence that anyone can make.
    Sample,
}

impl Attester {
    /// Finds the TEE by the traces that it leaves in the file system under `root`, which is `/` in a guest.
    ///
    /// Without any trace this is the sample attester, with a warning. A trace of a TEE that has no attester is an
    /// error: to go on as a sample would throw the hardware's protection away in silence.
    ///
    /// # Errors
    /// [`Error::NoAttester`].
    pub fn detect(root: &Path) -> Result<Self, Error> {
        match detect::tee(root) {
            Some(trace) => Err(Error::NoAttester { tee: trace.tee, trace: trace.path }),
            None => {
                tracing::warn!("no TEE found: sample evidence proves nothing, use it for tests alone");
                Ok(Self::Sample)
            }
        }
    }

    /// The TEE's name in attestations.
    pub fn tee(&self) -> Tee {
        match self {
            Self::Sample => Tee::Sample,
        }
    }

    /// Evidence that carries `report_data`, in the form that the TEE's verifier reads. May block on the hardware.
    ///
    /// # Errors
    /// [`Error::ReportData`] if it is longer than the [`MAX_REPORT_DATA`] bytes that a TEE can carry.
    pub fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        if report_data.len() > MAX_REPORT_DATA {
            return Err(Error::ReportData(report_data.len()));
        }
        match self {
            Self::Sample => sample::evidence(report_data),
        }
    }
}

/// Why there is no evidence.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Hardware was found that no attester knows.
    #[error(
        "{trace} says that this is a TEE of kind {tee}, for which there is no attester yet; next: use a guest of kind sample on hardware without a TEE"
    )]
    NoAttester {
        /// What was found.
        tee: Tee,
        /// The file that gave it away.
        trace: String,
    },
    /// More report data than fits.
    #[error("report data of {0} bytes; a TEE carries at most {MAX_REPORT_DATA}")]
    ReportData(usize),
    /// Evidence that has no JSON form.
    #[error("evidence can't be written as JSON: {0}")]
    Json(String),
}

/// Report data of every TEE fits in 64 bytes.
pub const MAX_REPORT_DATA: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_tee_is_a_sample() {
        let root = tempfile::tempdir().unwrap();
        let attester = Attester::detect(root.path()).unwrap();
        assert_eq!(attester.tee(), Tee::Sample);
    }

    #[test]
    fn hardware_without_an_attester_is_an_error_that_names_it() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/devices/platform/sev-guest")).unwrap();

        let error = Attester::detect(root.path()).unwrap_err().to_string();

        assert!(error.contains("kind snp") && error.contains("/sys/devices/platform/sev-guest"), "{error}");
    }

    #[test]
    fn report_data_is_bounded() {
        assert!(matches!(Attester::Sample.evidence(&[0; 65]), Err(Error::ReportData(65))));
    }
}
