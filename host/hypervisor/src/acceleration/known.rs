//! What a probe has found, kept for the next one as long as kernel, devices and QEMU are the same.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Acceleration;

/// A file with what was found.
pub(super) struct Known<'a> {
    file: &'a Path,
    circumstances: String,
}

impl<'a> Known<'a> {
    /// What is known in `file` under today's circumstances. None where they can't be told.
    pub(super) fn at(file: &'a Path, qemu: &Path) -> Option<Self> {
        Some(Self { file, circumstances: circumstances(qemu).ok()? })
    }

    /// What a probe found under the same circumstances.
    pub(super) fn acceleration(&self) -> Option<Acceleration> {
        let found: Found = serde_json::from_slice(&fs::read(self.file).ok()?).ok()?;
        (found.circumstances == self.circumstances).then_some(found.acceleration)
    }

    /// Keeps what was found. Where that fails the next probe takes its time.
    pub(super) fn keep(self, acceleration: Acceleration) {
        if let Err(error) = self.write(acceleration) {
            tracing::debug!(file = %self.file.display(), %error, "what a probe found is not kept");
        }
    }

    /// In one step, since other pods read it meanwhile.
    fn write(&self, acceleration: Acceleration) -> io::Result<()> {
        let found = Found { circumstances: self.circumstances.clone(), acceleration };
        let folder = self.file.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec(&found)?)?;
        file.persist(self.file)?;
        Ok(())
    }
}

#[derive(Deserialize, Serialize)]
struct Found {
    circumstances: String,
    acceleration: Acceleration,
}

/// All that could change the answer: this boot of this kernel, the device, who asks, and QEMU's program.
fn circumstances(qemu: &Path) -> io::Result<String> {
    let of_kernel = |name: &str| fs::read_to_string(Path::new("/proc/sys/kernel").join(name));
    let device = fs::metadata("/dev/kvm")
        .map(|it| format!("{} {:x} {:o} {} {}", it.ino(), it.rdev(), it.mode(), it.uid(), it.gid()))
        .unwrap_or_default();
    let program = find(qemu).ok_or(io::ErrorKind::NotFound)?;
    let file = fs::metadata(&program)?;
    Ok(format!(
        "boot {} kernel {} device {device} user {} program {} {} {} {} {}.{}",
        of_kernel("random/boot_id")?.trim(),
        of_kernel("osrelease")?.trim(),
        nix::unistd::geteuid(),
        program.display(),
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
    ))
}

/// The program that a name stands for, as it is looked for when it is run.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return Some(program.to_owned());
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_known_until_something_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (file, qemu) = (folder.path().join("known"), folder.path().join("qemu"));
        fs::write(&qemu, "1").unwrap();
        let known = || Known::at(&file, &qemu).unwrap();
        assert_eq!(known().acceleration(), None);

        known().keep(Acceleration::Tcg);
        assert_eq!(known().acceleration(), Some(Acceleration::Tcg));
        known().keep(Acceleration::Kvm);
        assert_eq!(known().acceleration(), Some(Acceleration::Kvm));

        fs::write(&qemu, "another").unwrap();
        assert_eq!(known().acceleration(), None);
        known().keep(Acceleration::Kvm);
        fs::write(&file, "{").unwrap();
        assert_eq!(known().acceleration(), None);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left there");
    }

    #[test]
    fn of_a_program_that_is_nowhere_nothing_is_known() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Known::at(&folder.path().join("known"), &folder.path().join("none")).is_none());
        assert!(Known::at(&folder.path().join("known"), Path::new("no-such-program-anywhere")).is_none());
        assert!(find(Path::new("sh")).is_some_and(|path| path.is_absolute()));
    }
}
