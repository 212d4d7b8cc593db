//! The runtime event log (AAEL): what a guest measured after its boot, and the register values that prove it.
//!
//! Each event is a line of text. Its tagged form is hashed, the hash extends a register of the TEE, and an entry in
//! TCG's crypto-agile form is appended to the log, so that a verifier can replay the log against the register.
//!
//! Source: CoCo attestation agent event log; TCG PC Client Platform Firmware Profile 1.06, sections 10.2 and 10.4.

mod cc;
mod record;

pub use cc::cc_event_log;
pub use record::{Record, Records};

use serde_json::json;

use crate::evidence::RegisterAlgorithm;
use record::ALGORITHMS;

/// One event of the guest: who measured, what was done, and to what.
///
/// Its text is `<domain> <operation> <content>`. Domain and operation have no white space, so the text can be taken
/// apart in one way only; the content may have spaces, and no line breaks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    text: String,
    domain: usize,
    operation: usize,
}

impl Event {
    /// An event of the three parts.
    ///
    /// # Errors
    /// [`Error::Word`] for a domain or operation that is empty or has white space or control characters,
    /// [`Error::Content`] for content with a line break, [`Error::TooLong`] for more than [`MAX_TEXT`] bytes in all.
    pub fn new(domain: &str, operation: &str, content: &str) -> Result<Self, Error> {
        for (what, word) in [("domain", domain), ("operation", operation)] {
            if word.is_empty() || word.contains(|c: char| c.is_whitespace() || c.is_control()) {
                return Err(Error::Word(what));
            }
        }
        if content.contains(['\n', '\r', '\0']) {
            return Err(Error::Content);
        }
        let text = format!("{domain} {operation} {content}");
        if text.len() > MAX_TEXT {
            return Err(Error::TooLong);
        }
        Ok(Self { text, domain: domain.len(), operation: operation.len() })
    }

    /// Takes an event's text apart.
    ///
    /// # Errors
    /// [`Error::Text`] without two spaces; otherwise as [`Event::new`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut parts = text.splitn(3, ' ');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(domain), Some(operation), Some(content)) => Self::new(domain, operation, content),
            _ => Err(Error::Text),
        }
    }

    /// The event of an image that was pulled: `image` as it was asked for, and the digest of its manifest.
    ///
    /// The content is canonical JSON (RFC 8785), so that a verifier can compute it from the two values.
    ///
    /// # Errors
    /// As [`Event::new`].
    pub fn pull_image(image: &str, digest: &str) -> Result<Self, Error> {
        let content = serde_json_canonicalizer::to_string(&json!({ "image": image, "digest": digest }))
            .map_err(|_| Error::Content)?;
        Self::new(DOMAIN, PULL_IMAGE, &content)
    }

    /// The whole line.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whose event it is, such as `github.com/confidential-containers`.
    pub fn domain(&self) -> &str {
        &self.text[..self.domain]
    }

    /// What was done.
    pub fn operation(&self) -> &str {
        &self.text[self.domain + 1..][..self.operation]
    }

    /// To what.
    pub fn content(&self) -> &str {
        &self.text[self.domain + self.operation + 2..]
    }

    /// The bytes that are hashed and logged: tag, length, text; both numbers 4 bytes, little endian.
    pub fn tagged(&self) -> Vec<u8> {
        // At most MAX_TEXT, so the length fits.
        let length = self.text.len() as u32;
        [&TAG.to_le_bytes()[..], &length.to_le_bytes(), self.text.as_bytes()].concat()
    }

    /// The event in tagged form.
    ///
    /// # Errors
    /// [`Error::Tag`] for another tag, a wrong length or text that is not UTF-8; otherwise as [`Event::parse`].
    pub fn from_tagged(data: &[u8]) -> Result<Self, Error> {
        let (tag, rest) = data.split_first_chunk::<4>().ok_or(Error::Tag)?;
        let (length, text) = rest.split_first_chunk::<4>().ok_or(Error::Tag)?;
        if u32::from_le_bytes(*tag) != TAG || u32::from_le_bytes(*length) as usize != text.len() {
            return Err(Error::Tag);
        }
        Self::parse(std::str::from_utf8(text).map_err(|_| Error::Tag)?)
    }

    /// What extends a register.
    pub fn digest(&self, algorithm: RegisterAlgorithm) -> Vec<u8> {
        algorithm.digest(&self.tagged())
    }
}

/// An event with the register that it extended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The measurement register's number in the log: for TDX and CSV the CC measurement register, else the PCR.
    pub register: u32,
    /// The register's hash.
    pub algorithm: RegisterAlgorithm,
    /// The event.
    pub event: Event,
}

impl Entry {
    /// The entry in crypto-agile form: register, type `EV_EVENT_TAG`, one digest, the tagged event.
    pub fn encode(&self) -> Vec<u8> {
        let data = self.event.tagged();
        Record {
            register: self.register,
            kind: EV_EVENT_TAG,
            digests: vec![(self.algorithm.tcg_id(), &self.algorithm.digest(&data))],
            data: &data,
        }
        .encode()
    }

    /// The entry that `record` stands for, if its digest is that of its event.
    ///
    /// # Errors
    /// [`Error::Entry`] for another type of event or more than one digest, [`Error::Digest`] if it does not fit.
    pub fn from_record(record: &Record<'_>) -> Result<Self, Error> {
        let [(id, digest)] = record.digests[..] else { return Err(Error::Entry) };
        let algorithm = ALGORITHMS.into_iter().find(|algorithm| algorithm.tcg_id() == id).ok_or(Error::Entry)?;
        if record.kind != EV_EVENT_TAG {
            return Err(Error::Entry);
        }
        if algorithm.digest(record.data) != digest {
            return Err(Error::Digest);
        }
        Ok(Self { register: record.register, algorithm, event: Event::from_tagged(record.data)? })
    }
}

/// All entries of an agent's log, which has no header of its own.
///
/// # Errors
/// If any entry is cut short or not one of an agent, or the log is longer than [`MAX_LOG`]. Padding, which ends a firmware's
/// log, is damage here: what an agent appended behind it would never be read.
pub fn entries(log: &[u8]) -> Result<Vec<Entry>, Error> {
    if log.len() > MAX_LOG {
        return Err(Error::TooLong);
    }
    let mut records = Records::without_header(log);
    let entries = records.by_ref().map(|record| Entry::from_record(&record?)).collect::<Result<_, _>>()?;
    if records.offset() == log.len() { Ok(entries) } else { Err(Error::Damaged(records.offset())) }
}

/// The value of `register` after all of `entries`, if it was `start` before.
pub fn replay(entries: &[Entry], register: u32, start: Vec<u8>) -> Vec<u8> {
    entries.iter().filter(|entry| entry.register == register).fold(start, |value, entry| {
        let digest = entry.event.digest(entry.algorithm);
        entry.algorithm.extended(&value, &digest)
    })
}

/// Why an event, an entry or a log was refused. No text repeats what was measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the event's {0} is empty or has white space, which its text could not be taken apart again with")]
    Word(&'static str),
    #[error("the event's content has a line break")]
    Content,
    #[error("an event's text is at most {MAX_TEXT} bytes, a log at most {MAX_LOG}")]
    TooLong,
    #[error("the event's text is not \"domain operation content\"")]
    Text,
    #[error("the entry's data is not a tagged event of an attestation agent")]
    Tag,
    #[error("the entry is not one of an attestation agent")]
    Entry,
    #[error("the entry's digest is not that of its event")]
    Digest,
    #[error("the log does not start with a TCG specification id event")]
    Header,
    #[error("the log is cut short or damaged at byte {0}")]
    Damaged(usize),
}

/// Longest text of one event, in bytes.
pub const MAX_TEXT: usize = 64 << 10;
/// Longest log of an agent, in bytes: it is part of every evidence.
pub const MAX_LOG: usize = 1 << 20;
/// `EV_EVENT_TAG`: an event that its own tag describes.
pub const EV_EVENT_TAG: u32 = 6;
/// `AAEL`.
const TAG: u32 = 0x4141_454c;
const DOMAIN: &str = "github.com/confidential-containers";
const PULL_IMAGE: &str = "PullImage";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_event_has_upstreams_bytes_and_digests() {
        let event = Event::new("domain", "operation", "content").unwrap();
        assert_eq!(hex::encode(event.tagged()), "4c45414118000000646f6d61696e206f7065726174696f6e20636f6e74656e74");
        assert_eq!(
            hex::encode(event.digest(RegisterAlgorithm::Sha256)),
            "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351"
        );
        assert_eq!(
            hex::encode(event.digest(RegisterAlgorithm::Sha384)),
            "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a22990cf04d5692440fb00f3aa0609db7e49cd8d793f670d02"
        );
    }

    #[test]
    fn an_entry_is_laid_out_as_a_crypto_agile_event() {
        let event = Event::new("domain", "operation", "content").unwrap();
        let digest = hex::encode(event.digest(RegisterAlgorithm::Sha384));
        let tagged = hex::encode(event.tagged());
        let entry = Entry { register: 4, algorithm: RegisterAlgorithm::Sha384, event };
        assert_eq!(hex::encode(entry.encode()), format!("0400000006000000010000000c00{digest}20000000{tagged}"));
    }

    #[test]
    fn nothing_hides_behind_padding_in_an_agents_log() {
        let event = Event::new("domain", "operation", "content").unwrap();
        let entry = Entry { register: 4, algorithm: RegisterAlgorithm::Sha384, event }.encode();
        for padding in [[0; 8], [0xff; 8]] {
            assert_eq!(entries(&[&entry[..], &padding, &entry].concat()), Err(Error::Damaged(entry.len())));
            assert_eq!(entries(&padding), Err(Error::Damaged(0)));
        }
        assert_eq!(entries(&entry.repeat(2)).unwrap().len(), 2);
    }

    #[test]
    fn a_text_that_could_be_read_in_two_ways_is_refused() {
        for (domain, operation, content, error) in [
            ("a b", "c", "d", Error::Word("domain")),
            ("a", "b c", "d", Error::Word("operation")),
            ("a\tb", "c", "d", Error::Word("domain")),
            ("a", "b\n", "d", Error::Word("operation")),
            ("a", "b\u{a0}", "d", Error::Word("operation")),
            ("", "b", "c", Error::Word("domain")),
            ("a", "", "c", Error::Word("operation")),
            ("a", "b", "c\nd e f", Error::Content),
            ("a", "b", "c\r", Error::Content),
        ] {
            assert_eq!(Event::new(domain, operation, content), Err(error), "{domain:?} {operation:?} {content:?}");
        }
        assert_eq!(Event::new("a", "b", &"c".repeat(MAX_TEXT)), Err(Error::TooLong));
        assert_eq!(Event::parse("a b"), Err(Error::Text));
        assert_eq!(Event::new("a", "b", "").unwrap(), Event::parse("a b ").unwrap());
    }

    #[test]
    fn a_pulled_image_is_canonical_json() {
        let event = Event::pull_image("registry/a\"b:1", "sha256:00").unwrap();
        assert_eq!(
            event.text(),
            "github.com/confidential-containers PullImage {\"digest\":\"sha256:00\",\"image\":\"registry/a\\\"b:1\"}"
        );
    }

    #[test]
    fn what_is_no_entry_of_an_agent_is_refused() {
        let event = Event::new("a", "b", "c").unwrap();
        let good = Entry { register: 1, algorithm: RegisterAlgorithm::Sha256, event }.encode();
        assert_eq!(entries(&good).unwrap().len(), 1);

        let mut digest = good.clone();
        digest[20] ^= 1;
        assert_eq!(entries(&digest), Err(Error::Digest));
        let mut kind = good.clone();
        kind[4] = 1;
        assert_eq!(entries(&kind), Err(Error::Entry));
        assert_eq!(entries(&good[..good.len() - 1]), Err(Error::Damaged(0)));
        assert_eq!(entries(&[&good[..], &good[..7]].concat()), Err(Error::Damaged(good.len())));
        assert_eq!(entries(&vec![0; MAX_LOG + 1]), Err(Error::TooLong));
    }

    #[test]
    fn a_replay_extends_each_register_by_its_own_events() {
        let entry = |register, content: &str| Entry {
            register,
            algorithm: RegisterAlgorithm::Sha256,
            event: Event::new("a", "b", content).unwrap(),
        };
        let log = [entry(1, "x"), entry(2, "y"), entry(1, "z")];
        let digest = |content: &str| Event::new("a", "b", content).unwrap().digest(RegisterAlgorithm::Sha256);
        let first = RegisterAlgorithm::Sha256.digest(&[&[0; 32][..], &digest("x")].concat());
        let second = RegisterAlgorithm::Sha256.digest(&[&first[..], &digest("z")].concat());
        assert_eq!(replay(&log, 1, vec![0; 32]), second);
        assert_eq!(replay(&log, 3, vec![7; 32]), [7; 32]);
    }

    proptest! {
        #[test]
        fn any_event_survives_the_log(
            parts in proptest::collection::vec(("[!-~é]{1,20}", "[!-~]{1,20}", "[ -~é]{0,60}", 0_u32..24), 0..6),
        ) {
            let log: Vec<Entry> = parts
                .iter()
                .map(|(domain, operation, content, register)| Entry {
                    register: *register,
                    algorithm: RegisterAlgorithm::Sm3,
                    event: Event::new(domain, operation, content).unwrap(),
                })
                .collect();
            for (entry, (domain, operation, content, _)) in log.iter().zip(&parts) {
                prop_assert_eq!(entry.event.domain(), domain);
                prop_assert_eq!(entry.event.operation(), operation);
                prop_assert_eq!(entry.event.content(), content);
            }
            let bytes: Vec<u8> = log.iter().flat_map(Entry::encode).collect();
            prop_assert_eq!(entries(&bytes).unwrap(), log);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = entries(&bytes);
            let _ = Event::from_tagged(&bytes);
        }
    }
}
