//! Arm CCA: tokens through the kernel's TSM reports.

use serde_json::Value;
use wire::evidence::CcaEvidence;
use wire::rcar::Tee;

use crate::attester::{Collector, json};
use crate::machine::Machine;
use crate::{Error, tsm};

/// A realm.
#[derive(Debug)]
pub(crate) struct Cca {
    machine: Machine,
}

impl Cca {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }
}

impl Collector for Cca {
    fn tee(&self) -> Tee {
        Tee::Cca
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        json(&CcaEvidence { token: tsm::report(&self.machine, PROVIDER, report_data)?.outblob })
    }
}

/// The name of the provider of TSM reports.
pub(crate) const PROVIDER: &str = "arm_cca_guest";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeKernel, Tsm};

    #[test]
    fn evidence_is_the_token_over_the_padded_challenge() {
        let kernel = FakeKernel::new().tsm(Tsm::new(PROVIDER, |challenge| {
            assert_eq!(challenge, [&[7; 48][..], &[0; 16]].concat());
            vec![0xd9, 1]
        }));
        let cca = Cca::new(&kernel.machine().0);
        assert_eq!(cca.evidence(&[7; 48], None).unwrap(), serde_json::json!({ "token": [0xd9, 1] }));
    }
}
