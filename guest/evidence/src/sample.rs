//! The sample TEE and its device: evidence for machines without hardware.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::evidence::SampleEvidence;
use wire::rcar::Tee;

use crate::attester::{Collector, Device, json};
use crate::registers::SoftwareRegisters;
use crate::{Error, Registers};

/// The sample TEE. It proves nothing: neither its evidence nor its registers.
#[derive(Debug)]
pub(crate) struct Sample(SoftwareRegisters);

impl Sample {
    pub(crate) const fn new() -> Self {
        Self(SoftwareRegisters::new())
    }
}

impl Collector for Sample {
    fn tee(&self) -> Tee {
        Tee::Sample
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        evidence("1", report_data)
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(&self.0)
    }
}

/// The sample TEE's device.
#[derive(Debug)]
pub(crate) struct SampleDevice;

impl Device for SampleDevice {
    fn tee(&self) -> Tee {
        Tee::SampleDevice
    }

    fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        evidence("2", report_data)
    }
}

/// Evidence with the report data as it is, neither padded nor cut: its verifier compares it as a whole.
fn evidence(svn: &str, report_data: &[u8]) -> Result<Value, Error> {
    json(&SampleEvidence { svn: svn.to_owned(), report_data: STANDARD.encode(report_data) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_form_on_the_wire() {
        let evidence = Sample::new().evidence(&[0xfb, 0xff], None).unwrap();
        assert_eq!(evidence, serde_json::json!({ "svn": "1", "report_data": "+/8=" }));
    }
}
