//! The binary part of a header: magic, sizes and a checksum over itself and the JSON behind it, in two copies.

use aws_lc_rs::{digest, rand};

use super::Error;
use super::error::excerpt;

/// What one copy says.
pub(super) struct BinaryHeader {
    /// Bytes of this copy, JSON included.
    pub(super) size: usize,
    /// Counts up with every change.
    pub(super) sequence: u64,
    pub(super) uuid: String,
    /// The text up to its first NUL.
    pub(super) json: Vec<u8>,
}

/// Which of the copies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Copy {
    First,
    Second,
}

impl BinaryHeader {
    /// Checks one copy at the start of `bytes`.
    pub(super) fn parse(bytes: &[u8], copy: Copy) -> Result<Self, Error> {
        let head = bytes.get(..BINARY).ok_or(Error::Truncated)?;
        if !head.starts_with(copy.magic()) {
            return Err(match copy {
                Copy::First => Error::NotLuks,
                Copy::Second => Error::CopiesDiffer,
            });
        }
        let version = u16::from_be_bytes([head[6], head[7]]);
        if version != 2 {
            return Err(Error::Version(version));
        }
        let size = number(head, SIZE);
        let size = SIZES
            .iter()
            .copied()
            .find(|known| *known as u64 == size)
            .ok_or_else(|| Error::Field { what: "the size", found: size.to_string() })?;
        let offset = number(head, OFFSET);
        let expected = if copy == Copy::First { 0 } else { size as u64 };
        if offset != expected {
            return Err(Error::Field { what: "the offset of a copy", found: offset.to_string() });
        }
        let algorithm = text(&head[ALGORITHM..ALGORITHM + 32]);
        if algorithm != "sha256" {
            return Err(Error::forbidden("the checksum", algorithm, "sha256"));
        }

        let bytes = bytes.get(..size).ok_or(Error::Truncated)?;
        if checksum(bytes).as_ref() != &bytes[CHECKSUM..CHECKSUM + SHA256] {
            return Err(Error::Checksum(copy.name()));
        }
        let uuid = text(&head[UUID..UUID + 40]);
        if uuid.len() != 36 || !uuid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
            return Err(Error::Field { what: "the UUID", found: excerpt(&uuid) });
        }
        let json = bytes[BINARY..].split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        Ok(Self { size, sequence: number(head, SEQUENCE), uuid, json })
    }

    /// One copy of a new header, of [`NEW_SIZE`] bytes.
    pub(super) fn write(copy: Copy, uuid: &str, json: &[u8]) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; NEW_SIZE];
        bytes[..6].copy_from_slice(copy.magic());
        bytes[7] = 2;
        let offset = if copy == Copy::First { 0 } else { NEW_SIZE };
        for (at, value) in [(SIZE, NEW_SIZE), (SEQUENCE, 1), (OFFSET, offset)] {
            bytes[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
        }
        bytes[ALGORITHM..ALGORITHM + 6].copy_from_slice(b"sha256");
        rand::fill(&mut bytes[SALT..SALT + 64]).map_err(|_| Error::Crypto)?;
        bytes[UUID..UUID + uuid.len()].copy_from_slice(uuid.as_bytes());
        let area = bytes.get_mut(BINARY..BINARY + json.len());
        area.ok_or(Error::Truncated)?.copy_from_slice(json);
        let checksum = checksum(&bytes);
        bytes[CHECKSUM..CHECKSUM + SHA256].copy_from_slice(checksum.as_ref());
        Ok(bytes)
    }
}

impl Copy {
    fn magic(self) -> &'static [u8] {
        match self {
            Self::First => MAGIC,
            Self::Second => b"SKUL\xba\xbe",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Second => "second",
        }
    }
}

/// Over a whole copy, with zeros where the checksum itself is.
fn checksum(copy: &[u8]) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&copy[..CHECKSUM]);
    context.update(&[0; 64]);
    context.update(&copy[CHECKSUM + 64..]);
    context.finish()
}

fn number(head: &[u8], at: usize) -> u64 {
    head[at..at + 8].try_into().map_or(0, u64::from_be_bytes)
}

/// A field that a NUL ends.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

pub(super) const MAGIC: &[u8] = b"LUKS\xba\xbe";
/// Bytes in front of the JSON.
pub(super) const BINARY: usize = 4096;
/// Bytes of a new copy: what cryptsetup makes too.
pub(super) const NEW_SIZE: usize = 16 << 10;
pub(super) const MAX_SIZE: usize = 128 << 10;
/// The format knows sizes up to 4 MiB; a single key slot needs the smallest.
const SIZES: [usize; 4] = [NEW_SIZE, 32 << 10, 64 << 10, MAX_SIZE];
const SHA256: usize = 32;
const SIZE: usize = 8;
const SEQUENCE: usize = 16;
const ALGORITHM: usize = 72;
const SALT: usize = 104;
const UUID: usize = 168;
const OFFSET: usize = 256;
const CHECKSUM: usize = 448;
