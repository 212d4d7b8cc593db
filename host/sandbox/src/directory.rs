//! A sandbox's folder on the host: its sockets and its disk, under a lock, gone when the sandbox is.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::footprint::Record;

/// The name of a sandbox, which is also that of its folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SandboxName(String);

impl SandboxName {
    /// Checks a name: what containerd takes for an id fits.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn parse(name: &str) -> Result<Self, Error> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        if first && name.len() <= MAX_NAME && name.bytes().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(Error::Name(name.chars().take(80).flat_map(char::escape_default).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::parse(name)
    }
}

/// The folder of one running sandbox. Whoever holds this value owns the sandbox; dropping it removes the folder.
pub struct Directory {
    path: PathBuf,
    /// Whether the folder stays, for what its record says is still to be taken away.
    pub(crate) kept: bool,
    _lock: Flock<File>,
}

impl Directory {
    /// Makes the folder, or takes over one that a killed owner left behind, with all that its sandbox had.
    ///
    /// # Errors
    /// [`Error::Name`] if its sockets would have a path that the kernel doesn't take, [`Error::Running`] if somebody
    /// owns it, [`Error::Directory`] if it can't be made, [`Error::CleanUp`] for what
    /// the killed owner's sandbox had and can't be taken away.
    pub fn create(name: &SandboxName) -> Result<Self, Error> {
        let path = Self::path_of(name);
        if path.join(LONGEST_SOCKET).as_os_str().len() > MAX_SOCKET_PATH {
            return Err(Error::Name(name.to_string()));
        }
        let failed = |source| Error::Directory { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        if nix::unistd::geteuid().is_root() {
            // QEMU is another user then, who finds what it is told of and can list nothing.
            for folder in path.ancestors().take(2) {
                fs::set_permissions(folder, Permissions::from_mode(0o711)).map_err(failed)?;
            }
        }
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| Error::Running { name: name.to_string() })?;
        if let Some(record) = Record::read(&path) {
            record.remove()?;
        }
        for entry in fs::read_dir(&path).map_err(failed)?.flatten().filter(|entry| entry.file_name() != LOCK) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
        Ok(Self { path, kept: false, _lock: lock })
    }

    /// The folder that a sandbox of this name has while it runs.
    pub fn path_of(name: &SandboxName) -> PathBuf {
        Self::of_all().join(name.as_str())
    }

    /// Where the sandboxes of this user keep what the first of them has found out about virtualisation. No sandbox's name
    /// begins with a dot.
    pub(crate) fn known_acceleration() -> PathBuf {
        Self::of_all().join(".acceleration")
    }

    /// The folder with those of all sandboxes of this user.
    pub fn of_all() -> PathBuf {
        let user = nix::unistd::geteuid();
        match std::env::var_os("XDG_RUNTIME_DIR") {
            _ if user.is_root() => PathBuf::from("/run/cocoon"),
            Some(runtime) => PathBuf::from(runtime).join("cocoon"),
            None => std::env::temp_dir().join(format!("cocoon-{user}")),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of the sandbox, which QEMU can read.
    ///
    /// # Errors
    /// [`Error::Directory`] if it can't be written.
    pub fn write(&self, name: &str, content: impl FnOnce(&mut File) -> io::Result<()>) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        let write = || {
            let mut file = File::create(&path)?;
            content(&mut file)?;
            file.set_permissions(Permissions::from_mode(0o644))
        };
        match write() {
            Ok(()) => Ok(path),
            Err(source) => Err(Error::Directory { path, source }),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the sandbox's folder stays behind");
        }
    }
}

const LOCK: &str = "lock";
const MAX_NAME: usize = 76;
/// `sun_path` has room for one more byte, which ends it.
const MAX_SOCKET_PATH: usize = 107;
const LONGEST_SOCKET: &str = "vsock.sock_1030";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "pod-1", "0.x_y", &"a".repeat(76)] {
            assert_eq!(SandboxName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", ".a", "-a", "a/b", "a b", &"a".repeat(77)] {
            assert!(SandboxName::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_name_has_one_owner_and_leaves_nothing() {
        let name = SandboxName::parse(&format!("test-{}", std::process::id())).unwrap();
        let owner = Directory::create(&name).unwrap();
        assert!(matches!(Directory::create(&name), Err(Error::Running { .. })));

        let path = owner.write("disk", |file| io::Write::write_all(file, b"x")).unwrap();
        assert!(path.exists());
        drop(owner);
        assert!(!Directory::path_of(&name).exists());
    }
}
