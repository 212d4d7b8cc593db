//! The master key: the key that seals, earlier or coming ones that still open, and where they are kept.
//!
//! A file or variable holds one key in a line of 64 hexadecimal digits. The first one seals. All of them open, so
//! that replicas go on while the key is changed: give every replica both, then rotate, then take the old one away.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;

use crate::seal::{self, KEY_LEN, SealingKey, random};

/// Seals what is written, and opens what it or one of its other keys has sealed. Clones share the keys.
#[derive(Clone)]
pub struct MasterKey(Vec<Arc<Known>>);

struct Known {
    sealing: SealingKey,
    bytes: Zeroizing<[u8; KEY_LEN]>,
}

impl MasterKey {
    /// A random key.
    ///
    /// # Errors
    /// [`Error::Seal`] if the system gives no randomness.
    pub fn generate() -> Result<Self, Error> {
        Self::from_bytes(random::<KEY_LEN>()?.as_slice())
    }

    /// A key of 32 bytes.
    ///
    /// # Errors
    /// [`Error::Seal`] for any other number.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let sealing = SealingKey::new(bytes)?;
        let mut kept = Zeroizing::new([0; KEY_LEN]);
        kept.copy_from_slice(bytes);
        Ok(Self(vec![Arc::new(Known { sealing, bytes: kept })]))
    }

    /// The keys of a file, which is created with mode 0600 and one random key if there is none.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Exposed`] if others than the owner may read it, [`Error::Encoding`].
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::File { path: path.to_owned(), source };
        if !path.try_exists().map_err(failed)? {
            Self::generate()?.place(path, Place::IfAbsent).map_err(failed)?;
        }
        if fs::metadata(path).map_err(failed)?.permissions().mode() & 0o077 != 0 {
            return Err(Error::Exposed(path.to_owned()));
        }
        let text = Zeroizing::new(fs::read_to_string(path).map_err(failed)?);
        Self::parse(&text).ok_or_else(|| Error::Encoding(format!("file {}", path.display())))
    }

    /// The keys of an environment variable.
    ///
    /// # Errors
    /// [`Error::Variable`] if it is not set, [`Error::Encoding`].
    pub fn from_env(variable: &str) -> Result<Self, Error> {
        let text = Zeroizing::new(std::env::var(variable).map_err(|_| Error::Variable(variable.to_owned()))?);
        Self::parse(&text).ok_or_else(|| Error::Encoding(format!("variable {variable}")))
    }

    /// Replaces a key file, whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        self.place(path, Place::Always).map_err(|source| Error::File { path: path.to_owned(), source })
    }

    /// This key, which goes on sealing, and the keys of another, which open too.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for key in &other.0 {
            if !self.knows(key.sealing.id()) {
                self.0.push(key.clone());
            }
        }
        self
    }

    /// The key that seals, without the others.
    #[must_use]
    pub fn alone(&self) -> Self {
        Self(self.0.iter().take(1).cloned().collect())
    }

    /// Names the key that seals, without giving it away.
    pub fn id(&self) -> &str {
        self.current().sealing.id()
    }

    pub(crate) fn knows(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.sealing.id() == id)
    }

    /// Seals a value for one place in the store.
    pub(crate) fn seal(&self, namespace: &str, key: &str, value: &[u8]) -> Result<Vec<u8>, seal::Error> {
        self.current().sealing.seal(&bound_to(namespace, key), value)
    }

    /// Opens what the key named `id` has sealed for one place in the store.
    pub(crate) fn open(
        &self,
        id: &str,
        namespace: &str,
        key: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, seal::Error> {
        let known = self.0.iter().find(|known| known.sealing.id() == id).ok_or(seal::Error::NotSealed)?;
        known.sealing.open(&bound_to(namespace, key), sealed)
    }

    /// A key for one purpose, derived from the one named `id` by HKDF with SHA-256.
    pub(crate) fn derive(&self, id: &str, salt: &[u8], purpose: &[u8]) -> Option<LessSafeKey> {
        let known = self.0.iter().find(|known| known.sealing.id() == id)?;
        let extracted = Salt::new(HKDF_SHA256, salt).extract(known.bytes.as_slice());
        let purpose = [purpose];
        let key = extracted.expand(&purpose, &AES_256_GCM).ok()?;
        Some(LessSafeKey::new(UnboundKey::from(key)))
    }

    fn current(&self) -> &Known {
        // Every constructor puts one in.
        &self.0[0]
    }

    fn parse(text: &str) -> Option<Self> {
        let mut all: Option<Self> = None;
        for line in text.split_ascii_whitespace() {
            let mut bytes = Zeroizing::new([0; KEY_LEN]);
            hex::decode_to_slice(line, bytes.as_mut_slice()).ok()?;
            let key = Self::from_bytes(bytes.as_slice()).ok()?;
            all = Some(match all {
                Some(all) => all.and(&key),
                None => key,
            });
        }
        all.filter(|all| all.0.len() <= MAX_KEYS)
    }

    /// Written beside and then linked or renamed into place, so that two processes that start at once agree on one
    /// whole key.
    fn place(&self, path: &Path, place: Place) -> io::Result<()> {
        let mut text = Zeroizing::new(String::with_capacity(self.0.len() * (2 * KEY_LEN + 1)));
        for key in &self.0 {
            text.push_str(&Zeroizing::new(hex::encode(key.bytes.as_slice())));
            text.push('\n');
        }
        let draft = path.with_extension(format!("draft-{}", std::process::id()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let placed = written.and_then(|()| match place {
            Place::Always => fs::rename(&draft, path),
            Place::IfAbsent => match fs::hard_link(&draft, path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&draft),
                Err(e) => Err(e),
                Ok(()) => fs::remove_file(&draft),
            },
        });
        if placed.is_err() {
            let _ = fs::remove_file(&draft);
        }
        placed?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(parent)?.sync_all()
    }
}

/// Why there is no master key. No variant holds any part of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Seal(#[from] seal::Error),
    #[error("key file {}: {source}; next: check its permissions", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("key file {} can be read by others; next: chmod 600 it", .0.display())]
    Exposed(PathBuf),
    #[error("variable {0} does not hold a master key; next: set it to {digits} hexadecimal digits", digits = 2 * KEY_LEN)]
    Variable(String),
    #[error("{0} does not hold one to {MAX_KEYS} keys of {digits} hexadecimal digits; next: restore it from a backup", digits = 2 * KEY_LEN)]
    Encoding(String),
}

#[derive(Clone, Copy)]
enum Place {
    Always,
    IfAbsent,
}

fn bound_to(namespace: &str, key: &str) -> Vec<u8> {
    [namespace.as_bytes(), &[0], key.as_bytes()].concat()
}

const MAX_KEYS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_private_and_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.key");
        let first = MasterKey::from_file(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(MasterKey::from_file(&path).unwrap().id(), first.id());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(MasterKey::from_file(&path), Err(Error::Exposed(_))));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for bad in ["", "abc", &"0".repeat(63), &"g".repeat(64), &format!("{} 00", "0".repeat(64))] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(MasterKey::from_file(&path), Err(Error::Encoding(_))), "{bad:?} passed");
        }
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("master.key");
        let (old, new) = (MasterKey::generate().unwrap(), MasterKey::generate().unwrap());
        new.clone().and(&old).save(&path).unwrap();

        let both = MasterKey::from_file(&path).unwrap();
        assert_eq!(both.id(), new.id());
        let sealed = old.seal("n", "k", b"v").unwrap();
        assert_eq!(both.open(old.id(), "n", "k", &sealed).unwrap().as_slice(), b"v");
        assert!(both.alone().open(old.id(), "n", "k", &sealed).is_err());
        assert!(both.open(new.id(), "n", "k", &sealed).is_err());
        assert!(!both.alone().knows(old.id()));
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let error = MasterKey::from_env("COCOON_NO_SUCH_KEY").err().unwrap();
        assert!(error.to_string().contains("COCOON_NO_SUCH_KEY"));
    }
}
