//! Key encryption keys: what the keys of image layers and the secrets of envelopes are wrapped with.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptionContext, StreamingEncryptingKey, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::{iv::FixedLength, rand};
use zeroize::Zeroizing;

/// A key of 32 bytes that Trustee hands to guests.
#[derive(Clone)]
pub struct Kek(Zeroizing<[u8; 32]>);

impl Kek {
    /// These very bytes.
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self(Zeroizing::new(key))
    }

    /// A new key.
    ///
    /// # Errors
    /// [`Unspecified`] if the system has no random numbers.
    pub fn generate() -> Result<Self, Unspecified> {
        let mut key = Zeroizing::new([0; 32]);
        rand::fill(&mut *key)?;
        Ok(Self(key))
    }

    /// A new key, written to a file that must not exist and that nobody else may read.
    ///
    /// # Errors
    /// [`Error`] if it can't be written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let failed = |cause: String| Error { path: path.to_owned(), cause };
        let key = Self::generate().map_err(|_| failed("the system has no random numbers".to_owned()))?;
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        file.and_then(|mut file| file.write_all(&*key.0)).map_err(|e| failed(e.to_string()))?;
        Ok(key)
    }

    /// Reads a file that holds exactly the key.
    ///
    /// # Errors
    /// [`Error`] if it can't be read or has another length.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |cause: String| Error { path: path.to_owned(), cause };
        let file = File::open(path).map_err(|e| failed(e.to_string()))?;
        // Room for one byte too many, so that the buffer never grows and leaves a copy behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(64));
        file.take(33).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
        let key: [u8; 32] =
            bytes.as_slice().try_into().map_err(|_| failed("it does not hold exactly 32 bytes".to_owned()))?;
        Ok(Self::new(key))
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether both are the same key.
    pub fn is(&self, other: &Self) -> bool {
        verify_slices_are_equal(&*self.0, &*other.0).is_ok()
    }

    /// Encrypts `plaintext` under a new initialisation vector: that vector, and the ciphertext with GCM's tag behind it.
    ///
    /// # Errors
    /// [`Unspecified`] if the random generator or the cipher fails, which is not expected.
    pub fn wrap(&self, algorithm: Algorithm, plaintext: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Unspecified> {
        match algorithm {
            Algorithm::A256Gcm => {
                let mut iv = [0; NONCE_LEN];
                rand::fill(&mut iv)?;
                let mut wrapped = Zeroizing::new(Vec::with_capacity(plaintext.len() + 16));
                wrapped.extend_from_slice(plaintext);
                let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*self.0)?);
                key.seal_in_place_append_tag(Nonce::assume_unique_for_key(iv), Aad::empty(), &mut *wrapped)?;
                Ok((iv.to_vec(), std::mem::take(&mut *wrapped)))
            }
            Algorithm::A256Ctr => {
                let mut iv = [0; 16];
                rand::fill(&mut iv)?;
                let context = EncryptionContext::Iv128(FixedLength::from(&iv));
                let key = UnboundCipherKey::new(&AES_256, &*self.0)?;
                let mut cipher = StreamingEncryptingKey::less_safe_ctr(key, context)?;
                // The library asks for room for one more block.
                let mut wrapped = vec![0; plaintext.len() + 16];
                let length = cipher.update(plaintext, &mut wrapped)?.written().len();
                wrapped.truncate(length);
                Ok((iv.to_vec(), wrapped))
            }
        }
    }
}

/// How a key wraps what it wraps.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Algorithm {
    /// AES-256-GCM with 12 bytes of initialisation vector and a tag of 16.
    #[default]
    A256Gcm,
    /// AES-256 in counter mode with 16 bytes of initialisation vector; changes go unnoticed.
    A256Ctr,
}

impl Algorithm {
    /// The name in packets and sealed secrets.
    pub fn name(self) -> &'static str {
        match self {
            Self::A256Gcm => "A256GCM",
            Self::A256Ctr => "A256CTR",
        }
    }

    /// The algorithm of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::A256Gcm, Self::A256Ctr].into_iter().find(|algorithm| algorithm.name() == name)
    }
}

/// A key file can't be read or made.
#[derive(Debug, thiserror::Error)]
#[error("key file {}: {cause}; next: give a file of exactly 32 random bytes, or a new file name to make one", path.display())]
pub struct Error {
    /// The file.
    path: PathBuf,
    /// What is wrong with it.
    cause: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_created_key_is_read_again_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");

        let key = Kek::create(&path).unwrap();

        assert!(Kek::read(&path).unwrap().is(&key));
        assert!(!Kek::generate().unwrap().is(&key));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let again = Kek::create(&path).err().unwrap().to_string();
        assert!(again.contains("exists") && again.contains("; next: "), "{again}");
        std::fs::write(&path, [0; 33]).unwrap();
        assert!(Kek::read(&path).err().unwrap().to_string().contains("exactly 32 bytes"));
    }

    #[test]
    fn the_same_text_is_never_wrapped_the_same() {
        let key = Kek::generate().unwrap();
        for algorithm in [Algorithm::A256Gcm, Algorithm::A256Ctr] {
            let (first, second) = (key.wrap(algorithm, b"text").unwrap(), key.wrap(algorithm, b"text").unwrap());
            assert!(first.0 != second.0 && first.1 != second.1);
            assert_eq!(Algorithm::of_name(algorithm.name()), Some(algorithm));
        }
    }
}
