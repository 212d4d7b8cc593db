//! A block of 4 KiB, filled field by field.

use crate::BLOCK;

/// A block of zeros until something is put into it.
pub(crate) struct Block(Vec<u8>);

impl Default for Block {
    fn default() -> Self {
        Self(vec![0; BLOCK])
    }
}

impl Block {
    pub(crate) fn u16(&mut self, offset: usize, value: u16) {
        self.copy(offset, &value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, offset: usize, value: u32) {
        self.copy(offset, &value.to_le_bytes());
    }

    /// As journals have it.
    pub(crate) fn u32_big_endian(&mut self, offset: usize, value: u32) {
        self.copy(offset, &value.to_be_bytes());
    }

    pub(crate) fn copy(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        &self.0[offset..offset + length]
    }

    /// Marks bits, the lowest of each byte first.
    pub(crate) fn mark(&mut self, bits: std::ops::Range<u32>) {
        for bit in bits {
            self.0[bit as usize / 8] |= 1 << (bit % 8);
        }
    }
}
