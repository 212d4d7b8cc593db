//! The traces that each TEE leaves in the file system, in the order in which they are looked for.
//!
//! The order is upstream's: a TDX guest on Azure shows a vTPM as well, so the more specific comes first. A generic TPM
//! is no trace: a host can attach one to any machine, so it says nothing about a TEE.

use std::fs;
use std::path::Path;

use wire::rcar::Tee;

/// A sign of a TEE.
pub(crate) struct Trace {
    pub(crate) tee: Tee,
    /// Where it was seen, as a path of the guest.
    pub(crate) path: String,
}

/// The first TEE with a trace under `root`.
pub(crate) fn tee(root: &Path) -> Option<Trace> {
    let provider = tsm_provider(root);
    PROBES
        .iter()
        .find(|(_, probe)| probe.holds(root, provider.as_deref()))
        .map(|(tee, probe)| Trace { tee: *tee, path: format!("/{}", probe.path()) })
}

enum Probe {
    /// The file or folder exists.
    Exists(&'static str),
    /// The file holds this text, surrounding white space aside.
    Holds(&'static str, &'static str),
    /// The file has this word in it.
    Word(&'static str, &'static str),
    /// The kernel's TSM report interface has this provider.
    Provider(&'static str),
}

impl Probe {
    fn holds(&self, root: &Path, provider: Option<&str>) -> bool {
        match self {
            Self::Exists(path) => root.join(path).exists(),
            Self::Holds(path, text) => read(root, path).is_some_and(|found| found.trim() == *text),
            Self::Word(path, word) => read(root, path).is_some_and(|text| text.split_whitespace().any(|w| w == *word)),
            Self::Provider(name) => provider == Some(name),
        }
    }

    fn path(&self) -> &'static str {
        match self {
            Self::Exists(path) | Self::Holds(path, _) | Self::Word(path, _) => path,
            Self::Provider(_) => TSM_REPORT,
        }
    }
}

fn read(root: &Path, path: &str) -> Option<String> {
    fs::read_to_string(root.join(path)).ok()
}

/// Who answers the kernel's TSM reports. Only an entry of the report folder tells, so one is made and removed again.
fn tsm_provider(root: &Path) -> Option<String> {
    let entry = root.join(TSM_REPORT).join(format!("cocoon-probe-{}", std::process::id()));
    fs::create_dir(&entry).ok()?;
    let provider = fs::read_to_string(entry.join("provider")).ok();
    // The entry is empty to the kernel whatever files it shows, so this is one rmdir.
    if let Err(error) = fs::remove_dir(&entry) {
        tracing::warn!(entry = %entry.display(), %error, "the TSM report entry stays");
    }
    provider.map(|name| name.trim().to_owned())
}

const TSM_REPORT: &str = "sys/kernel/config/tsm/report";
const CHASSIS: &str = "sys/class/dmi/id/chassis_asset_tag";
/// What every virtual machine on Azure has here; those with a vTPM and no other trace are confidential or "trusted
/// launch", and only the vTPM's contents tell which, so all of them count.
const AZURE: &str = "7783-7084-3265-9085-8269-3286-77";

const PROBES: &[(Tee, Probe)] = &[
    (Tee::Tdx, Probe::Provider("tdx_guest")),
    (Tee::Tdx, Probe::Exists("dev/tdx_guest")),
    (Tee::Tdx, Probe::Word("proc/cpuinfo", "tdx_guest")),
    (Tee::Sgx, Probe::Holds("dev/attestation/attestation_type", "dcap")),
    (Tee::AzSnpVtpm, Probe::Holds(CHASSIS, AZURE)),
    (Tee::Snp, Probe::Provider("sev_guest")),
    (Tee::Snp, Probe::Exists("sys/devices/platform/sev-guest")),
    (Tee::Snp, Probe::Exists("dev/sev-guest")),
    (Tee::Csv, Probe::Exists("dev/csv-guest")),
    (Tee::Cca, Probe::Provider("arm_cca_guest")),
    (Tee::Se, Probe::Holds("sys/firmware/uv/prot_virt_guest", "1")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trace_names_its_tee() {
        for (path, text, expected) in [
            ("dev/tdx_guest", "", Tee::Tdx),
            ("proc/cpuinfo", "flags\t: fpu tdx_guest sse", Tee::Tdx),
            ("dev/attestation/attestation_type", "dcap\n", Tee::Sgx),
            (CHASSIS, "7783-7084-3265-9085-8269-3286-77\n", Tee::AzSnpVtpm),
            ("dev/sev-guest", "", Tee::Snp),
            ("dev/csv-guest", "", Tee::Csv),
            ("sys/firmware/uv/prot_virt_guest", "1\n", Tee::Se),
        ] {
            let root = tree(&[(path, text)]);
            let trace = tee(root.path()).unwrap();
            assert_eq!((trace.tee, trace.path), (expected, format!("/{path}")));
        }
    }

    #[test]
    fn tdx_comes_before_the_vtpm_beside_it() {
        let root = tree(&[(CHASSIS, AZURE), ("dev/tdx_guest", "")]);
        assert_eq!(tee(root.path()).unwrap().tee, Tee::Tdx);
    }

    #[test]
    fn what_an_ordinary_machine_shows_is_no_trace() {
        let root = tree(&[
            ("proc/cpuinfo", "flags\t: fpu sev sev_es"),
            (CHASSIS, "No Asset Tag"),
            ("sys/firmware/uv/prot_virt_guest", "0\n"),
            ("dev/tpm0", ""),
        ]);
        fs::create_dir_all(root.path().join(TSM_REPORT)).unwrap();

        assert!(tee(root.path()).is_none());
        assert_eq!(fs::read_dir(root.path().join(TSM_REPORT)).unwrap().count(), 0, "the probe's entry is removed");
    }

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }
}
