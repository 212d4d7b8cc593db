//! A mapping: made, asked about, removed.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::control::{Command, Control, FOLDER};
use crate::message::{Message, NAME};
use crate::target::Row;
use crate::{Error, Target};

/// A block device that the kernel makes of others. Dropping it removes it, as soon as nobody has it open.
pub struct Mapping {
    name: String,
    path: PathBuf,
    sectors: u64,
    removed: bool,
}

impl Mapping {
    /// Makes the device `/dev/mapper/<name>` of targets that follow one another.
    ///
    /// The kernel keeps the table in its memory, keys included, and no copy of it stays in this process.
    ///
    /// # Errors
    /// Every variant of [`Error`]; nothing is left of a mapping that could not be completed.
    pub fn open(name: &str, targets: &[Target], read_only: bool) -> Result<Self, Error> {
        if !is_name(name) {
            return Err(Error::Name(name.chars().take(NAME).collect()));
        }
        let table = targets.iter().map(Target::row).collect::<Result<Vec<Row>, Error>>()?;
        let control = Control::open()?;
        let refused = |done| move |cause| Error::Refused { name: name.to_owned(), done, cause };

        let access = if read_only { READ_ONLY } else { 0 };
        let mut created = Message::new(name, access, &[]);
        control.call(Command::Create, &mut created).map_err(|cause| match cause.raw_os_error() {
            Some(libc::EBUSY) => Error::Exists(name.to_owned()),
            _ => refused("created")(cause),
        })?;
        // From here on dropping it undoes it.
        let mapping = Self {
            name: name.to_owned(),
            path: Path::new(FOLDER).join(name),
            sectors: table.iter().map(|row| row.sectors).sum(),
            removed: false,
        };
        let mut load = Message::new(name, access | SECURE_DATA, &table);
        control.call(Command::LoadTable, &mut load).map_err(refused("loaded"))?;
        control.call(Command::Suspend, &mut Message::new(name, 0, &[])).map_err(refused("resumed"))?;
        mapping.link(created.minor())?;
        Ok(mapping)
    }

    /// `/dev/mapper/<name>`
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name it was opened with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in units of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// What each target says of itself: of dm-verity `V`, or `C` once it has seen a corrupt block; of dm-integrity the number
    /// of mismatches, the provided sectors and the recalculated ones; nothing of dm-crypt.
    ///
    /// # Errors
    /// [`Error::Control`] and [`Error::Refused`].
    pub fn status(&self) -> Result<Vec<String>, Error> {
        let mut message = Message::new(&self.name, 0, &[]);
        Control::open()?.call(Command::TableStatus, &mut message).map_err(|cause| Error::Refused {
            name: self.name.clone(),
            done: "asked for its status",
            cause,
        })?;
        Ok(message.lines())
    }

    /// Removes the device now; its key leaves the kernel's memory. A second call does nothing.
    ///
    /// # Errors
    /// [`Error::Busy`] while somebody has it open: it then stays as it is, and can be removed later.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.remove_with(0)
    }

    fn remove_with(&mut self, flags: u32) -> Result<(), Error> {
        if self.removed {
            return Ok(());
        }
        let removed = Control::open()?.call(Command::Remove, &mut Message::new(&self.name, flags, &[]));
        match removed.as_ref().map_err(io::Error::raw_os_error) {
            // ENXIO: somebody else was faster.
            Ok(()) | Err(Some(libc::ENXIO)) => {}
            Err(Some(libc::EBUSY)) => return Err(Error::Busy(self.name.clone())),
            Err(_) => {
                return removed.map_err(|cause| Error::Refused { name: self.name.clone(), done: "removed", cause });
            }
        }
        self.removed = true;
        // A link that leads nowhere does no harm.
        let _ = fs::remove_file(&self.path);
        Ok(())
    }

    /// The kernel's devtmpfs has the device under its number; the name is for those who open it.
    fn link(&self, minor: u32) -> Result<(), Error> {
        let failed = |cause| Error::Node { path: self.path.clone(), cause };
        match fs::remove_file(&self.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
            _ => {}
        }
        std::os::unix::fs::symlink(format!("../dm-{minor}"), &self.path).map_err(failed)?;
        fs::metadata(&self.path).map(drop).map_err(failed)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.remove_with(DEFERRED);
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("name", &self.name).field("sectors", &self.sectors).finish_non_exhaustive()
    }
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    (1..NAME).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.') && name != "control"
}

/// `DM_READONLY_FLAG`
const READ_ONLY: u32 = 1 << 0;
/// `DM_SECURE_DATA_FLAG`: the driver wipes its copy of the message.
const SECURE_DATA: u32 = 1 << 15;
/// `DM_DEFERRED_REMOVE`
const DEFERRED: u32 = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_leave_the_folder_or_be_cut_is_refused() {
        for name in ["", ".", "..", ".a", "a/b", "control", "a b", "a\\b", "ä", &"x".repeat(128)] {
            let error = Mapping::open(name, &[], false).unwrap_err();
            assert!(matches!(error, Error::Name(_)), "{name:?} gave {error}");
        }
        for name in ["a", "8f2c-_+.", &"x".repeat(127)] {
            assert!(is_name(name), "{name:?}");
        }
    }
}
