//! The form in which requests go to the driver and answers come back: `struct dm_ioctl` with targets behind it.

use zeroize::Zeroizing;

use crate::target::Row;

/// One request, or the answer that the driver wrote over it. Wiped when dropped, since a table may hold a key.
pub(crate) struct Message(Zeroizing<Vec<u8>>);

impl Message {
    /// A request about the mapping `name`, with a table where one is to be loaded.
    pub(crate) fn new(name: &str, flags: u32, table: &[Row]) -> Self {
        let targets: usize = table.iter().map(|row| spec_length(&row.parameters)).sum();
        let size = (HEADER + targets).max(ANSWER);
        let mut bytes = Zeroizing::new(Vec::with_capacity(size));
        for version in VERSION {
            bytes.extend(version.to_ne_bytes());
        }
        let (size_field, count) = (u32::try_from(size).unwrap_or(u32::MAX), table.len() as u32);
        // size, start of data, targets, open count, flags, event number, padding
        for field in [size_field, HEADER as u32, count, 0, flags, 0, 0] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend([0; 8]);
        bytes.extend(name.as_bytes().iter().take(NAME - 1));
        bytes.resize(HEADER, 0);

        let mut start = 0;
        for row in table {
            let length = spec_length(&row.parameters);
            let end = bytes.len() + length;
            bytes.extend(u64::to_ne_bytes(start));
            bytes.extend(row.sectors.to_ne_bytes());
            bytes.extend(0u32.to_ne_bytes());
            bytes.extend((length as u32).to_ne_bytes());
            bytes.extend(row.kind.as_bytes());
            bytes.resize(end - length + SPEC, 0);
            bytes.extend(row.parameters.as_bytes());
            bytes.resize(end, 0);
            start += row.sectors;
        }
        bytes.resize(size, 0);
        Self(bytes)
    }

    /// All of it, for the driver to read and to write over.
    pub(crate) fn buffer(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Of an answer: the device's minor number.
    pub(crate) fn minor(&self) -> u32 {
        let device = self.number(DEVICE);
        // The encoding of large device numbers: 12 bits of the major number lie between the parts of the minor one.
        let (low, high) = (device & 0xff, device >> 12 & 0xffff_ff00);
        (low | high) as u32
    }

    /// Of an answer about the status: one line of each target.
    pub(crate) fn lines(&self) -> Vec<String> {
        let data = self.field(DATA_START) as usize;
        let mut lines = Vec::new();
        let mut at = data;
        for _ in 0..self.field(TARGETS) {
            let Some(spec) = self.0.get(at..).filter(|spec| spec.len() >= SPEC) else { break };
            let text = spec[SPEC..].split(|byte| *byte == 0).next().unwrap_or_default();
            lines.push(String::from_utf8_lossy(text).into_owned());
            // Of an answer it counts from the first target.
            let next = spec[SPEC_NEXT..SPEC_NEXT + 4].try_into().map_or(0, u32::from_ne_bytes) as usize;
            let next = data.saturating_add(next);
            if next <= at {
                break;
            }
            at = next;
        }
        lines
    }

    fn field(&self, at: usize) -> u32 {
        self.0[at..at + 4].try_into().map_or(0, u32::from_ne_bytes)
    }

    fn number(&self, at: usize) -> u64 {
        self.0[at..at + 8].try_into().map_or(0, u64::from_ne_bytes)
    }
}

/// `struct dm_target_spec`, the parameters with their NUL, and padding to where the next one may start.
fn spec_length(parameters: &str) -> usize {
    (SPEC + parameters.len() + 1).next_multiple_of(8)
}

/// The oldest version with these fields; the driver takes it as the oldest that its user understands.
const VERSION: [u32; 3] = [4, 0, 0];
/// Size of `struct dm_ioctl`, with its seven bytes of padding.
pub(crate) const HEADER: usize = 312;
const DATA_START: usize = 16;
const TARGETS: usize = 20;
const DEVICE: usize = 40;
/// Bytes of the name with its NUL.
pub(crate) const NAME: usize = 128;
/// Size of `struct dm_target_spec`.
const SPEC: usize = 40;
const SPEC_NEXT: usize = 20;
/// Room for the longest status of the targets known here, of which one mapping has a handful.
const ANSWER: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(sectors: u64, parameters: &str) -> Row {
        Row { kind: "crypt", sectors, parameters: Zeroizing::new(parameters.to_owned()) }
    }

    #[test]
    fn targets_follow_one_another_on_the_mapping_and_in_the_message() {
        let mut message = Message::new("name", 5, &[row(8, "abc"), row(16, "defghijk")]);
        let bytes = message.buffer();
        assert_eq!(bytes.len(), ANSWER);
        assert_eq!(&bytes[..12], [4u32, 0, 0].map(u32::to_ne_bytes).concat());
        assert_eq!(&bytes[28..32], 5u32.to_ne_bytes());
        assert_eq!(&bytes[48..53], b"name\0");
        let first = &bytes[HEADER..];
        assert_eq!(&first[..16], [0u64, 8].map(u64::to_ne_bytes).concat());
        assert_eq!(&first[20..24], 48u32.to_ne_bytes());
        assert_eq!(&first[24..46], b"crypt\0\0\0\0\0\0\0\0\0\0\0abc\0\0\0");
        let second = &first[48..];
        assert_eq!(&second[..16], [8u64, 16].map(u64::to_ne_bytes).concat());
        assert_eq!(&second[40..49], b"defghijk\0");
    }

    #[test]
    fn a_table_longer_than_an_answer_fits() {
        let long = "x".repeat(2 * ANSWER);
        assert_eq!(Message::new("name", 0, &[row(8, &long)]).0.len(), HEADER + 2 * ANSWER + 48);
    }

    #[test]
    fn a_minor_number_beyond_a_byte_comes_back_whole() {
        let mut message = Message::new("name", 0, &[]);
        // As `huge_encode_dev` writes 253:0x12345.
        let device: u64 = 0x45 | 253 << 8 | (0x12300 << 12);
        message.buffer()[DEVICE..DEVICE + 8].copy_from_slice(&device.to_ne_bytes());
        assert_eq!(message.minor(), 0x12345);
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(start in any::<u32>(), count in any::<u32>(), rest in any::<[u8; 64]>()) {
            let mut message = Message::new("name", 0, &[]);
            let bytes = message.buffer();
            bytes[DATA_START..DATA_START + 4].copy_from_slice(&start.to_ne_bytes());
            bytes[TARGETS..TARGETS + 4].copy_from_slice(&count.to_ne_bytes());
            bytes[HEADER..HEADER + 64].copy_from_slice(&rest);
            let _ = message.lines();
        }
    }
}
