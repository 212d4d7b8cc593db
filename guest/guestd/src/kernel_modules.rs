//! Loads the kernel modules that the guest image lists, in its order.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};

/// What modules are for; the image lists them in this order.
#[derive(Clone, Copy)]
pub(crate) enum Group {
    /// The guest's first answer to the host: channel and initdata disk.
    FirstAnswer,
    /// A pod's network.
    Network,
    /// The TEE that the guest runs in.
    Tee,
    /// Containers: images, encrypted volumes, and layers with hash trees.
    Container,
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

/// Forbids every further module and locks the kernel down, so that not even a privileged container could change it.
///
/// # Errors
/// [`Error`] if the kernel does not know how.
pub(crate) fn seal() -> Result<(), Error> {
    let failed = |what: &'static str| move |source| Error { module: what.to_owned(), source };
    fs::write(MODULES_DISABLED, "1").map_err(failed(MODULES_DISABLED))?;
    mount(Some("securityfs"), SECURITY, Some("securityfs"), MsFlags::empty(), None::<&str>)
        .map_err(|errno| failed(SECURITY)(errno.into()))?;
    fs::write(LOCKDOWN, "integrity").map_err(failed(LOCKDOWN))
}

/// Whether the processor says that this is a TDX or SEV-SNP guest, so that its drivers are worth their loading.
pub(crate) fn in_a_tee() -> bool {
    let is_tdx = || fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" tdx_guest"));
    Path::new("/sys/devices/platform/sev-guest").exists() || is_tdx()
}

/// A module that can't be loaded, or a seal that can't be set.
#[derive(Debug, thiserror::Error)]
#[error("init: kernel module {module}: {source}; next: build the guest image for this kernel")]
pub(crate) struct Error {
    module: String,
    source: io::Error,
}

const MODULES_DISABLED: &str = "/proc/sys/kernel/modules_disabled";
const SECURITY: &str = "/sys/kernel/security";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
const FOLDER: &str = "/lib/modules";
const LIST: &str = "/etc/cocoon/modules";
