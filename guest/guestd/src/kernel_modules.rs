//! Loads the kernel modules that the guest image lists, in its order.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

/// Loads every module of the image's list.
///
/// # Errors
/// [`Error`] if the list or a module can't be read, or the kernel refuses one other than for missing hardware.
pub(crate) fn load() -> Result<(), Error> {
    let list = fs::read_to_string(LIST).map_err(|source| Error { module: LIST.to_owned(), source })?;
    for name in list.lines().filter(|line| !line.is_empty()) {
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

/// A module that can't be loaded.
#[derive(Debug, thiserror::Error)]
#[error("init: kernel module {module} can't be loaded: {source}; next: build the guest image for this kernel")]
pub(crate) struct Error {
    module: String,
    source: io::Error,
}

const FOLDER: &str = "/lib/modules";
const LIST: &str = "/etc/cocoon/modules";
