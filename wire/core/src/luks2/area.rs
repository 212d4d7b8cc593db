//! A key slot: the volume's key, spread over stripes and encrypted under what is derived from the owner's key.

use std::num::NonZeroU32;
use std::ops::Range;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, pbkdf2, rand};
use zeroize::Zeroizing;

use super::xts::{SECTOR, Xts};
use super::{Error, VolumeKey};

/// A slot whose every number has been checked.
#[derive(Debug)]
pub(super) struct KeySlot {
    /// Where the stripes are on the device.
    pub(super) offset: u64,
    /// Bytes that are set aside for them.
    pub(super) size: u64,
    /// Bytes of the volume's key.
    pub(super) key_length: usize,
    /// Copies that are all needed to get the key back, so that one overwritten sector destroys it.
    pub(super) stripes: usize,
    /// Of the spreading.
    pub(super) hash: Hash,
    pub(super) kdf: Kdf,
}

/// How the owner's key becomes the key of the slot.
#[derive(Debug)]
pub(super) enum Kdf {
    Pbkdf2 {
        hash: Hash,
        iterations: NonZeroU32,
        salt: Vec<u8>,
    },
    /// Memory in KiB.
    Argon2 {
        variant: Algorithm,
        passes: u32,
        memory: u32,
        lanes: u32,
        salt: Vec<u8>,
    },
}

/// What a volume's key is recognised by.
#[derive(Debug)]
pub(super) struct KeyDigest {
    pub(super) hash: Hash,
    pub(super) iterations: NonZeroU32,
    pub(super) salt: Vec<u8>,
    pub(super) digest: Vec<u8>,
}

/// The hashes that are allowed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Hash {
    Sha256,
    Sha512,
}

impl KeySlot {
    /// A new slot at `offset`.
    pub(super) fn new(offset: u64, key_length: usize, iterations: NonZeroU32) -> Result<Self, Error> {
        let size = (key_length * NEW_STRIPES).next_multiple_of(ALIGNMENT) as u64;
        let kdf = Kdf::Pbkdf2 { hash: Hash::Sha256, iterations, salt: random_salt()? };
        Ok(Self { offset, size, key_length, stripes: NEW_STRIPES, hash: Hash::Sha256, kdf })
    }

    /// Where the stripes are on the device, in whole sectors.
    pub(super) fn area(&self) -> Range<u64> {
        self.offset..self.offset + self.used() as u64
    }

    /// Gets the volume's key, or noise if the owner's key is another one.
    pub(super) fn open(&self, area: &[u8], key: &[u8]) -> Result<VolumeKey, Error> {
        let area = area.get(..self.used()).ok_or(Error::Truncated)?;
        let mut stripes = Zeroizing::new(area.to_vec());
        Xts::new(&self.kdf.derive(key)?)?.decrypt(&mut stripes)?;
        Ok(self.merge(&stripes))
    }

    /// The area for a volume's key.
    pub(super) fn seal(&self, volume_key: &[u8], key: &[u8]) -> Result<Vec<u8>, Error> {
        let mut stripes = self.split(volume_key)?;
        Xts::new(&self.kdf.derive(key)?)?.encrypt(&mut stripes)?;
        Ok(std::mem::take(&mut *stripes))
    }

    /// Bytes of the stripes, in whole sectors.
    fn used(&self) -> usize {
        (self.key_length * self.stripes).next_multiple_of(SECTOR)
    }

    fn split(&self, key: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut stripes = Zeroizing::new(vec![0; self.used()]);
        let last = self.key_length * (self.stripes - 1);
        rand::fill(&mut stripes[..last]).map_err(|_| Error::Crypto)?;
        let mut state = self.fold(&stripes[..last]);
        xor(&mut state, key);
        stripes[last..last + self.key_length].copy_from_slice(&state);
        Ok(stripes)
    }

    fn merge(&self, stripes: &[u8]) -> VolumeKey {
        let last = self.key_length * (self.stripes - 1);
        let mut key = self.fold(&stripes[..last]);
        xor(&mut key, &stripes[last..last + self.key_length]);
        key
    }

    /// All stripes but the last, each one mixed in and diffused.
    fn fold(&self, stripes: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut state = Zeroizing::new(vec![0; self.key_length]);
        for stripe in stripes.chunks_exact(self.key_length) {
            xor(&mut state, stripe);
            for (number, part) in (0u32..).zip(state.chunks_mut(self.hash.length())) {
                let mut context = digest::Context::new(self.hash.digest());
                context.update(&number.to_be_bytes());
                context.update(part);
                let diffused = context.finish();
                part.copy_from_slice(&diffused.as_ref()[..part.len()]);
            }
        }
        state
    }
}

impl Kdf {
    /// The key of the slot's own encryption.
    fn derive(&self, key: &[u8]) -> Result<Zeroizing<[u8; 64]>, Error> {
        let mut derived = Zeroizing::new([0; 64]);
        match self {
            Self::Pbkdf2 { hash, iterations, salt } => {
                pbkdf2::derive(hash.pbkdf2(), *iterations, salt, key, &mut *derived);
            }
            Self::Argon2 { variant, passes, memory, lanes, salt } => {
                let parameters =
                    Params::new(*memory, *passes, *lanes, Some(derived.len())).map_err(|_| Error::Crypto)?;
                let mut blocks = Zeroizing::new(Vec::new());
                blocks.try_reserve_exact(parameters.block_count()).map_err(|_| Error::Memory(*memory))?;
                blocks.resize(parameters.block_count(), Block::default());
                let argon2 = Argon2::new(*variant, Version::V0x13, parameters);
                argon2
                    .hash_password_into_with_memory(key, salt, &mut *derived, &mut blocks[..])
                    .map_err(|_| Error::Crypto)?;
            }
        }
        Ok(derived)
    }
}

impl KeyDigest {
    /// Of a new volume's key, which is random, so that more iterations would protect nothing.
    pub(super) fn new(volume_key: &[u8]) -> Result<Self, Error> {
        let (hash, salt) = (Hash::Sha256, random_salt()?);
        let mut digest = vec![0; hash.length()];
        pbkdf2::derive(hash.pbkdf2(), MIN_ITERATIONS, &salt, volume_key, &mut digest);
        Ok(Self { hash, iterations: MIN_ITERATIONS, salt, digest })
    }

    pub(super) fn fits(&self, volume_key: &[u8]) -> bool {
        let mut digest = Zeroizing::new(vec![0; self.digest.len()]);
        pbkdf2::derive(self.hash.pbkdf2(), self.iterations, &self.salt, volume_key, &mut digest);
        verify_slices_are_equal(&digest, &self.digest).is_ok()
    }
}

impl Hash {
    pub(super) fn length(self) -> usize {
        self.digest().output_len()
    }

    fn digest(self) -> &'static digest::Algorithm {
        match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha512 => &digest::SHA512,
        }
    }

    fn pbkdf2(self) -> pbkdf2::Algorithm {
        match self {
            Self::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
            Self::Sha512 => pbkdf2::PBKDF2_HMAC_SHA512,
        }
    }
}

fn random_salt() -> Result<Vec<u8>, Error> {
    let mut salt = vec![0; 32];
    rand::fill(&mut salt).map_err(|_| Error::Crypto)?;
    Ok(salt)
}

fn xor(state: &mut [u8], other: &[u8]) {
    for (byte, other) in state.iter_mut().zip(other) {
        *byte ^= other;
    }
}

/// The least that the format allows.
pub(super) const MIN_ITERATIONS: NonZeroU32 = NonZeroU32::new(1000).expect("it is not zero");
const NEW_STRIPES: usize = 4000;
const ALIGNMENT: usize = 4096;
