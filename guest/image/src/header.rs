//! One header of a tar archive: fields at fixed places of a block of 512 bytes.

/// One header block whose checksum is right.
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    pub(crate) fn new(block: [u8; BLOCK]) -> Option<Self> {
        let header = Self(block);
        let expected = header.number(CHECKSUM)?;
        let bytes = || header.0[..CHECKSUM.0].iter().chain(&[b' '; 8]).chain(&header.0[CHECKSUM.0 + CHECKSUM.1..]);
        let unsigned: u64 = bytes().map(|byte| u64::from(*byte)).sum();
        // Some old writers summed signed characters.
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        (expected == unsigned || i64::try_from(expected) == Ok(signed)).then_some(header)
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// A GNU header's descriptors of a file with holes, and whether more follow in a block of their own.
    pub(crate) fn gnu_sparse(&self) -> (&[u8], bool) {
        (&self.0[GNU_SPARSE..GNU_SPARSE + 4 * 24], self.0[GNU_EXTENDED] != 0)
    }

    fn field(&self, (offset, length): (usize, usize)) -> &[u8] {
        &self.0[offset..offset + length]
    }

    pub(crate) fn text(&self, field: (usize, usize)) -> &[u8] {
        let bytes = self.field(field);
        &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
    }

    /// Octal digits, or GNU's binary form; an empty field is zero.
    pub(crate) fn number(&self, field: (usize, usize)) -> Option<u64> {
        number(self.field(field))
    }

    pub(crate) fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        let prefix = if self.field(MAGIC) == b"ustar\0" { self.text(PREFIX) } else { b"" };
        match prefix {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }
}

/// Reads a number of a header: octal digits, or GNU's binary form if the first bit is set.
pub(crate) fn number(field: &[u8]) -> Option<u64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        // Two's complement of all bits but the first; what does not fit in 64 of them must be sign alone.
        let sign: u8 = if first & 0x40 == 0 { 0 } else { 0xff };
        let mut value = u64::from_ne_bytes([sign; 8]);
        for byte in [&(first & 0x7f | sign & 0x80)].into_iter().chain(rest) {
            if value >> 56 != u64::from(sign) {
                return None;
            }
            value = value << 8 | u64::from(*byte);
        }
        return Some(value);
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    match text {
        "" => Some(0),
        digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => u64::from_str_radix(digits, 8).ok(),
        _ => None,
    }
}

pub(crate) const BLOCK: usize = 512;
const NAME: (usize, usize) = (0, 100);
pub(crate) const MODE: (usize, usize) = (100, 8);
pub(crate) const UID: (usize, usize) = (108, 8);
pub(crate) const GID: (usize, usize) = (116, 8);
pub(crate) const SIZE: (usize, usize) = (124, 12);
pub(crate) const MTIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const TYPE: usize = 156;
pub(crate) const LINK: (usize, usize) = (157, 100);
const MAGIC: (usize, usize) = (257, 6);
pub(crate) const DEV_MAJOR: (usize, usize) = (329, 8);
pub(crate) const DEV_MINOR: (usize, usize) = (337, 8);
const PREFIX: (usize, usize) = (345, 155);
const GNU_SPARSE: usize = 386;
const GNU_EXTENDED: usize = 482;
pub(crate) const GNU_REAL_SIZE: (usize, usize) = (483, 12);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"    644 ", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(2 << 32)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some((-2_i64).cast_unsigned())),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"9999999\0", None),
            (b"-000001\0", None),
            (b"+000001\0", None),
        ] {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
