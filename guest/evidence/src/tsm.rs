//! Reports through the kernel's TSM interface in configfs, which is the same for every TEE.
//!
//! Source: the kernel's `Documentation/ABI/testing/configfs-tsm-report`.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::machine::Machine;

/// A report of the TEE.
#[derive(Debug)]
pub(crate) struct Report {
    /// The report, quote or token.
    pub(crate) outblob: Vec<u8>,
    /// What the provider has to go with it, such as certificates; empty if there is nothing.
    pub(crate) auxblob: Vec<u8>,
}

/// Who answers reports on this machine; none if the kernel does not have the interface, or no provider for it.
pub(crate) fn provider(machine: &Machine) -> Option<String> {
    Entry::make(machine).ok()?.provider()
}

/// Asks `provider` for a report over `report_data`, at most 64 bytes, which zeros are added to.
///
/// # Errors
/// [`Error::File`] for what the kernel refuses, [`Error::Malformed`] if another provider answers, or if the entry was
/// used by someone else at each of [`ATTEMPTS`] attempts.
pub(crate) fn report(machine: &Machine, provider: &str, report_data: &[u8]) -> Result<Report, Error> {
    let mut inblob = report_data.to_vec();
    inblob.resize(INBLOB, 0);
    for _ in 0..ATTEMPTS {
        let entry = Entry::make(machine)?;
        match entry.provider() {
            Some(name) if name == provider => {}
            name => {
                let name = name.unwrap_or_else(|| "nobody".to_owned());
                return Err(Error::malformed(WHAT, format!("{name} answers, not {provider}")));
            }
        }
        machine.write(&entry.path("inblob"), &inblob)?;
        let outblob = match machine.kernel().read(&entry.path("outblob"), MAX_BLOB) {
            // The kernel saw another request between ours and its answer.
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            outcome => outcome.map_err(|e| Error::file(&entry.path("outblob"), &e))?,
        };
        let auxblob = machine.find(&entry.path("auxblob"), MAX_BLOB)?.unwrap_or_default();
        // Every request counts the generation up; more than our own means that the blobs may answer another's.
        if entry.generation()? <= 1 {
            return Ok(Report { outblob, auxblob });
        }
    }
    Err(Error::malformed(WHAT, format!("others used its entries at each of {ATTEMPTS} attempts")))
}

/// A folder of the interface, which is one conversation with the provider. It is removed when dropped.
struct Entry<'a> {
    machine: &'a Machine,
    path: String,
}

impl<'a> Entry<'a> {
    fn make(machine: &'a Machine) -> Result<Self, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("{FOLDER}/cocoon-{}-{count}", std::process::id());
        machine.kernel().make_folder(&path).map_err(|e| Error::file(&path, &e))?;
        Ok(Self { machine, path })
    }

    fn path(&self, attribute: &str) -> String {
        format!("{}/{attribute}", self.path)
    }

    fn provider(&self) -> Option<String> {
        self.machine.text(&self.path("provider"))
    }

    fn generation(&self) -> Result<u64, Error> {
        let path = self.path("generation");
        let text = self.machine.read(&path, 32)?;
        let number = std::str::from_utf8(&text).ok().and_then(|text| text.trim().parse().ok());
        number.ok_or_else(|| Error::malformed(WHAT, "the generation is not a number"))
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        // To the kernel the folder is empty whatever attributes it shows, so this is one rmdir.
        if let Err(error) = self.machine.kernel().remove_folder(&self.path) {
            tracing::warn!(entry = self.path, %error, "the TSM report entry stays");
        }
    }
}

/// Where the interface is.
pub(crate) const FOLDER: &str = "/sys/kernel/config/tsm/report";
const WHAT: &str = "the kernel's TSM report";
const INBLOB: usize = 64;
const ATTEMPTS: usize = 3;
/// The kernel's own limit is 32 KiB; quotes and certificates are below 16 KiB today.
const MAX_BLOB: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeKernel, Tsm};

    #[test]
    fn the_report_answers_the_padded_request_and_the_entry_goes() {
        let kernel = FakeKernel::new().tsm(Tsm::new("tdx_guest", |inblob| [b"quote of ", inblob].concat()));
        let (machine, kernel) = kernel.machine();

        let report = report(&machine, "tdx_guest", b"data").unwrap();

        assert_eq!(report.outblob, [&b"quote of data"[..], &[0; 60]].concat());
        assert_eq!((report.auxblob, kernel.entries()), (vec![], 0));
    }

    #[test]
    fn a_race_is_tried_again_and_not_for_ever() {
        for (races, is_answered) in [(0, true), (2, true), (3, false)] {
            let (machine, kernel) = FakeKernel::new().tsm(Tsm::new("sev_guest", <[u8]>::to_vec).races(races)).machine();

            let outcome = report(&machine, "sev_guest", &[7; 64]);

            assert_eq!(outcome.is_ok(), is_answered, "{races} races: {outcome:?}");
            assert_eq!(kernel.entries(), 0);
        }
    }

    #[test]
    fn another_provider_is_an_error_that_names_it() {
        let (machine, kernel) = FakeKernel::new().tsm(Tsm::new("sev_guest", <[u8]>::to_vec)).machine();
        let error = report(&machine, "tdx_guest", &[]).unwrap_err().to_string();
        assert!(error.contains("sev_guest answers, not tdx_guest"), "{error}");
        assert_eq!((provider(&machine).as_deref(), kernel.entries()), (Some("sev_guest"), 0));
    }

    #[test]
    fn a_kernel_without_the_interface_has_no_provider() {
        let (machine, _) = FakeKernel::new().machine();
        assert_eq!(provider(&machine), None);
        let error = report(&machine, "tdx_guest", &[]).unwrap_err().to_string();
        assert!(error.contains(FOLDER) && error.contains("next:"), "{error}");
    }

    #[test]
    fn a_refusal_of_the_hardware_is_told_and_the_entry_goes() {
        let (machine, kernel) = FakeKernel::new().tsm(Tsm::new("tdx_guest", |_| vec![]).refuses(libc::EIO)).machine();
        let error = report(&machine, "tdx_guest", &[]).unwrap_err().to_string();
        assert!(error.contains("outblob"), "{error}");
        assert_eq!(kernel.entries(), 0);
    }
}
