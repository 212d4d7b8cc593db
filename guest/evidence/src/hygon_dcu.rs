//! Hygon's DCU accelerators: reports through the driver's device.

use serde_json::Value;
use wire::evidence::{DcuReport, HygonDcuEvidence};
use wire::rcar::Tee;

use crate::Error;
use crate::attester::{Device, json, padded};
use crate::machine::{Call, Machine};

/// All accelerators of the machine.
#[derive(Debug)]
pub(crate) struct HygonDcu {
    machine: Machine,
    ids: Vec<u32>,
}

impl HygonDcu {
    /// The machine's accelerators, if it has any. Nodes of the topology without an id are processors.
    pub(crate) fn detect(machine: &Machine) -> Option<Self> {
        if !machine.exists(DEVICE) {
            return None;
        }
        let nodes = machine.kernel().list(NODES).unwrap_or_default();
        let id = |node: &String| machine.text(&format!("{NODES}/{node}/gpu_id"))?.parse().ok().filter(|id| *id != 0);
        let ids: Vec<u32> = nodes.iter().filter_map(id).collect();
        (!ids.is_empty()).then(|| Self { machine: machine.clone(), ids })
    }
}

impl Device for HygonDcu {
    fn tee(&self) -> Tee {
        Tee::HygonDcu
    }

    fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        let report = |device: &u32| {
            let (mut request, mut answer) = ([0; 4096], [0; 4096]);
            request[..64].copy_from_slice(&padded(report_data));
            let call = Call::DcuReport { device: *device, request: &request, answer: &mut answer };
            self.machine.kernel().call(DEVICE, call).map_err(|e| Error::file(DEVICE, &e))?;
            DcuReport::parse_answer(&answer).map_err(|e| Error::malformed("the DCU's report", e))
        };
        let attestation_reports = self.ids.iter().map(report).collect::<Result<_, _>>()?;
        json(&HygonDcuEvidence { attestation_reports })
    }
}

const DEVICE: &str = "/dev/mkfd";
const NODES: &str = "/sys/devices/virtual/kfd/kfd/topology/nodes";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;

    #[test]
    fn each_accelerator_reports_on_the_padded_data() {
        let kernel = FakeKernel::new()
            .file(&format!("{NODES}/0/gpu_id"), "0\n")
            .file(&format!("{NODES}/1/gpu_id"), "4711\n")
            .file(&format!("{NODES}/2/gpu_id"), "4712\n")
            .device(DEVICE, |call| match call {
                Call::DcuReport { device, request, answer } => {
                    answer[32..36].copy_from_slice(&device.to_le_bytes());
                    answer[52..116].copy_from_slice(&request[..64]);
                    Ok(())
                }
                call => panic!("{call:?}"),
            });
        let dcu = HygonDcu::detect(&kernel.machine().0).unwrap();

        let evidence: HygonDcuEvidence = serde_json::from_value(dcu.evidence(&[7; 48]).unwrap()).unwrap();

        let versions: Vec<u32> = evidence.attestation_reports.iter().map(|report| report.body.version).collect();
        assert_eq!(versions, [4711, 4712]);
        assert!(evidence.attestation_reports.iter().all(|report| report.body.user_data.0 == padded(&[7; 48])));
    }

    #[test]
    fn a_driver_without_accelerators_has_no_evidence() {
        let kernel = FakeKernel::new().file(DEVICE, "").file(&format!("{NODES}/0/gpu_id"), "0\n");
        assert!(HygonDcu::detect(&kernel.machine().0).is_none());
        let kernel = FakeKernel::new().file(&format!("{NODES}/0/gpu_id"), "4711\n");
        assert!(HygonDcu::detect(&kernel.machine().0).is_none());
    }
}
