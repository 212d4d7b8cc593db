//! Hygon CSV: reports of the security processor and its RTMRs, through the driver's device.

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::event_log::cc_event_log;
use wire::evidence::{CsvCertChain, CsvEvidence, CsvReport, HskCek, RegisterAlgorithm};
use wire::rcar::Tee;

use crate::attester::{Collector, json, padded};
use crate::http::{self, Request};
use crate::machine::{Call, CsvRegisterCommand, Machine};
use crate::registers::{checked_digest, checked_pcr};
use crate::{Error, Registers};

/// A guest of CSV.
#[derive(Debug)]
pub(crate) struct Csv {
    machine: Machine,
    /// Where the chips' certificates are, if evidence shall carry them.
    certificates: Option<String>,
}

impl Csv {
    pub(crate) fn new(machine: &Machine) -> Self {
        let wanted = machine.variable(INCLUDE_CERTIFICATES) == Some("true");
        Self { machine: machine.clone(), certificates: wanted.then(|| CERTIFICATES.to_owned()) }
    }

    fn report(&self, report_data: &[u8]) -> Result<CsvReport, Error> {
        // Firmware that has registers also has reports with them.
        let is_extended = self.command(CsvRegisterCommand::Status, &mut [0; 3]).is_ok();
        let mut nonce = [0; 16];
        rand::fill(&mut nonce).map_err(|_| Error::malformed("the random generator", "it gave nothing"))?;
        let mut page = CsvReport::request(&padded(report_data), &nonce, is_extended);
        self.machine.kernel().call(DEVICE, Call::CsvReport { page: &mut page }).map_err(|e| Error::file(DEVICE, &e))?;
        CsvReport::open(page, &nonce, is_extended).map_err(|e| Error::malformed(WHAT, e))
    }

    /// Hygon's certificates for the chip.
    fn hsk_cek(&self, service: &str, serial_number: &[u8]) -> Result<HskCek, Error> {
        let text: Vec<u8> = serial_number.iter().copied().take_while(|byte| *byte != 0).collect();
        if text.is_empty() || !text.iter().all(u8::is_ascii_alphanumeric) {
            return Err(Error::malformed(WHAT, "its serial number is not one of letters and digits"));
        }
        let url = format!("{service}{}", String::from_utf8_lossy(&text));
        let certificates = http::fetch(Request::Get { url: &url, headers: &[] }, MAX_CERTIFICATES)?;
        HskCek::parse(&certificates).map_err(|e| Error::malformed("the chip's certificates", e))
    }

    fn command(&self, command: CsvRegisterCommand, buffer: &mut [u8]) -> Result<(), Error> {
        let call = Call::CsvRegister { command, buffer };
        self.machine.kernel().call(DEVICE, call).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL) => Error::NotSupported(format!("{DEVICE} has no registers: {e}")),
            _ => Error::file(DEVICE, &e),
        })
    }
}

impl Collector for Csv {
    fn tee(&self) -> Tee {
        Tee::Csv
    }

    fn carries_event_log(&self) -> bool {
        true
    }

    fn evidence(&self, report_data: &[u8], aael: Option<&[u8]>) -> Result<Value, Error> {
        let attestation_report = self.report(report_data)?;
        let signer = attestation_report.signer().map_err(|e| Error::malformed(WHAT, e))?;
        let hsk_cek = match &self.certificates {
            Some(service) => Some(self.hsk_cek(service, &signer.serial_number.0)?),
            None => None,
        };
        let ccel = self.machine.find(CCEL, MAX_CCEL)?;
        json(&CsvEvidence {
            attestation_report,
            cert_chain: CsvCertChain { hsk_cek, pek: signer.pek },
            serial_number: signer.serial_number,
            cc_eventlog: cc_event_log(ccel.as_deref(), aael).map(|log| STANDARD.encode(log)),
        })
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }
}

impl Registers for Csv {
    fn map(&self, pcr: u32) -> Result<u32, Error> {
        Ok(match checked_pcr(pcr)? {
            0 => 0,
            1 | 7 => 1,
            2..=6 => 2,
            8..=15 => 3,
            _ => 4,
        })
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        RegisterAlgorithm::Sm3
    }

    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), Error> {
        let register = register(index)?;
        if register == 0 {
            return Err(Error::Register { index, reason: "is the launch's measurement, and fixed".to_owned() });
        }
        checked_digest(digest, RegisterAlgorithm::Sm3)?;
        let mut buffer = [&[register, 0][..], &(digest.len() as u16).to_le_bytes(), digest].concat();
        self.command(CsvRegisterCommand::Extend, &mut buffer)
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, Error> {
        let mut buffer = [0; 36];
        buffer[..4].copy_from_slice(&(1_u32 << register(index)?).to_le_bytes());
        self.command(CsvRegisterCommand::Read, &mut buffer)?;
        Ok(buffer[4..].to_vec())
    }
}

fn register(index: u32) -> Result<u8, Error> {
    match index {
        0..=4 => Ok(index as u8),
        _ => Err(Error::Register { index, reason: "is not one of CSV's, which are 0 to 4".to_owned() }),
    }
}

/// The driver's device.
pub(crate) const DEVICE: &str = "/dev/csv-guest";
const WHAT: &str = "the CSV report";
const CCEL: &str = "/sys/firmware/acpi/tables/data/CCEL";
const MAX_CCEL: usize = 16 << 20;
/// Set to `true`, evidence carries the chip's certificates, for verifiers without a way to Hygon's service.
const INCLUDE_CERTIFICATES: &str = "CSV_INCLUDE_CERT_CHAIN_IN_ATTESTATION_REPORT";
const CERTIFICATES: &str = "https://cert.hygon.cn/hsk_cek?snumber=";
const MAX_CERTIFICATES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;
    use crate::http::tests::Server;
    use hmac::{Hmac, KeyInit as _, Mac as _};
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    /// A security processor of version 2, or 1 without registers.
    fn device(has_registers: bool) -> FakeKernel {
        let registers = Mutex::new(BTreeMap::<u8, Vec<u8>>::new());
        FakeKernel::new().device(DEVICE, move |call| match call {
            Call::CsvReport { page } => {
                let request = *page;
                let signer = if has_registers { 0x490 } else { 0x150 };
                page.fill(0);
                page[0x40..0x80].copy_from_slice(&request[..64]);
                page[0x80..0x90].copy_from_slice(&request[64..80]);
                page[signer..signer + 2084].fill(0x11);
                page[signer + 2084..signer + 2089].copy_from_slice(b"KPA64");
                let mac = Hmac::<sm3::Sm3>::new_from_slice(&request[64..80]).unwrap();
                let mac = mac.chain_update(&page[signer..signer + 2180]).finalize().into_bytes();
                page[signer + 2180..signer + 2212].copy_from_slice(&mac);
                Ok(())
            }
            Call::CsvRegister { .. } if !has_registers => Err(std::io::Error::from_raw_os_error(libc::ENOTTY)),
            Call::CsvRegister { command: CsvRegisterCommand::Status, .. } => Ok(()),
            Call::CsvRegister { command: CsvRegisterCommand::Extend, buffer } => {
                assert_eq!(buffer[1..4], [0, 32, 0]);
                registers.lock().unwrap().insert(buffer[0], buffer[4..].to_vec());
                Ok(())
            }
            Call::CsvRegister { command: CsvRegisterCommand::Read, buffer } => {
                let index = buffer[0].trailing_zeros() as u8;
                buffer[4..].copy_from_slice(&registers.lock().unwrap()[&index]);
                Ok(())
            }
            call => panic!("{call:?}"),
        })
    }

    #[test]
    fn evidence_has_the_report_its_signer_and_the_log() {
        for has_registers in [true, false] {
            let csv = Csv::new(&device(has_registers).machine().0);

            let json = csv.evidence(&[7; 48], Some(b"agent's")).unwrap();

            assert!(json["cert_chain"].get("hsk_cek").is_none());
            let evidence: CsvEvidence = serde_json::from_value(json).unwrap();
            assert_eq!(evidence.attestation_report.flags, u32::from(has_registers));
            assert_eq!(evidence.attestation_report.data.0[0x40..0x80], padded(&[7; 48]));
            assert_eq!(
                (evidence.cert_chain.pek.body.ver, &evidence.serial_number.0[..5]),
                (0x1111_1111, &b"KPA64"[..])
            );
            assert!(evidence.cc_eventlog.is_some());
        }
    }

    #[test]
    fn the_chips_certificates_come_along_on_demand() {
        let server = Server::start(vec![(200, vec![9; 832 + 2084])]);
        let machine = device(true).machine().0.with_variables(&[(INCLUDE_CERTIFICATES, "true")]);
        let mut csv = Csv::new(&machine);
        assert_eq!(csv.certificates.as_deref(), Some(CERTIFICATES));
        csv.certificates = Some(format!("{}/hsk_cek?snumber=", server.url()));

        let evidence: CsvEvidence = serde_json::from_value(csv.evidence(&[7; 48], None).unwrap()).unwrap();

        assert_eq!(evidence.cert_chain.hsk_cek.unwrap().hsk.body.preamble.ver, 0x0909_0909);
        assert!(server.requests()[0].starts_with("GET /hsk_cek?snumber=KPA64 HTTP/1.1\r\n"));
    }

    #[test]
    fn a_serial_number_is_no_way_into_the_url() {
        let csv = Csv::new(&device(true).machine().0);
        for serial_number in [&b"\0"[..], b"a&b\0", b"../x\0", b"a b\0"] {
            let error = csv.hsk_cek("http://127.0.0.1:1/", serial_number).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{error}");
        }
    }

    #[test]
    fn pcrs_map_to_registers_as_firmware_has_it() {
        let csv = Csv::new(&device(true).machine().0);
        let mapped: Vec<u32> = (0..24).map(|pcr| csv.map(pcr).unwrap()).collect();
        assert_eq!(mapped, [0, 1, 2, 2, 2, 2, 2, 1, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]);
        assert!(csv.map(24).is_err());
    }

    #[test]
    fn registers_are_extended_and_read_by_their_index() {
        let csv = Csv::new(&device(true).machine().0);
        csv.extend(4, &[5; 32]).unwrap();
        assert_eq!(csv.read(4).unwrap(), [5; 32]);
        for index in [0, 5] {
            assert!(matches!(csv.extend(index, &[5; 32]), Err(Error::Register { .. })));
        }
        assert!(matches!(csv.extend(4, &[5; 48]), Err(Error::Digest { .. })));
        assert!(matches!(csv.read(5), Err(Error::Register { .. })));
    }

    #[test]
    fn firmware_without_registers_says_so() {
        let csv = Csv::new(&device(false).machine().0);
        assert!(matches!(csv.extend(4, &[5; 32]), Err(Error::NotSupported(_))));
        assert!(matches!(csv.read(4), Err(Error::NotSupported(_))));
    }
}
