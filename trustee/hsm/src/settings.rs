//! Which token of which module, and the PIN that opens it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::Error;

/// What it takes to reach a token.
pub struct HsmSettings {
    /// The module's shared library.
    pub module: PathBuf,
    /// The token.
    pub token: Token,
    /// Its user's PIN.
    pub pin: Pin,
}

/// A token of a module.
#[derive(Clone, Debug)]
pub enum Token {
    /// By its place among the slots that have a token, from 0. Some modules number their slots anew when one is added.
    Index(usize),
    /// By its label.
    Label(String),
}

/// Where the user's PIN is.
pub enum Pin {
    /// Here.
    Value(Zeroizing<String>),
    /// In a file that is read at each login; a line end behind it is not part of it.
    File(PathBuf),
}

impl Pin {
    pub(crate) fn read(&self) -> Result<Zeroizing<String>, Error> {
        let path = match self {
            Self::Value(pin) => return Ok(pin.clone()),
            Self::File(path) => path,
        };
        let failed = |source| Error::PinFile { path: path.clone(), source };
        let file = fs::metadata(path).map_err(failed)?;
        if file.mode() & 0o007 != 0 {
            return Err(Error::PinExposed(path.clone()));
        }
        if file.len() > MAX_PIN {
            return Err(Error::TooLarge { what: "the PIN's file", size: file.len() as usize, limit: MAX_PIN as usize });
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
        Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

const MAX_PIN: u64 = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_pin_is_read_from_a_private_file_without_its_line_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        let pin = Pin::File(path.clone());
        assert!(matches!(pin.read(), Err(Error::PinFile { .. })));

        fs::write(&path, "12 34\r\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(pin.read(), Err(Error::PinExposed(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        assert_eq!(pin.read().unwrap().as_str(), "12 34");

        fs::write(&path, "1".repeat(1025)).unwrap();
        assert!(matches!(pin.read(), Err(Error::TooLarge { .. })));
    }
}
