//! Maps of files with holes: which pieces of a file an archive holds.

use crate::header::number;
use crate::pax::decimal;

/// A piece of a file that is not a hole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Segments in the order in which they were read.
#[derive(Default)]
pub(crate) struct Map(Vec<Segment>);

impl Map {
    fn add(&mut self, offset: u64, length: u64) -> Option<()> {
        (self.0.len() < MAX_SEGMENTS).then(|| self.0.push(Segment { offset, length }))
    }

    /// Takes offsets and lengths in turn, as the PAX records of the formats 0.0 and 0.1 have them.
    pub(crate) fn from_pairs(numbers: &[u64]) -> Option<Self> {
        let (pairs, []) = numbers.as_chunks() else { return None };
        let mut map = Self::default();
        pairs.iter().try_for_each(|[offset, length]| map.add(*offset, *length))?;
        Some(map)
    }

    /// Adds the descriptors of a GNU header: pairs of fields of 12 bytes, the unused ones empty.
    pub(crate) fn add_gnu(&mut self, descriptors: &[u8]) -> Option<()> {
        for descriptor in descriptors.chunks_exact(24).take_while(|descriptor| descriptor[0] != 0) {
            self.add(number(&descriptor[..12])?, number(&descriptor[12..])?)?;
        }
        Some(())
    }

    /// Checks that the segments follow each other inside `size` bytes and take all `data` bytes of the entry.
    pub(crate) fn finish(self, size: u64, data: u64) -> Option<Vec<Segment>> {
        let mut end = 0;
        let mut sum = 0_u64;
        for segment in &self.0 {
            if segment.offset < end {
                return None;
            }
            end = segment.offset.checked_add(segment.length)?;
            sum = sum.checked_add(segment.length)?;
        }
        (end <= size && sum == data && size <= MAX_SIZE).then_some(self.0)
    }
}

/// Reads format 1.0: a count of segments, then offset and length of each, in decimal on lines of their own.
#[derive(Default)]
pub(crate) struct Lines {
    rest: Vec<u8>,
    expected: Option<u64>,
    offset: Option<u64>,
    read: u64,
}

impl Lines {
    pub(crate) fn done(&self) -> bool {
        self.expected == Some(self.read)
    }

    /// Takes one block; whatever follows the last number in it is padding.
    pub(crate) fn add(&mut self, block: &[u8], map: &mut Map) -> Option<()> {
        for byte in block {
            if self.done() {
                break;
            }
            if *byte != b'\n' {
                self.rest.push(*byte);
                if self.rest.len() > MAX_DIGITS {
                    return None;
                }
                continue;
            }
            if self.rest.is_empty() {
                return None;
            }
            let value = decimal(&self.rest)?;
            self.rest.clear();
            if self.expected.is_none() {
                self.expected = Some(value);
            } else if let Some(offset) = self.offset.take() {
                map.add(offset, value)?;
                self.read += 1;
            } else {
                self.offset = Some(value);
            }
        }
        Some(())
    }
}

const MAX_SEGMENTS: usize = 1 << 18;
const MAX_DIGITS: usize = 20;
/// What a file's length may be in the kernel.
const MAX_SIZE: u64 = i64::MAX as u64;
