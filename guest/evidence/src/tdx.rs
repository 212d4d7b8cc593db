//! Intel TDX: quotes through the kernel's TSM reports, and the RTMRs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::event_log::cc_event_log;
use wire::evidence::{RegisterAlgorithm, TdxEvidence};
use wire::rcar::Tee;

use crate::attester::{Collector, json};
use crate::machine::{Call, Machine};
use crate::registers::{checked_digest, checked_pcr};
use crate::{Binding, Error, InitDataDigest, Registers, tsm};

/// A trust domain.
#[derive(Debug)]
pub(crate) struct Tdx {
    machine: Machine,
}

impl Tdx {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }

    /// A field of the domain's own report: 48 bytes at an offset.
    fn report_field(&self, offset: usize) -> Result<[u8; 48], Error> {
        let mut report = [0; 1024];
        let call = Call::TdxReport { report_data: &[0; 64], report: &mut report };
        self.machine.kernel().call(DEVICE, call).map_err(|e| Error::file(DEVICE, &e))?;
        Ok(std::array::from_fn(|i| report[offset + i]))
    }

    /// A measurement that the kernel shows as a file, from Linux 6.16 on.
    fn measurement(&self, name: &str) -> Result<Option<[u8; 48]>, Error> {
        let Some(bytes) = self.machine.find(&format!("{MEASUREMENTS}/{name}"), 48)? else { return Ok(None) };
        let length = bytes.len();
        let field = bytes
            .try_into()
            .map_err(|_| Error::malformed("a TDX measurement", format!("it has {length} bytes, not 48")))?;
        Ok(Some(field))
    }
}

impl Collector for Tdx {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn carries_event_log(&self) -> bool {
        true
    }

    fn evidence(&self, report_data: &[u8], aael: Option<&[u8]>) -> Result<Value, Error> {
        let quote = tsm::report(&self.machine, PROVIDER, report_data)?.outblob;
        let ccel = self.machine.find(CCEL, MAX_CCEL)?;
        let log = cc_event_log(ccel.as_deref(), aael);
        json(&TdxEvidence { cc_eventlog: log.map(|log| STANDARD.encode(log)), quote: STANDARD.encode(quote) })
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }

    fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        let held = match self.measurement("mrconfigid")? {
            Some(held) => held,
            None => self.report_field(MR_CONFIG_ID)?,
        };
        digest.matches("MRCONFIGID", &held)
    }
}

impl Registers for Tdx {
    fn map(&self, pcr: u32) -> Result<u32, Error> {
        Ok(match checked_pcr(pcr)? {
            1 | 7 => 1,
            2..=6 => 2,
            8..=15 => 3,
            _ => 4,
        })
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        RegisterAlgorithm::Sha384
    }

    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), Error> {
        let rtmr = rtmr(index)?;
        checked_digest(digest, RegisterAlgorithm::Sha384)?;
        let path = format!("{MEASUREMENTS}/rtmr{rtmr}:sha384");
        if self.machine.exists(&path) {
            return self
                .machine
                .kernel()
                .write(&path, digest)
                .map_err(|e| Error::Register { index, reason: format!("(RTMR {rtmr}) can't be extended: {e}") });
        }
        let digest: [u8; 48] = std::array::from_fn(|i| digest[i]);
        match self.machine.kernel().call(DEVICE, Call::TdxExtend { register: rtmr, digest: &digest }) {
            Ok(()) => Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENOTTY) => {
                Err(Error::NotSupported("this kernel can't extend RTMRs; Linux 6.16 can".to_owned()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                Err(Error::NotSupported(format!("neither {path} nor {DEVICE} is there")))
            }
            Err(e) => Err(Error::file(DEVICE, &e)),
        }
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, Error> {
        let rtmr = rtmr(index)?;
        Ok(match self.measurement(&format!("rtmr{rtmr}:sha384"))? {
            Some(held) => held.to_vec(),
            None => self.report_field(RTMR_0 + 48 * usize::from(rtmr))?.to_vec(),
        })
    }
}

/// Event logs count MRTD as register 0, and RTMR n as n + 1.
fn rtmr(index: u32) -> Result<u8, Error> {
    match index {
        1..=4 => Ok(index as u8 - 1),
        _ => Err(Error::Register { index, reason: "is not one of TDX's, which are 1 to 4".to_owned() }),
    }
}

/// The name of the provider of TSM reports.
pub(crate) const PROVIDER: &str = "tdx_guest";
/// The driver's device.
pub(crate) const DEVICE: &str = "/dev/tdx_guest";
const CCEL: &str = "/sys/firmware/acpi/tables/data/CCEL";
const MAX_CCEL: usize = 16 << 20;
const MEASUREMENTS: &str = "/sys/devices/virtual/misc/tdx_guest/measurements";
/// Offsets in `TDREPORT_STRUCT`: `TDINFO` starts at 512.
const MR_CONFIG_ID: usize = 512 + 64;
const RTMR_0: usize = 512 + 208;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeKernel, Tsm};

    #[test]
    fn evidence_is_the_quote_and_the_logs() {
        let kernel = FakeKernel::new().tsm(Tsm::new(PROVIDER, |inblob| [b"quote", inblob].concat()));
        let tdx = Tdx::new(&kernel.file(CCEL, firmware_log()).machine().0);

        let evidence: TdxEvidence = serde_json::from_value(tdx.evidence(&[7; 48], Some(b"agent's")).unwrap()).unwrap();

        assert_eq!(STANDARD.decode(evidence.quote).unwrap(), [&b"quote"[..], &[7; 48], &[0; 16]].concat());
        let log = STANDARD.decode(evidence.cc_eventlog.unwrap()).unwrap();
        let records = firmware_log().len() - PADDING;
        assert_eq!(log, [&firmware_log()[..records], b"agent's", &[0xff; 8]].concat());
    }

    #[test]
    fn a_guest_without_logs_says_null() {
        let tdx = Tdx::new(&FakeKernel::new().tsm(Tsm::new(PROVIDER, <[u8]>::to_vec)).machine().0);
        assert_eq!(tdx.evidence(&[7; 48], None).unwrap()["cc_eventlog"], Value::Null);
    }

    #[test]
    fn an_agents_log_alone_gets_a_header() {
        let tdx = Tdx::new(&FakeKernel::new().tsm(Tsm::new(PROVIDER, <[u8]>::to_vec)).machine().0);
        let evidence: TdxEvidence = serde_json::from_value(tdx.evidence(&[7; 48], Some(b"agent's")).unwrap()).unwrap();
        let log = STANDARD.decode(evidence.cc_eventlog.unwrap()).unwrap();
        assert_eq!((log.len(), &log[69..76]), (69 + 7 + 8, &b"agent's"[..]));
    }

    #[test]
    fn pcrs_map_to_registers_as_firmware_has_it() {
        let tdx = Tdx::new(&FakeKernel::new().machine().0);
        let mapped: Vec<u32> = (0..24).map(|pcr| tdx.map(pcr).unwrap()).collect();
        assert_eq!(mapped, [4, 1, 2, 2, 2, 2, 2, 1, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]);
        assert!(matches!(tdx.map(24), Err(Error::Register { index: 24, .. })));
    }

    #[test]
    fn a_register_is_a_file_of_the_kernel() {
        let path = format!("{MEASUREMENTS}/rtmr3:sha384");
        let (machine, kernel) = FakeKernel::new().file(&path, [9; 48]).machine();
        let tdx = Tdx::new(&machine);

        assert_eq!(tdx.read(4).unwrap(), [9; 48]);
        tdx.extend(4, &[5; 48]).unwrap();
        assert_eq!(kernel.contents(&path).unwrap(), [5; 48]);
    }

    #[test]
    fn an_older_kernel_has_ioctls() {
        let kernel = FakeKernel::new().device(DEVICE, |call| match call {
            Call::TdxReport { report, .. } => {
                report[RTMR_0 + 96..RTMR_0 + 144].fill(3);
                Ok(())
            }
            Call::TdxExtend { register: 2, digest } if *digest == [5; 48] => Ok(()),
            call => panic!("{call:?}"),
        });
        let tdx = Tdx::new(&kernel.machine().0);

        assert_eq!(tdx.read(3).unwrap(), [3; 48]);
        tdx.extend(3, &[5; 48]).unwrap();
    }

    #[test]
    fn a_kernel_that_cannot_extend_says_so() {
        let refusing = FakeKernel::new().device(DEVICE, |_| Err(std::io::Error::from_raw_os_error(libc::ENOTTY)));
        for kernel in [refusing, FakeKernel::new()] {
            let tdx = Tdx::new(&kernel.machine().0);
            assert!(matches!(tdx.extend(4, &[5; 48]), Err(Error::NotSupported(_))));
        }
    }

    #[test]
    fn only_registers_and_digests_of_tdx_are_taken() {
        let tdx = Tdx::new(&FakeKernel::new().machine().0);
        for index in [0, 5, 17, u32::MAX] {
            assert!(matches!(tdx.extend(index, &[5; 48]), Err(Error::Register { .. })));
            assert!(matches!(tdx.read(index), Err(Error::Register { .. })));
        }
        assert!(matches!(tdx.extend(4, &[5; 32]), Err(Error::Digest { length: 32, .. })));
    }

    #[test]
    fn initdata_is_compared_with_mrconfigid_from_file_or_report() {
        let held = [&[1; 32][..], &[0; 16]].concat();
        let in_report = held.clone();
        let file = FakeKernel::new().file(&format!("{MEASUREMENTS}/mrconfigid"), &held);
        let device = FakeKernel::new().device(DEVICE, move |call| match call {
            Call::TdxReport { report, .. } => {
                report[MR_CONFIG_ID..MR_CONFIG_ID + 48].copy_from_slice(&in_report);
                Ok(())
            }
            call => panic!("{call:?}"),
        });
        for kernel in [file, device] {
            let tdx = Tdx::new(&kernel.machine().0);
            let right = tdx.check_initdata(&InitDataDigest::new(&[1; 32]).unwrap());
            assert_eq!(right.unwrap(), Binding::Matched { register: "MRCONFIGID" });
            let wrong = tdx.check_initdata(&InitDataDigest::new(&[2; 32]).unwrap());
            assert!(matches!(wrong, Err(Error::InitData { register: "MRCONFIGID", .. })));
        }
    }

    #[test]
    fn a_measurement_of_another_length_is_no_match() {
        let kernel = FakeKernel::new().file(&format!("{MEASUREMENTS}/mrconfigid"), [0; 47]);
        let tdx = Tdx::new(&kernel.machine().0);
        assert!(matches!(tdx.check_initdata(&InitDataDigest::new(&[0; 32]).unwrap()), Err(Error::Malformed { .. })));
    }

    const PADDING: usize = 1000;

    /// A specification id event of one bank, in a table that is longer.
    fn firmware_log() -> Vec<u8> {
        let event = [&b"Spec ID Event03\0"[..], &[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0c, 0, 48, 0, 0]].concat();
        let mut log = [&[1, 0, 0, 0, 3, 0, 0, 0][..], &[0; 20], &(event.len() as u32).to_le_bytes(), &event].concat();
        log.extend([0xff; PADDING]);
        log
    }
}
