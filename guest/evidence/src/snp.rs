//! AMD SEV-SNP: reports and the host's certificates, through the kernel's TSM reports or its older device.

use serde_json::Value;
use wire::evidence::{SnpCertificate, SnpEvidence, SnpReport};
use wire::rcar::Tee;

use crate::attester::{Collector, json, padded};
use crate::machine::{Call, Machine};
use crate::{Binding, Error, InitDataDigest, tsm};

/// A guest of SEV-SNP.
#[derive(Debug)]
pub(crate) struct Snp {
    machine: Machine,
}

impl Snp {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }

    /// A report, and the certificate table as the host gave it.
    fn report(&self, report_data: &[u8]) -> Result<(SnpReport, Vec<u8>), Error> {
        if tsm::provider(&self.machine).as_deref() == Some(PROVIDER) {
            let report = tsm::report(&self.machine, PROVIDER, report_data)?;
            return Ok((parsed(&report.outblob)?, report.auxblob));
        }
        let (mut response, mut certificates) = ([0; 4000], Vec::new());
        let report_data = &padded(report_data);
        let call = Call::SnpReport { report_data, response: &mut response, certificates: &mut certificates };
        self.machine.kernel().call(DEVICE, call).map_err(|e| Error::file(DEVICE, &e))?;
        // The firmware's message: status, length and a reserved field come before the report.
        let [status, length] = [0, 4].map(|at| u32::from_le_bytes(std::array::from_fn(|i| response[at + i])));
        if status != 0 {
            return Err(Error::malformed(WHAT, format!("the firmware refused with status {status:#x}")));
        }
        let report = response[MESSAGE_HEADER..].get(..length as usize);
        let report = report.ok_or_else(|| Error::malformed(WHAT, format!("it claims {length} bytes")))?;
        Ok((parsed(report)?, certificates))
    }
}

impl Collector for Snp {
    fn tee(&self) -> Tee {
        Tee::Snp
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        let (attestation_report, table) = self.report(report_data)?;
        let certificates =
            SnpCertificate::parse_table(&table).map_err(|e| Error::malformed("the host's certificate table", e))?;
        json(&SnpEvidence { attestation_report, cert_chain: Some(certificates).filter(|list| !list.is_empty()) })
    }

    fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        let (report, _) = self.report(&[])?;
        digest.matches("HOST_DATA", &report.host_data.0)
    }
}

fn parsed(report: &[u8]) -> Result<SnpReport, Error> {
    SnpReport::parse(report).map_err(|e| Error::malformed(WHAT, e))
}

/// The name of the provider of TSM reports.
pub(crate) const PROVIDER: &str = "sev_guest";
/// The driver's device.
pub(crate) const DEVICE: &str = "/dev/sev-guest";
const WHAT: &str = "the SEV-SNP report";
const MESSAGE_HEADER: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeKernel, Tsm};

    /// A report of version 3 with the report data, on a host that set host data.
    fn report(report_data: &[u8]) -> Vec<u8> {
        let mut report = vec![0; 1184];
        report[0] = 3;
        report[0x50..0x90].copy_from_slice(report_data);
        report[0xc0..0xe0].fill(6);
        report
    }

    /// A table of one certificate, the chip's.
    fn table() -> Vec<u8> {
        let guid = [0x8d, 0x75, 0xda, 0x63, 0x64, 0xe6, 0x64, 0x45, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd];
        [&guid[..], &[48, 0, 0, 0, 2, 0, 0, 0], &[0; 24], b"\x30\x00"].concat()
    }

    fn by_tsm() -> FakeKernel {
        FakeKernel::new().tsm(Tsm::new(PROVIDER, report).auxblob(table()))
    }

    fn by_device() -> FakeKernel {
        FakeKernel::new().device(DEVICE, |call| match call {
            Call::SnpReport { report_data, response, certificates } => {
                response[4..8].copy_from_slice(&1184_u32.to_le_bytes());
                response[32..32 + 1184].copy_from_slice(&report(report_data));
                certificates.extend(table());
                Ok(())
            }
            call => panic!("{call:?}"),
        })
    }

    #[test]
    fn both_interfaces_give_the_same_evidence() {
        for kernel in [by_tsm(), by_device()] {
            let evidence = Snp::new(&kernel.machine().0).evidence(&[7; 48], None).unwrap();

            let parsed: SnpEvidence = serde_json::from_value(evidence).unwrap();
            assert_eq!(parsed.attestation_report.report_data.0[..], [&[7; 48][..], &[0; 16]].concat());
            let certificates = serde_json::to_value(parsed.cert_chain).unwrap();
            assert_eq!(certificates, serde_json::json!([{ "cert_type": "VCEK", "data": [0x30, 0] }]));
        }
    }

    #[test]
    fn a_host_without_certificates_gives_null() {
        let kernel = FakeKernel::new().tsm(Tsm::new(PROVIDER, report));
        let evidence = Snp::new(&kernel.machine().0).evidence(&[7; 48], None).unwrap();
        assert_eq!(evidence["cert_chain"], Value::Null);
    }

    #[test]
    fn initdata_is_compared_with_host_data() {
        for kernel in [by_tsm(), by_device()] {
            let snp = Snp::new(&kernel.machine().0);
            let right = snp.check_initdata(&InitDataDigest::new(&[6; 48]).unwrap());
            assert_eq!(right.unwrap(), Binding::Matched { register: "HOST_DATA" });
            let wrong = snp.check_initdata(&InitDataDigest::new(&[5; 32]).unwrap());
            assert!(matches!(wrong, Err(Error::InitData { register: "HOST_DATA", .. })));
        }
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let short = FakeKernel::new().tsm(Tsm::new(PROVIDER, <[u8]>::to_vec));
        let refused = FakeKernel::new().device(DEVICE, |call| match call {
            Call::SnpReport { response, .. } => {
                response[0] = 0x16;
                Ok(())
            }
            call => panic!("{call:?}"),
        });
        let endless = FakeKernel::new().device(DEVICE, |call| match call {
            Call::SnpReport { response, .. } => {
                response[4..8].fill(0xff);
                Ok(())
            }
            call => panic!("{call:?}"),
        });
        for (kernel, reason) in [(short, "64 bytes"), (refused, "status 0x16"), (endless, "claims")] {
            let error = Snp::new(&kernel.machine().0).evidence(&[], None).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let error = Snp::new(&FakeKernel::new().machine().0).evidence(&[], None).unwrap_err().to_string();
        assert!(error.contains(DEVICE), "{error}");
    }

    #[test]
    fn there_are_no_registers() {
        assert!(Snp::new(&by_tsm().machine().0).registers().is_none());
    }
}
