//! Authenticated encryption with AES-256-GCM and random nonces.
//!
//! Random nonces allow 2^32 messages per key (NIST SP 800-38D): far beyond the writes of a store's life, and what
//! seals more often than that rotates its keys.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, rand};
use zeroize::Zeroizing;

/// A key that seals and opens; its bytes are never shown.
pub struct SealingKey {
    key: LessSafeKey,
    id: String,
}

impl SealingKey {
    /// A key of 32 bytes.
    ///
    /// # Errors
    /// [`Error::Length`] for any other number.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| Error::Length(bytes.len()))?;
        let id = hex::encode(&digest::digest(&digest::SHA256, bytes).as_ref()[..8]);
        Ok(Self { key: LessSafeKey::new(key), id })
    }

    /// A random key.
    ///
    /// # Errors
    /// [`Error::Random`] if the system gives no randomness.
    pub fn generate() -> Result<Self, Error> {
        Self::new(random::<KEY_LEN>()?.as_slice())
    }

    /// Names the key without giving it away: the first 8 bytes of its SHA-256, in hexadecimal.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Encrypts: nonce, ciphertext and tag in one piece, [`OVERHEAD`] bytes longer than the plaintext.
    ///
    /// # Errors
    /// [`Error::Random`] if the system gives no randomness.
    pub fn seal(&self, bound_to: &[u8], plaintext: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
        sealed.extend_from_slice(nonce.as_slice());
        sealed.extend_from_slice(plaintext);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(bound_to),
                &mut sealed[NONCE_LEN..],
            )
            .map_err(|_| Error::Random)?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(sealed)
    }

    /// Decrypts what [`SealingKey::seal`] made of the same `bound_to`.
    ///
    /// # Errors
    /// [`Error::NotSealed`] if a bit of either differs.
    pub fn open(&self, bound_to: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (nonce, ciphertext) = sealed.split_at_checked(NONCE_LEN).ok_or(Error::NotSealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::NotSealed)?;
        let mut opened = Zeroizing::new(ciphertext.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(bound_to), opened.as_mut_slice())
            .map_err(|_| Error::NotSealed)?
            .len();
        opened.truncate(length);
        Ok(opened)
    }
}

/// `N` random bytes.
///
/// # Errors
/// [`Error::Random`] if the system gives no randomness.
pub fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(bytes.as_mut_slice()).map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// Why something could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a sealing key has {KEY_LEN} bytes, not {0}")]
    Length(usize),
    #[error("the system gives no randomness")]
    Random,
    #[error("not sealed with this key, or changed since")]
    NotSealed,
}

/// How many bytes [`SealingKey::seal`] adds.
pub const OVERHEAD: usize = NONCE_LEN + 16;
/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_binding_open_what_was_sealed() {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal(b"here", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + OVERHEAD);
        assert_eq!(key.open(b"here", &sealed).unwrap().as_slice(), b"secret");

        assert!(key.open(b"there", &sealed).is_err());
        assert!(SealingKey::generate().unwrap().open(b"here", &sealed).is_err());
        for i in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[i] ^= 1;
            assert!(key.open(b"here", &changed).is_err(), "byte {i} is not protected");
            assert!(key.open(b"here", &sealed[..i]).is_err());
        }
    }
}
