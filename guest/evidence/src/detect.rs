//! The traces that each TEE leaves on a machine, in the order in which they are looked for.
//!
//! The order is upstream's: a TDX guest on Azure shows a vTPM as well, so the more specific comes first.

use wire::rcar::Tee;

use crate::attester::{Collector, Device};
use crate::az_snp_vtpm::AzSnpVtpm;
use crate::az_tdx_vtpm::AzTdxVtpm;
use crate::azure::Azure;
use crate::cca::{self, Cca};
use crate::csv::{self, Csv};
use crate::hygon_dcu::HygonDcu;
use crate::machine::Machine;
use crate::nvidia_dpu::NvidiaDpu;
use crate::sample::{Sample, SampleDevice};
use crate::se::{self, Se};
use crate::sgx::{self, Sgx};
use crate::snp::{self, Snp};
use crate::tdx::{self, Tdx};
use crate::tpm::Tpm;
use crate::{Error, tsm};

/// The machine's TEE.
///
/// # Errors
/// [`Error::NoAttester`] for a TEE that can't be attested; why a vTPM that may be Azure's did not answer.
pub(crate) fn primary(machine: &Machine) -> Result<Box<dyn Collector>, Error> {
    let provider = tsm::provider(machine);
    let provider = provider.as_deref();
    let exists = |path| machine.exists(path);

    if provider == Some(tdx::PROVIDER) || exists(tdx::DEVICE) || has_flag(machine, "tdx_guest") {
        return Ok(Box::new(Tdx::new(machine)));
    }
    if machine.text(sgx::TYPE).as_deref() == Some("dcap") {
        return Ok(Box::new(Sgx::new(machine)));
    }
    if machine.variable(OCCLUM).is_some() {
        return Err(Error::NoAttester {
            tee: Tee::Sgx,
            trace: OCCLUM,
            reason: "Occlum gives quotes through a library of its own in C alone; Gramine gives them through files",
        });
    }
    if let Some(attester) = azure(machine)? {
        return Ok(attester);
    }
    if provider == Some(snp::PROVIDER) || exists(SNP_PLATFORM) || exists(snp::DEVICE) {
        return Ok(Box::new(Snp::new(machine)));
    }
    if exists(csv::DEVICE) {
        return Ok(Box::new(Csv::new(machine)));
    }
    if provider == Some(cca::PROVIDER) {
        return Ok(Box::new(Cca::new(machine)));
    }
    if machine.text(se::PROTECTED).as_deref() == Some("1") {
        return Ok(Box::new(Se::new(machine)));
    }
    if let Some(tpm) = tpm(machine)? {
        return Ok(Box::new(tpm));
    }
    tracing::warn!("no TEE found: sample evidence proves nothing, use it for tests alone");
    Ok(Box::new(Sample::new()))
}

/// The machine's devices with evidence of their own, beside the `primary` TEE.
///
/// # Errors
/// As [`primary`].
pub(crate) fn devices(machine: &Machine, primary: Tee) -> Result<Vec<Box<dyn Device>>, Error> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if machine.variable(SAMPLE_DEVICE).is_some() {
        devices.push(Box::new(SampleDevice));
    }
    if let Some(dcu) = HygonDcu::detect(machine) {
        devices.push(Box::new(dcu));
    }
    if let Some(dpu) = NvidiaDpu::detect(machine) {
        devices.push(Box::new(dpu));
    }
    // The other TEEs have registers of their own, or are TPMs themselves.
    let takes_tpm = !matches!(primary, Tee::Tdx | Tee::AzSnpVtpm | Tee::AzTdxVtpm | Tee::Tpm | Tee::Sample);
    if takes_tpm && let Some(tpm) = tpm(machine)? {
        devices.push(Box::new(tpm));
    }
    if machine.exists(NVIDIA) {
        tracing::warn!(
            trace = NVIDIA,
            "GPUs have no evidence: it is collected through NVIDIA's libraries (NVML, NSCQ), which are not part of the guest"
        );
    }
    Ok(devices)
}

/// Azure's VMs have the report in their vTPM, and other machines nothing at its place.
fn azure(machine: &Machine) -> Result<Option<Box<dyn Collector>>, Error> {
    match Azure::report(machine) {
        Ok(Some(report)) if report.is_tdx() => Ok(Some(Box::new(AzTdxVtpm(Azure::new(machine))))),
        Ok(Some(_)) => Ok(Some(Box::new(AzSnpVtpm(Azure::new(machine))))),
        Ok(None) => Ok(None),
        // To go on as a sample would throw the hardware's protection away.
        Err(error) if machine.text(CHASSIS).as_deref() == Some(AZURE) => Err(error),
        Err(error) => {
            tracing::warn!(%error, "the TPM is left out");
            Ok(None)
        }
    }
}

/// A host can attach a TPM to any machine: one that fails counts only if it was asked for.
fn tpm(machine: &Machine) -> Result<Option<Tpm>, Error> {
    match Tpm::detect(machine) {
        Err(error) if machine.variable(TPM_DEVICE).is_none() => {
            tracing::warn!(%error, "the TPM is left out");
            Ok(None)
        }
        outcome => outcome,
    }
}

fn has_flag(machine: &Machine, flag: &str) -> bool {
    machine.text("/proc/cpuinfo").is_some_and(|text| text.split_whitespace().any(|word| word == flag))
}

const SNP_PLATFORM: &str = "/sys/devices/platform/sev-guest";
const OCCLUM: &str = "OCCLUM";
const TPM_DEVICE: &str = "AA_TPM_DEVICE";
/// Set to anything, it attaches the sample's device.
const SAMPLE_DEVICE: &str = "ENABLE_SAMPLE_DEVICE";
const CHASSIS: &str = "/sys/class/dmi/id/chassis_asset_tag";
/// What every virtual machine on Azure has there.
const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";

/// The device of NVIDIA's driver for GPUs.
const NVIDIA: &str = "/dev/nvidiactl";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::tests::vtpm;
    use crate::fake::{FakeKernel, Tsm};
    use crate::swtpm::Swtpm;

    #[test]
    fn each_trace_names_its_tee() {
        for (path, text, expected) in [
            (tdx::DEVICE, "", Tee::Tdx),
            ("/proc/cpuinfo", "flags\t: fpu tdx_guest sse", Tee::Tdx),
            (sgx::TYPE, "dcap\n", Tee::Sgx),
            (SNP_PLATFORM, "", Tee::Snp),
            (snp::DEVICE, "", Tee::Snp),
            (csv::DEVICE, "", Tee::Csv),
            (se::PROTECTED, "1\n", Tee::Se),
        ] {
            let (machine, _) = FakeKernel::new().file(path, text).machine();
            assert_eq!(primary(&machine).unwrap().tee(), expected, "{path}");
        }
    }

    #[test]
    fn each_provider_of_reports_names_its_tee_and_no_entry_stays() {
        for (name, expected) in
            [(tdx::PROVIDER, Tee::Tdx), (snp::PROVIDER, Tee::Snp), (cca::PROVIDER, Tee::Cca), ("another", Tee::Sample)]
        {
            let (machine, kernel) = FakeKernel::new().tsm(Tsm::new(name, <[u8]>::to_vec)).machine();
            assert_eq!((primary(&machine).unwrap().tee(), kernel.entries()), (expected, 0));
        }
    }

    #[test]
    fn what_an_ordinary_machine_shows_is_no_trace() {
        let kernel = FakeKernel::new()
            .file("/proc/cpuinfo", "flags\t: fpu sev sev_es")
            .file(CHASSIS, "No Asset Tag")
            .file(se::PROTECTED, "0\n")
            .file("/dev/tpm0", "");
        assert_eq!(primary(&kernel.machine().0).unwrap().tee(), Tee::Sample);
    }

    #[test]
    fn occlum_is_an_error_that_says_why() {
        let machine = FakeKernel::new().machine().0.with_variables(&[(OCCLUM, "yes")]);
        let error = primary(&machine).unwrap_err().to_string();
        assert!(error.contains("kind sgx") && error.contains("Gramine"), "{error}");
    }

    #[test]
    fn azures_vtpm_tells_its_tee() {
        for (kind, expected) in [(2, Tee::AzSnpVtpm), (4, Tee::AzTdxVtpm)] {
            let Some(swtpm) = vtpm(kind, &[]) else { return };
            let machine = swtpm.machine();
            let attester = azure(&machine).unwrap().unwrap();
            assert_eq!(attester.tee(), expected);
            assert!(devices(&machine, expected).unwrap().is_empty());
        }
    }

    #[test]
    fn a_vtpm_on_azure_that_does_not_answer_is_an_error() {
        let ordinary = FakeKernel::new().file("/dev/tpm0", "");
        assert!(azure(&ordinary.machine().0).unwrap().is_none());
        let on_azure = FakeKernel::new().file("/dev/tpm0", "").file(CHASSIS, AZURE);
        assert!(azure(&on_azure.machine().0).is_err());
        let without_tpm = FakeKernel::new().file(CHASSIS, AZURE);
        assert!(azure(&without_tpm.machine().0).unwrap().is_none());
    }

    #[test]
    fn a_tpm_is_a_device_beside_a_tee_without_registers() {
        let Some(swtpm) = Swtpm::start() else { return };
        let names = |primary| {
            let devices = devices(&swtpm.machine(), primary).unwrap();
            devices.iter().map(|device| device.tee()).collect::<Vec<_>>()
        };
        assert_eq!(names(Tee::Snp), []);
        swtpm.attestation_key(0x8101_0002);
        assert_eq!(names(Tee::Snp), [Tee::Tpm]);
        assert_eq!(names(Tee::Tdx), []);
    }

    #[test]
    fn the_samples_device_is_attached_by_the_environment() {
        let machine = FakeKernel::new().file(NVIDIA, "").machine().0;
        assert!(devices(&machine, Tee::Sample).unwrap().is_empty());
        let devices = devices(&machine.with_variables(&[(SAMPLE_DEVICE, "1")]), Tee::Sample).unwrap();
        assert_eq!(devices.iter().map(|device| device.tee()).collect::<Vec<_>>(), [Tee::SampleDevice]);
    }
}
