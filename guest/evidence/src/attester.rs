//! The attester of a guest: its primary TEE and the devices beside it.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value};
use wire::event_log::MAX_LOG;
use wire::rcar::Tee;

use crate::machine::Machine;
use crate::sample::Sample;
use crate::{Binding, Error, InitDataDigest, Registers, detect};

/// Collects the evidence of the TEE that the guest runs in, and of the devices attached to it.
///
/// Every method may block on the hardware for up to seconds: async callers use a thread that may.
#[derive(Debug)]
pub struct Attester {
    primary: Box<dyn Collector>,
    devices: Vec<Box<dyn Device>>,
    /// The agent's event log, if evidence is to carry it.
    event_log: Option<PathBuf>,
}

impl Attester {
    /// The attester of machines without a TEE: evidence that anyone can make.
    ///
    /// Its registers are memory of this value. They make event logs work where there is no hardware, and prove
    /// nothing.
    pub fn sample() -> Self {
        Self { primary: Box::new(Sample::new()), devices: Vec::new(), event_log: None }
    }

    /// Finds the TEE, and the devices beside it, by the traces that they leave in the file system under `root`, which
    /// is `/` in a guest.
    ///
    /// Without any trace this is the sample attester, with a warning. A trace of a TEE that has no attester is an
    /// error: to go on as a sample would throw the hardware's protection away in silence. NVIDIA's GPUs
    /// are attested through NVIDIA's own libraries alone: they are left out, with a warning.
    ///
    /// # Errors
    /// [`Error::NoAttester`]; or why a TPM that the environment names, or Azure's, did not answer.
    pub fn detect(root: &Path) -> Result<Self, Error> {
        let machine = Machine::new(root);
        let primary = detect::primary(&machine)?;
        let devices = detect::devices(&machine, primary.tee())?;
        let event_log = machine.variable("AAEL_PATH").unwrap_or(EVENT_LOG);
        let event_log = Some(root.join(event_log.trim_start_matches('/')));
        Ok(Self { primary, devices, event_log })
    }

    /// Takes the guest's own event log (AAEL), which evidence of TDX and CSV carries, from `path` instead of the
    /// environment's `AAEL_PATH` or, by default, `/run/attestation-agent/eventlog`.
    #[must_use]
    pub fn with_event_log(mut self, path: PathBuf) -> Self {
        self.event_log = Some(path);
        self
    }

    /// The TEE's name in attestations.
    pub fn tee(&self) -> Tee {
        self.primary.tee()
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
        let primary = &self.primary;
        let limit = primary.max_report_data();
        if report_data.len() > limit {
            return Err(Error::ReportData { length: report_data.len(), limit });
        }
        let aael = if primary.carries_event_log() { self.agent_log()? } else { None };
        primary.evidence(report_data, aael.as_deref())
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
        let evidence = |device: &dyn Device| Ok((device.tee().to_string(), device.evidence(report_data)?));
        self.devices.iter().map(|device| evidence(&**device)).collect::<Result<_, _>>().map(Some)
    }

    /// The runtime measurement registers; `None` where the TEE has none.
    pub fn registers(&self) -> Option<&dyn Registers> {
        self.primary.registers()
    }

    /// Binds the guest to its initdata: compares `digest` with what the hardware was launched with, or, on a TPM,
    /// extends PCR 8 with it. On a TPM that must happen once a boot, which is the caller's to keep.
    ///
    /// # Errors
    /// [`Error::InitData`] if the hardware holds another digest: the caller must end then, as the host gave the
    /// guest an initdata that its owner did not choose. Otherwise as [`Attester::evidence`].
    pub fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        self.primary.check_initdata(digest)
    }

    /// What the agent has logged so far; nothing if it has not started to.
    fn agent_log(&self) -> Result<Option<Vec<u8>>, Error> {
        let Some(path) = &self.event_log else { return Ok(None) };
        let mut log = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_LOG as u64 + 1).read_to_end(&mut log));
        match read {
            Ok(read) if read > MAX_LOG => Err(io::Error::from(ErrorKind::FileTooLarge)),
            Ok(_) => Ok(Some(log).filter(|log| !log.is_empty())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
        .map_err(|e| Error::file(&path.display().to_string(), &e))
    }
}

/// What an attester does for its TEE.
pub(crate) trait Collector: fmt::Debug + Send + Sync {
    fn tee(&self) -> Tee;

    /// How many bytes of report data evidence can carry.
    fn max_report_data(&self) -> usize {
        MAX_REPORT_DATA
    }

    /// Whether evidence has the event logs in it.
    fn carries_event_log(&self) -> bool {
        false
    }

    /// Evidence over `report_data` of at most [`Collector::max_report_data`] bytes, with the agent's event log.
    fn evidence(&self, report_data: &[u8], aael: Option<&[u8]>) -> Result<Value, Error>;

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

/// Evidence as it goes to the verifier.
pub(crate) fn json(evidence: &impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(evidence).map_err(|e| Error::Json(e.to_string()))
}

/// Report data as fields of 64 bytes hold it: cut off or padded with zeros on the right.
pub(crate) fn padded(report_data: &[u8]) -> [u8; MAX_REPORT_DATA] {
    std::array::from_fn(|i| report_data.get(i).copied().unwrap_or_default())
}

/// Report data of every TEE but [`Tee::Se`] fits in 64 bytes.
pub const MAX_REPORT_DATA: usize = 64;

/// The agent's event log, unless `AAEL_PATH` says otherwise.
const EVENT_LOG: &str = "/run/attestation-agent/eventlog";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeKernel, Tsm};
    use crate::sample::SampleDevice;
    use crate::tdx::Tdx;

    #[test]
    fn a_machine_without_a_tee_is_a_sample() {
        let root = tempfile::tempdir().unwrap();
        let attester = Attester::detect(root.path()).unwrap();
        assert_eq!(attester.tee(), Tee::Sample);
    }

    #[test]
    fn hardware_is_found_by_its_files() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("sys/devices/platform/sev-guest")).unwrap();
        assert_eq!(Attester::detect(root.path()).unwrap().tee(), Tee::Snp);
    }

    #[test]
    fn the_agents_log_goes_with_the_evidence_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("eventlog");
        let kernel = FakeKernel::new().tsm(Tsm::new("tdx_guest", <[u8]>::to_vec));
        let tdx = Tdx::new(&kernel.machine().0);
        let attester = Attester { primary: Box::new(tdx), ..Attester::sample() }.with_event_log(path.clone());

        assert_eq!(attester.evidence(&[1]).unwrap()["cc_eventlog"], Value::Null);
        std::fs::write(&path, "agent's").unwrap();
        assert!(attester.evidence(&[1]).unwrap()["cc_eventlog"].is_string());
        std::fs::write(&path, vec![0; MAX_LOG + 1]).unwrap();
        assert!(matches!(attester.evidence(&[1]), Err(Error::File { .. })));
    }

    #[test]
    fn the_event_log_is_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let attester = Attester::detect(root.path()).unwrap();
        assert_eq!(attester.event_log.unwrap(), root.path().join("run/attestation-agent/eventlog"));
    }

    #[test]
    fn a_sample_has_registers_and_no_binding() {
        let (attester, other) = (Attester::sample(), Attester::sample());
        let registers = attester.registers().unwrap();
        registers.extend(registers.map(registers.default_pcr()).unwrap(), &[1; 48]).unwrap();

        assert_ne!(registers.read(17).unwrap(), [0; 48]);
        assert_eq!(other.registers().unwrap().read(17).unwrap(), [0; 48]);
        let digest = InitDataDigest::new(&[1; 32]).unwrap();
        assert_eq!(attester.check_initdata(&digest).unwrap(), Binding::Unsupported);
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
