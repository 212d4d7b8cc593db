//! Records of a TCG event log in crypto-agile form, read one by one within bounds.

use super::Error;
use crate::evidence::RegisterAlgorithm;

/// One record of a log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record<'a> {
    /// PCR or CC measurement register.
    pub register: u32,
    /// The type of the event, such as [`EV_EVENT_TAG`](super::EV_EVENT_TAG).
    pub kind: u32,
    /// One digest for each bank: TPM_ALG_ID and value.
    pub digests: Vec<(u16, &'a [u8])>,
    /// What the type says.
    pub data: &'a [u8],
}

impl Record<'_> {
    /// The record's bytes; all numbers are little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + self.data.len());
        for number in [self.register, self.kind, self.digests.len() as u32] {
            bytes.extend(number.to_le_bytes());
        }
        for (id, digest) in &self.digests {
            bytes.extend(id.to_le_bytes());
            bytes.extend(*digest);
        }
        bytes.extend((self.data.len() as u32).to_le_bytes());
        bytes.extend(self.data);
        bytes
    }
}

/// Reads a log's records in order and ends at its end, or where it is damaged.
///
/// Firmware logs lie in a larger table: padding of 0xFF or zeros ends them as well.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    log: &'a [u8],
    at: usize,
    sizes: Vec<(u16, usize)>,
    failed: bool,
}

impl<'a> Records<'a> {
    /// A log that starts with a specification id event, which names its banks.
    ///
    /// # Errors
    /// [`Error::Header`] if there is no such event, or one of more than 16 banks.
    pub fn open(log: &'a [u8]) -> Result<Self, Error> {
        let mut header = Reader { bytes: log, at: 0 };
        let event = (|| {
            header.u32()?;
            let kind = header.u32()?;
            header.take(SHA1)?;
            let length = header.u32()? as usize;
            let event = header.take(length)?;
            (kind == EV_NO_ACTION).then_some(event)
        })();
        let sizes = event.and_then(banks).ok_or(Error::Header)?;
        Ok(Self { log, at: header.at, sizes, failed: false })
    }

    /// The part of a log behind its specification id event, with digests of any [`RegisterAlgorithm`].
    pub fn without_header(log: &'a [u8]) -> Self {
        let sizes = ALGORITHMS.map(|algorithm| (algorithm.tcg_id(), algorithm.size())).to_vec();
        Self { log, at: 0, sizes, failed: false }
    }

    /// How many bytes were read: after the last record, where the log really ends.
    pub fn offset(&self) -> usize {
        self.at
    }

    fn record(&self, reader: &mut Reader<'a>) -> Option<Record<'a>> {
        let (register, kind, count) = (reader.u32()?, reader.u32()?, reader.u32()? as usize);
        if count > MAX_BANKS {
            return None;
        }
        let mut digests = Vec::with_capacity(count);
        for _ in 0..count {
            let id = reader.u16()?;
            let (_, size) = self.sizes.iter().find(|(known, _)| *known == id)?;
            digests.push((id, reader.take(*size)?));
        }
        let length = reader.u32()? as usize;
        Some(Record { register, kind, digests, data: reader.take(length)? })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.log[self.at..];
        let padded = rest.get(..8).is_some_and(|head| head[..4] == [0xff; 4] || head == [0; 8]);
        if self.failed || rest.is_empty() || padded {
            return None;
        }
        let mut reader = Reader { bytes: self.log, at: self.at };
        match self.record(&mut reader) {
            Some(record) => {
                self.at = reader.at;
                Some(Ok(record))
            }
            None => {
                self.failed = true;
                Some(Err(Error::Damaged(self.at)))
            }
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
}

/// The digest sizes that a specification id event lists.
fn banks(event: &[u8]) -> Option<Vec<(u16, usize)>> {
    let mut reader = Reader { bytes: event, at: 0 };
    if reader.take(SIGNATURE.len())? != SIGNATURE {
        return None;
    }
    // Platform class, version and size of a UINTN, which change nothing here.
    reader.take(8)?;
    let count = reader.u32()? as usize;
    if count > MAX_BANKS {
        return None;
    }
    (0..count).map(|_| Some((reader.u16()?, usize::from(reader.u16()?)))).collect()
}

pub(super) const SIGNATURE: &[u8; 16] = b"Spec ID Event03\0";
pub(super) const EV_NO_ACTION: u32 = 3;
pub(super) const SHA1: usize = 20;
/// The hashes of all registers.
pub(super) const ALGORITHMS: [RegisterAlgorithm; 3] =
    [RegisterAlgorithm::Sha256, RegisterAlgorithm::Sha384, RegisterAlgorithm::Sm3];
/// TPMs have at most five; a count beyond this is damage.
const MAX_BANKS: usize = 16;
