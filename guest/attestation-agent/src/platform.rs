//! The TEE as the agent uses it: its attester with the event log, on threads that may block.

use std::sync::{Arc, Mutex, PoisonError};

use evidence::{Attester, Binding, InitDataDigest};
use serde_json::{Map, Value};
use wire::event_log::Event;
use wire::rcar::Tee;

use crate::config::EventLogConfig;
use crate::error::Error;
use crate::event_log::EventLog;

/// Clones share one attester and one log.
#[derive(Clone)]
pub(crate) struct Platform(Arc<Inner>);

struct Inner {
    attester: Attester,
    log: Log,
    /// The digest that this guest is bound to.
    bound: Mutex<Option<(InitDataDigest, Binding)>>,
}

enum Log {
    Off,
    /// It is on, and the TEE has no register.
    NoRegisters,
    On(EventLog),
}

/// What became of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Measured {
    /// It is in the register and in the log.
    Done,
    /// The TEE has nothing to extend.
    NotSupported,
    /// The configuration has no event log.
    NotEnabled,
}

impl Platform {
    /// Opens the event log if the configuration wants one. Blocks.
    pub(crate) fn new(attester: Attester, config: &EventLogConfig) -> Result<Self, Error> {
        let attester = attester.with_event_log(config.path.clone());
        let log = match attester.registers() {
            _ if !config.enable_eventlog => Log::Off,
            None => {
                tracing::warn!(tee = %attester.tee(), "this TEE has no runtime registers: no event is measured");
                Log::NoRegisters
            }
            Some(registers) => {
                let pcr = config.init_pcr.unwrap_or_else(|| registers.default_pcr());
                registers.map(pcr)?;
                // The sample's registers are memory of this process.
                let volatile = attester.tee() == Tee::Sample;
                Log::On(EventLog::open(&config.path, pcr, volatile, registers)?)
            }
        };
        Ok(Self(Arc::new(Inner { attester, log, bound: Mutex::default() })))
    }

    pub(crate) fn tee(&self) -> Tee {
        self.0.attester.tee()
    }

    pub(crate) fn additional_tees(&self) -> Vec<Tee> {
        self.0.attester.additional_tees()
    }

    /// Evidence over `report_data`, with a log that fits the registers in it.
    pub(crate) async fn evidence(&self, report_data: Vec<u8>) -> Result<Value, Error> {
        self.blocking(move |inner| {
            let quote = || inner.attester.evidence(&report_data);
            let evidence = match (&inner.log, inner.attester.registers()) {
                (Log::On(log), Some(registers)) => log.at_rest(registers, quote)?,
                _ => quote(),
            };
            Ok(evidence?)
        })
        .await
    }

    /// Evidence of each device beside the TEE by its name; `None` without devices.
    pub(crate) async fn additional_evidence(&self, report_data: Vec<u8>) -> Result<Option<Map<String, Value>>, Error> {
        self.blocking(move |inner| Ok(inner.attester.additional_evidence(&report_data)?)).await
    }

    /// Measures an event into the register that stands for `pcr`, or for the configured one.
    pub(crate) async fn measure(&self, event: Event, pcr: Option<u64>) -> Result<Measured, Error> {
        match self.0.log {
            Log::Off => return Ok(Measured::NotEnabled),
            Log::NoRegisters => return Ok(Measured::NotSupported),
            Log::On(_) => {}
        }
        self.blocking(move |inner| {
            let (Log::On(log), Some(registers)) = (&inner.log, inner.attester.registers()) else {
                return Ok(Measured::NotSupported);
            };
            match log.extend(registers, event, pcr) {
                Ok(()) => Ok(Measured::Done),
                Err(error) if error.is_not_supported() => {
                    tracing::warn!(%error, "an event was not measured");
                    Ok(Measured::NotSupported)
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Binds the guest to its initdata, once: a PCR is extended once a boot, and another digest is refused.
    ///
    /// Blocks.
    pub(crate) fn bind(&self, digest: InitDataDigest) -> Result<Binding, Error> {
        let mut bound = self.0.bound.lock().unwrap_or_else(PoisonError::into_inner);
        match &*bound {
            Some((first, binding)) if *first == digest => Ok(*binding),
            Some(_) => Err(Error::BoundAlready),
            None => {
                let binding = match self.0.extended_by(&digest)? {
                    true => Binding::Extended { pcr: INITDATA_PCR },
                    false => self.0.attester.check_initdata(&digest)?,
                };
                match binding {
                    Binding::Unsupported => {
                        tracing::warn!(tee = %self.tee(), "this TEE has no register for initdata: nothing proves it");
                    }
                    Binding::Matched { .. } | Binding::Extended { .. } => {
                        tracing::info!(?binding, "the hardware holds the initdata's digest");
                    }
                }
                *bound = Some((digest, binding));
                Ok(binding)
            }
        }
    }

    /// [`Platform::bind`] on a thread that may block.
    pub(crate) async fn bind_aside(&self, digest: InitDataDigest) -> Result<Binding, Error> {
        let platform = self.clone();
        self.blocking(move |_| platform.bind(digest)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Inner) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || call(&inner)).await.map_err(|e| Error::GivenUp(e.to_string()))?
    }
}

impl Inner {
    /// True if an earlier process of this boot has extended the TPM by `digest`: it must not happen twice.
    fn extended_by(&self, digest: &InitDataDigest) -> Result<bool, Error> {
        let is_tpm = matches!(self.attester.tee(), Tee::AzSnpVtpm | Tee::AzTdxVtpm | Tee::Tpm);
        match self.attester.registers() {
            Some(registers) if is_tpm => {
                let algorithm = registers.algorithm();
                let once = algorithm.extended(&vec![0; algorithm.size()], digest.as_bytes());
                Ok(registers.read(INITDATA_PCR)? == once)
            }
            _ => Ok(false),
        }
    }
}

/// Where TPMs hold the initdata's digest.
const INITDATA_PCR: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_guest_whose_hardware_holds_another_initdata_is_refused() {
        let (root, platform) = tdx(&[[1; 32].as_slice(), &[0; 16]].concat());
        let digest = |byte| InitDataDigest::new(&[byte; 32]).unwrap();

        let error = platform.bind(digest(2)).unwrap_err().to_string();
        assert!(error.contains("MRCONFIGID") && error.contains("; next: "), "{error}");
        assert_eq!(platform.bind(digest(1)).unwrap(), Binding::Matched { register: "MRCONFIGID" });

        // What is bound stays bound, even if nobody could ask the hardware any longer.
        drop(root);
        assert!(platform.bind(digest(1)).is_ok());
        assert!(matches!(platform.bind(digest(2)), Err(Error::BoundAlready)));
    }

    #[tokio::test]
    async fn an_event_that_the_kernel_can_not_measure_is_not_supported() {
        let (root, platform) = tdx(&[0; 48]);
        let event = || Event::new("a", "b", "c").unwrap();
        assert_eq!(platform.measure(event(), None).await.unwrap(), Measured::NotEnabled);

        let attester = Attester::detect(root.path()).unwrap();
        let path = root.path().join("eventlog");
        let config = EventLogConfig { enable_eventlog: true, path: path.clone(), ..EventLogConfig::default() };
        let platform = Platform::new(attester, &config).unwrap();
        // There is neither a file nor a device of a register in this tree.
        assert!(!matches!(platform.measure(event(), None).await, Ok(Measured::Done)));
        assert!(fs::read(path).unwrap_or_default().is_empty());
    }

    /// A tree like that of a TDX guest whose kernel shows this register.
    fn tdx(mr_config_id: &[u8]) -> (tempfile::TempDir, Platform) {
        let root = tempfile::tempdir().unwrap();
        let measurements = root.path().join("sys/devices/virtual/misc/tdx_guest/measurements");
        fs::create_dir_all(&measurements).unwrap();
        fs::write(measurements.join("mrconfigid"), mr_config_id).unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/tdx_guest"), "").unwrap();
        let attester = Attester::detect(root.path()).unwrap();
        assert_eq!(attester.tee(), Tee::Tdx);
        (root, Platform::new(attester, &EventLogConfig::default()).unwrap())
    }
}
