//! An event that is about to be measured, as it lies on disk until the log has it.

use wire::event_log::{Event, MAX_LOG, MAX_TEXT};

/// All that is needed to tell whether the event happened, and to complete it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Intent {
    /// Where its entry goes: the log's length before it.
    pub(super) offset: usize,
    /// The register's number in the log.
    pub(super) register: u32,
    /// What the register held before.
    pub(super) before: Vec<u8>,
    pub(super) event: Event,
}

impl Intent {
    /// The offset (8 bytes) and register (4 bytes) in big endian, the register's value behind its length (1 byte), and
    /// the event's text.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.offset as u64).to_be_bytes().to_vec();
        bytes.extend(self.register.to_be_bytes());
        bytes.push(self.before.len() as u8);
        bytes.extend(&self.before);
        bytes.extend(self.event.text().as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (offset, rest) = bytes.split_first_chunk::<8>()?;
        let (register, rest) = rest.split_first_chunk::<4>()?;
        let (width, rest) = rest.split_first()?;
        let (before, text) = rest.split_at_checked(usize::from(*width))?;
        let offset = usize::try_from(u64::from_be_bytes(*offset)).ok().filter(|offset| *offset <= MAX_LOG)?;
        let event = Event::parse(std::str::from_utf8(text).ok()?).ok()?;
        Some(Self { offset, register: u32::from_be_bytes(*register), before: before.to_vec(), event })
    }
}

/// Longest encoded intent.
pub(super) const MAX_INTENT: usize = 8 + 4 + 1 + 255 + MAX_TEXT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_is_read_back_and_a_damaged_one_refused() {
        let event = Event::new("a", "b", "c d").unwrap();
        let intent = Intent { offset: 300, register: 4, before: vec![7; 48], event };
        let bytes = intent.encode();
        assert_eq!(Intent::decode(&bytes), Some(intent));
        // Any shorter one misses a space of the event's text.
        for end in 0..8 + 4 + 1 + 48 + 4 {
            assert_eq!(Intent::decode(&bytes[..end]), None, "{end}");
        }
        assert_eq!(Intent::decode(&[&[0xff; 8][..], &bytes[8..]].concat()), None);
    }
}
