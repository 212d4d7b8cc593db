//! LUKS2 headers: what the first bytes of an encrypted disk say, checked before anything is done with them.
//!
//! The disk belongs to the host, which can write whatever it likes into a header. So only one shape is taken: one segment
//! of `aes-xts-plain64` with a 512-bit key, with or without HMAC-SHA-256; one key slot, itself encrypted with
//! `aes-xts-plain64` under PBKDF2 or Argon2; no requirement that is not known here; both copies the same. In particular a
//! key slot under a null cipher, which would let the host choose the volume's key, is refused.
//!
//! What that leaves to an attacker who writes the disk and can't guess the owner's key:
//!
//! - The volume's key can't be chosen or exchanged: it comes out of the key slot only through the owner's key, and its
//!   digest is in the header. Changing salt, cost, stripes, or the slot itself gives a key whose digest does not fit.
//!   Key and algorithms hold together too, since a volume with authentication has a longer key.
//! - Cost is bounded: iterations, memory, sizes and the header itself have limits, so that a header can't stop a guest.
//! - Offset, length and sector size of the segment are not authenticated. With authentication a volume at a wrong place reads as
//!   errors, since each tag covers the sector's number; without it, it reads as noise, which a file system refuses.
//! - **Older or other content** is not noticed: whole disks, or single sectors with their tags, can be set back to an
//!   earlier state, and a disk be exchanged for another one under the same owner's key. Use one key for one volume.
//! - Without authentication, ciphertext can be changed: 16 bytes at a time become random, which nobody can steer but which
//!   nobody notices either. Use authentication where the host is not to be trusted with that.
//!
//! Source: LUKS2 On-Disk Format Specification 1.1.

mod area;
mod binary;
mod error;
mod integrity;
mod metadata;
#[cfg(test)]
mod tests;
mod xts;

use std::num::NonZeroU32;
use std::ops::Range;

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use area::{Kdf, KeyDigest, KeySlot};
use binary::{BinaryHeader, Copy};
pub use error::Error;
pub use integrity::IntegritySuperblock;
use metadata::Metadata;

/// A header that has passed every check.
#[derive(Debug)]
pub struct Header {
    uuid: String,
    segment: Segment,
    slot: KeySlot,
    digest: KeyDigest,
}

/// Where the ciphertext is, and in which form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Where it starts on the device, in bytes: a multiple of the sector size.
    pub offset: u64,
    /// Bytes: a multiple of the sector size, and within the device.
    pub length: u64,
    /// What is encrypted at once: 512, 1024, 2048 or 4096 bytes.
    pub sector_size: u32,
    /// Whether each sector has a tag (HMAC-SHA-256), in a dm-integrity area that fills the segment.
    pub authenticated: bool,
}

/// What a new volume is to be like.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The device's size in bytes.
    pub device_size: u64,
    /// As [`Segment::sector_size`].
    pub sector_size: u32,
    /// As [`Segment::authenticated`].
    pub authenticated: bool,
}

/// A new volume, of which nothing has been written yet.
pub struct NewVolume {
    /// What goes to the start of the device: both copies of the header and the key slot, below half a MiB.
    pub image: Vec<u8>,
    /// Where the ciphertext goes.
    pub segment: Segment,
    /// The volume's key.
    pub volume_key: VolumeKey,
}

/// A volume's own key: 64 bytes for XTS, and 32 more for HMAC where the volume is authenticated.
pub type VolumeKey = Zeroizing<Vec<u8>>;

impl Header {
    /// How many of a device's first bytes [`Header::parse`] wants to see, or the whole device if it is smaller.
    pub const MAX_METADATA: usize = 2 * binary::MAX_SIZE;

    /// Whether a device's first bytes look like LUKS of any version.
    pub fn is_present(start: &[u8]) -> bool {
        start.starts_with(binary::MAGIC)
    }

    /// Checks the header at the start of a device of `device_size` bytes.
    ///
    /// # Errors
    /// Every variant of [`Error`] but [`Error::WrongKey`] and [`Error::Memory`].
    pub fn parse(start: &[u8], device_size: u64) -> Result<Self, Error> {
        let first = BinaryHeader::parse(start, Copy::First)?;
        let second = start.get(first.size..).ok_or(Error::Truncated)?;
        let second = BinaryHeader::parse(second, Copy::Second)?;
        if first.size != second.size || first.sequence != second.sequence || first.uuid != second.uuid {
            return Err(Error::CopiesDiffer);
        }
        if first.json != second.json {
            return Err(Error::CopiesDiffer);
        }
        let metadata = Metadata::parse(&first.json)?;
        let (slot, segment, digest) = metadata.check(first.size as u64, device_size)?;
        Ok(Self { uuid: first.uuid, segment, slot, digest })
    }

    /// The volume's UUID.
    pub fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Where the ciphertext is.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// The bytes of the device that [`Header::unlock`] wants to see: at most half a MiB.
    pub fn key_area(&self) -> Range<u64> {
        self.slot.area()
    }

    /// Memory in KiB that unlocking takes: 0 but for Argon2.
    pub fn memory_cost(&self) -> u32 {
        match self.slot.kdf {
            Kdf::Argon2 { memory, .. } => memory,
            Kdf::Pbkdf2 { .. } => 0,
        }
    }

    /// The volume's key, by the owner's key. Takes as long as whoever made the header wanted; at most a minute or two.
    ///
    /// # Errors
    /// [`Error::WrongKey`] if it is not the owner's key or the header is not genuine; [`Error::Memory`] if there is not
    /// enough for Argon2; [`Error::Truncated`] if `area` is not all of [`Header::key_area`].
    pub fn unlock(&self, area: &[u8], key: &[u8]) -> Result<VolumeKey, Error> {
        let volume_key = self.slot.open(area, key)?;
        if self.digest.fits(&volume_key) { Ok(volume_key) } else { Err(Error::WrongKey) }
    }
}

impl NewVolume {
    /// Makes a volume's key, and a header from which `key` gets it back.
    ///
    /// PBKDF2 is given the least work that the format allows where `key` is random, and 600,000 iterations where it may be a
    /// passphrase: a key of at least 32 bytes that is not UTF-8 is taken for random.
    ///
    /// # Errors
    /// [`Error::Layout`] if the device is too small or the sector size is none, [`Error::EmptyKey`], [`Error::Crypto`].
    pub fn create(format: Format, key: &[u8]) -> Result<Self, Error> {
        if key.is_empty() {
            return Err(Error::EmptyKey);
        }
        let segment = Segment::whole(DATA_OFFSET, format.device_size, format.sector_size, format.authenticated)?;
        let volume_key = segment.random_key()?;
        let is_random = key.len() >= 32 && str::from_utf8(key).is_err();
        let iterations = if is_random { area::MIN_ITERATIONS } else { PASSPHRASE_ITERATIONS };
        let slot = KeySlot::new(AREA_OFFSET, volume_key.len(), iterations)?;
        let digest = KeyDigest::new(&volume_key)?;
        let uuid = random_uuid()?;

        let json = Metadata::new(&slot, &segment, &digest, DATA_OFFSET - AREA_OFFSET).to_json()?;
        let mut image = Vec::with_capacity(slot.area().end as usize);
        image.extend(BinaryHeader::write(Copy::First, &uuid, &json)?);
        image.extend(BinaryHeader::write(Copy::Second, &uuid, &json)?);
        image.extend(slot.seal(&volume_key, key)?);
        Ok(Self { image, segment, volume_key })
    }
}

impl Segment {
    /// All of a device from `offset` on.
    ///
    /// # Errors
    /// [`Error::Layout`] if that is nothing, or the sector size is none.
    pub fn whole(offset: u64, device_size: u64, sector_size: u32, authenticated: bool) -> Result<Self, Error> {
        metadata::check_sector_size(sector_size)?;
        let sector = u64::from(sector_size);
        let length = device_size.saturating_sub(offset) / sector * sector;
        if !offset.is_multiple_of(sector) {
            return Err(Error::Layout(format!("the segment starts at {offset}, amid a sector of {sector} bytes")));
        }
        if length == 0 {
            return Err(Error::Layout(format!("a device of {device_size} bytes has no room from {offset} on")));
        }
        Ok(Self { offset, length, sector_size, authenticated })
    }

    /// A new key that fits.
    ///
    /// # Errors
    /// [`Error::Crypto`] if there is no randomness.
    pub fn random_key(&self) -> Result<VolumeKey, Error> {
        let mut key = Zeroizing::new(vec![0; self.key_length()]);
        rand::fill(&mut key).map_err(|_| Error::Crypto)?;
        Ok(key)
    }

    /// Bytes of the volume's key.
    pub fn key_length(&self) -> usize {
        if self.authenticated { XTS_KEY + HMAC_KEY } else { XTS_KEY }
    }
}

/// Version 4, variant 1.
fn random_uuid() -> Result<String, Error> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| Error::Crypto)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    let parts = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
    Ok(parts.join("-"))
}

const XTS_KEY: usize = 64;
const HMAC_KEY: usize = 32;
/// Behind both copies of a header of 16 KiB.
const AREA_OFFSET: u64 = 2 * binary::NEW_SIZE as u64;
/// As cryptsetup has it: room for more key slots.
const DATA_OFFSET: u64 = 16 << 20;
/// What OWASP advises for PBKDF2 with SHA-256.
const PASSPHRASE_ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("it is not zero");
