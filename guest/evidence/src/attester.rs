//! The attester of a guest: its primary TEE and the devices beside it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use wire::rcar::Tee;

use crate::machine::Machine;
use crate::sample::{Sample, SampleDevice};
use crate::{Binding, Error, InitDataDigest, Registers, detect};

/// Collects the evidence of the TEE that the guest runs in, and of the devices attached to it.
///
/// Every method may block on the hardware for up to seconds: async callers use a thread that may.
#[derive(Debug)]
pub struct Attester {
    machine: Machine,
    /// `None` is the sample that the whole process shares.
    primary: Option<Box<dyn Collector>>,
    devices: Vec<Box<dyn Device>>,
}

impl Attester {
    /// The sample attester, whose registers the whole process shares. [`Attester::sample`] has its own.
    #[allow(non_upper_case_globals)]
    pub const Sample: Self = Self { machine: Machine::NONE, primary: None, devices: Vec::new() };

    /// The attester of machines without a TEE: evidence that anyone can make.
    ///
    /// Its registers are memory of this value. They make event logs work where there is no hardware, and prove
    /// nothing.
    pub fn sample() -> Self {
        Self { machine: Machine::NONE, primary: Some(Box::new(Sample::new())), devices: Vec::new() }
    }

    /// Finds the TEE, and the devices beside it, by the traces that they leave in the file system under `root`, which
    /// is `/` in a guest.
    ///
    /// Without any trace this is the sample attester, with a warning. A trace of a TEE that has no attester is an
    /// error: to go on as a sample would throw the hardware's protection away in silence.
    ///
    /// # Errors
    /// [`Error::NoAttester`].
    pub fn detect(root: &Path) -> Result<Self, Error> {
        let machine = Machine::new(root);
        let primary = match detect::tee(root) {
            Some(trace) => return Err(Error::NoAttester { tee: trace.tee, trace: trace.path }),
            None => {
                tracing::warn!("no TEE found: sample evidence proves nothing, use it for tests alone");
                Some(Box::new(Sample::new()) as Box<dyn Collector>)
            }
        };
        let devices = match machine.variable(SAMPLE_DEVICE) {
            Some(_) => vec![Box::new(SampleDevice) as Box<dyn Device>],
            None => Vec::new(),
        };
        Ok(Self { machine, primary, devices })
    }

    /// Takes the guest's own event log (AAEL), which evidence of TDX and CSV carries, from `path` instead of the
    /// environment's `AAEL_PATH` or, by default, `/run/attestation-agent/eventlog`.
    #[must_use]
    pub fn with_event_log(mut self, path: PathBuf) -> Self {
        self.machine.set_event_log(path);
        self
    }

    /// The TEE's name in attestations.
    pub fn tee(&self) -> Tee {
        self.primary().tee()
    }

    /// The devices that [`Attester::additional_evidence`] speaks for.
    pub fn additional_tees(&self) -> Vec<Tee> {
        self.devices.iter().map(|device| device.tee()).collect()
    }

    /// Evidence that carries `report_data`, in the form that the TEE's verifier reads.
    ///
    /// A TEE whose field is wider pads `report_data` with zeros on the right. For [`Tee::Se`], it is the JSON text of
    /// the verifier's request.
    ///
    /// # Errors
    /// [`Error::ReportData`] if it is longer than the TEE can carry ([`MAX_REPORT_DATA`] bytes, but for
    /// [`Tee::Se`]); otherwise what the hardware, the kernel or the cloud's metadata service refused.
    pub fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        let primary = self.primary();
        let limit = primary.max_report_data();
        if report_data.len() > limit {
            return Err(Error::ReportData { length: report_data.len(), limit });
        }
        primary.evidence(&self.machine, report_data)
    }

    /// Evidence of each device by its name, bound to `report_data`; `None` without devices.
    ///
    /// # Errors
    /// As [`Attester::evidence`], of the first device that has none.
    pub fn additional_evidence(&self, report_data: &[u8]) -> Result<Option<Map<String, Value>>, Error> {
        if self.devices.is_empty() {
            return Ok(None);
        }
        if report_data.len() > MAX_REPORT_DATA {
            return Err(Error::ReportData { length: report_data.len(), limit: MAX_REPORT_DATA });
        }
        let evidence = |device: &Box<dyn Device>| Ok((device.tee().to_string(), device.evidence(report_data)?));
        self.devices.iter().map(evidence).collect::<Result<_, _>>().map(Some)
    }

    /// The runtime measurement registers; `None` where the TEE has none.
    pub fn registers(&self) -> Option<&dyn Registers> {
        self.primary().registers()
    }

    /// Binds the guest to its initdata: compares `digest` with what the hardware was launched with, or, on a TPM,
    /// extends PCR 8 with it. On a TPM that must happen once a boot, which is the caller's to keep.
    ///
    /// # Errors
    /// [`Error::InitData`] if the hardware holds another digest: the caller must end then, as the host gave the
    /// guest an initdata that its owner did not choose. Otherwise as [`Attester::evidence`].
    pub fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        self.primary().check_initdata(digest)
    }

    fn primary(&self) -> &dyn Collector {
        static SHARED: Sample = Sample::new();
        self.primary.as_deref().unwrap_or(&SHARED)
    }
}

/// What an attester does for its TEE.
pub(crate) trait Collector: fmt::Debug + Send + Sync {
    fn tee(&self) -> Tee;

    /// How many bytes of report data evidence can carry.
    fn max_report_data(&self) -> usize {
        MAX_REPORT_DATA
    }

    /// Evidence over `report_data` of at most [`Collector::max_report_data`] bytes.
    fn evidence(&self, machine: &Machine, report_data: &[u8]) -> Result<Value, Error>;

    fn registers(&self) -> Option<&dyn Registers> {
        None
    }

    fn check_initdata(&self, _digest: &InitDataDigest) -> Result<Binding, Error> {
        Ok(Binding::Unsupported)
    }
}

/// A device beside the TEE that has evidence of its own.
pub(crate) trait Device: fmt::Debug + Send + Sync {
    fn tee(&self) -> Tee;

    /// Evidence over `report_data` of at most [`MAX_REPORT_DATA`] bytes.
    fn evidence(&self, report_data: &[u8]) -> Result<Value, Error>;
}

/// Report data of every TEE but [`Tee::Se`] fits in 64 bytes.
pub const MAX_REPORT_DATA: usize = 64;

/// Set to anything, it attaches the sample's device.
const SAMPLE_DEVICE: &str = "ENABLE_SAMPLE_DEVICE";

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
        let attester = Attester::sample();
        assert!(matches!(attester.evidence(&[0; 65]), Err(Error::ReportData { length: 65, limit: 64 })));
    }

    #[test]
    fn a_guest_without_devices_has_no_additional_evidence() {
        let attester = Attester::sample();
        assert!(attester.additional_tees().is_empty());
        assert_eq!(attester.additional_evidence(&[1]).unwrap(), None);
    }

    #[test]
    fn each_device_has_its_own_evidence_under_its_name() {
        let attester = Attester { devices: vec![Box::new(SampleDevice)], ..Attester::sample() };

        assert_eq!(attester.additional_tees(), [Tee::SampleDevice]);
        let evidence = Value::Object(attester.additional_evidence(&[1]).unwrap().unwrap());
        assert_eq!(evidence, serde_json::json!({ "sampledevice": { "svn": "2", "report_data": "AQ==" } }));
        assert!(matches!(attester.additional_evidence(&[0; 65]), Err(Error::ReportData { .. })));
    }
}
