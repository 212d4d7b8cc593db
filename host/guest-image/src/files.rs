//! Bounded reads, atomic writes and locks on files of the host.

use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::Error;

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed("read", path))?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if bytes.len() as u64 > limit {
        return Err(Error::TooLarge { path: path.to_owned(), limit });
    }
    Ok(bytes)
}

/// Puts `bytes` at `path`, readable by everyone; a reader sees the old file or the new one, never a part.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.persist(path).map_err(|e| e.error)
        });
    written.map(drop).map_err(failed("written", path))
}

/// Waits for the exclusive lock of a folder, held until the result is dropped.
///
/// The lock is on the folder itself, so that it leaves no file behind.
pub(crate) fn lock(folder: &Path) -> Result<File, Error> {
    let locked = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    locked.map_err(failed("locked", folder))
}

/// Adds what was attempted on which path to a system error.
pub(crate) fn failed<'a>(done: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |cause| Error::Io { done, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_above_the_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(Error::TooLarge { limit: 4, .. })));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read(Path::new("/nowhere/kernel"), 1).unwrap_err().to_string();
        assert!(error.contains("/nowhere/kernel can't be read"), "{error}");
    }
}
