//! Files of the guest with secrets in them: those that the configuration wants filled, and those that requests name.

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use zeroize::Zeroizing;

/// Writes `secret` to a file that only its owner can read, in place of what was there.
pub(crate) fn write(path: &Path, secret: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(secret)
}

/// Reads a secret of at most 64 KiB.
pub(crate) fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // At its full size from the start, so that no copy stays behind where it grew.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
    std::fs::File::open(path)?.take(MAX_SECRET as u64 + 1).read_to_end(&mut secret)?;
    if secret.len() > MAX_SECRET {
        return Err(io::Error::other(format!("longer than {MAX_SECRET} bytes")));
    }
    Ok(secret)
}

const MAX_SECRET: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_private_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms/credential.json");

        write(&path, b"old and longer").unwrap();
        write(&path, b"new").unwrap();

        assert_eq!(*read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    }
    #[test]
    fn a_secret_is_bounded() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (size, good) in [(MAX_SECRET as u64, true), (MAX_SECRET as u64 + 1, false)] {
            file.as_file().set_len(size).unwrap();
            assert_eq!(read(file.path()).is_ok(), good, "{size}");
        }
    }
}
