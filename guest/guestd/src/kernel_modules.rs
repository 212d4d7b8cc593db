//! Loads the kernel modules that the guest image lists, in its order.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// What modules are for; the image lists them in this order.
#[derive(Clone, Copy)]
pub(crate) enum Group {
    /// The guest's first answer to the host: channel and initdata disk.
    FirstAnswer,
    /// A pod: network and images.
    Pod,
    /// The TEE that the guest runs in.
    Tee,
}

/// Loads the modules of one group, in the image's order.
///
/// # Errors
/// [`Error`] if the list or a module can't be read, or the kernel refuses one other than for missing hardware.
pub(crate) fn load(group: Group) -> Result<(), Error> {
    let list = fs::read_to_string(LIST).map_err(|source| Error { module: LIST.to_owned(), source })?;
    let names = list.split("\n\n").nth(group as usize).unwrap_or_default();
    for name in names.lines() {
        let failed = |source| Error { module: name.to_owned(), source };
        let module = File::open(Path::new(FOLDER).join(name)).map_err(failed)?;
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            // Drivers of TEEs say ENODEV where there is no such TEE.
            Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    Ok(())
}

/// Whether the processor says that this is a TDX or SEV-SNP guest, so that its drivers are worth their loading.
pub(crate) fn in_a_tee() -> bool {
    let is_tdx = || fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" tdx_guest"));
    Path::new("/sys/devices/platform/sev-guest").exists() || is_tdx()
}

/// A module that can't be loaded.
#[derive(Debug, thiserror::Error)]
#[error("init: kernel module {module} can't be loaded: {source}; next: build the guest image for this kernel")]
pub(crate) struct Error {
    module: String,
    source: io::Error,
}

const FOLDER: &str = "/lib/modules";
const LIST: &str = "/etc/cocoon/modules";
