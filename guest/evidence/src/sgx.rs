//! Intel SGX below Gramine, whose pseudo files give quotes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::evidence::SgxEvidence;
use wire::rcar::Tee;

use crate::Error;
use crate::attester::{Collector, json, padded};
use crate::machine::Machine;

/// An enclave.
#[derive(Debug)]
pub(crate) struct Sgx {
    machine: Machine,
}

impl Sgx {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }
}

impl Collector for Sgx {
    fn tee(&self) -> Tee {
        Tee::Sgx
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        self.machine.write(REPORT_DATA, &padded(report_data))?;
        let quote = self.machine.read(QUOTE, MAX_QUOTE)?;
        json(&SgxEvidence { quote: STANDARD.encode(quote) })
    }
}

/// Says `dcap` in an enclave that can be quoted.
pub(crate) const TYPE: &str = "/dev/attestation/attestation_type";
const REPORT_DATA: &str = "/dev/attestation/user_report_data";
const QUOTE: &str = "/dev/attestation/quote";
const MAX_QUOTE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;

    #[test]
    fn evidence_is_the_quote_over_the_padded_report_data() {
        let (machine, kernel) = FakeKernel::new().file(REPORT_DATA, []).file(QUOTE, [3, 0]).machine();
        assert_eq!(Sgx::new(&machine).evidence(&[7; 48], None).unwrap(), serde_json::json!({ "quote": "AwA=" }));
        assert_eq!(kernel.contents(REPORT_DATA).unwrap(), [&[7; 48][..], &[0; 16]].concat());
    }
}
