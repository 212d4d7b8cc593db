//! From the payload of a message to names and values: one module for each form of payload.

mod cbor;
mod comid;
mod corim;
mod in_toto;
mod sample;
mod swid;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use store::clock::Timestamp;
use store::key::MAX_KEY;

use crate::Error;
use crate::error::excerpt;

/// What a payload says.
#[derive(Debug)]
pub struct Extract {
    /// 1 to 1000 values by name. The names are not checked yet.
    pub values: BTreeMap<String, Value>,
    /// When they hold.
    pub validity: Validity,
    /// What the payload's own signatures cover, still to be verified; nothing for a form without any.
    pub signed: Option<Signed>,
}

/// When values hold, as far as their payload says so.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Validity {
    /// From this second on.
    pub from: Option<Timestamp>,
    /// Before this second.
    pub until: Option<Timestamp>,
}

/// Signatures of a payload over itself.
#[derive(Debug)]
pub enum Signed {
    /// Of a DSSE envelope.
    Dsse {
        /// The pre-authentication encoding.
        covered: Vec<u8>,
        /// 1 to 16, each by any key.
        signatures: Vec<Vec<u8>>,
    },
    /// Of a COSE_Sign1 object.
    Cose {
        /// The encoded Sig_structure.
        covered: Vec<u8>,
        /// The signature.
        signature: Vec<u8>,
        /// What the protected header names.
        curve: Curve,
    },
}

/// Where a key lives, which decides its hash too: none, SHA-256, SHA-384.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Curve {
    /// EdDSA.
    Ed25519,
    /// ECDSA with SHA-256.
    P256,
    /// ECDSA with SHA-384.
    P384,
}

/// Reads the decoded payload of a message of type `kind`. Verifies nothing.
///
/// # Errors
/// [`Error::Extractor`] for an unknown type; [`Error::Payload`] for a payload that is not of that type, or larger
/// than 1 MiB.
pub fn extract(kind: &str, payload: &[u8]) -> Result<Extract, Error> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Error::Payload(TOO_LARGE));
    }
    let extract = match kind {
        "sample" => sample::extract(payload),
        "swid" => swid::extract(payload),
        "corim" => corim::extract(payload),
        "in-toto" => in_toto::extract(payload),
        other => return Err(Error::Extractor(excerpt(other))),
    }?;
    match extract.values.len() {
        0 => Err(Error::Payload("it holds no values")),
        1..=MAX_VALUES => Ok(extract),
        _ => Err(Error::Payload("it holds more than 1000 values")),
    }
}

impl Validity {
    /// When values registered `now` end: when they say so, or else after `lifetime`.
    pub(crate) fn end(self, now: Timestamp, lifetime: Duration) -> Result<Timestamp, Error> {
        let until = self.until.unwrap_or_else(|| now.after(lifetime));
        match self.from {
            Some(from) if now < from => Err(Error::NotYet(from)),
            _ if until <= now => Err(Error::Ended(until)),
            _ => Ok(until),
        }
    }

    /// When both hold.
    fn and(self, other: Self) -> Self {
        let until = match (self.until, other.until) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { from: self.from.max(other.from), until }
    }
}

/// A name made of what others call their things: what the store's alphabet lacks becomes an underscore.
///
/// A text that is too long for a name is refused at once: it may go into the names of many values.
fn name_of(text: &str) -> Result<String, Error> {
    if text.len() > MAX_KEY {
        return Err(Error::Name(excerpt(text)));
    }
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    Ok(text.chars().map(|c| if known(c) { c } else { '_' }).collect())
}

/// A digest in lower-case hex of `size` bytes.
fn digest_of(text: &str, size: usize) -> Option<String> {
    let is_digest = text.len() == 2 * size && text.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| text.to_ascii_lowercase())
}

pub(crate) const TOO_LARGE: &str = "it is larger than 1 MiB";
pub(crate) const MAX_PAYLOAD: usize = 1 << 20;
const MAX_VALUES: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn validities_narrow_each_other() {
        let time = |seconds| Some(Timestamp::from_unix(seconds));
        let (early, late) = (Validity { from: time(1), until: time(9) }, Validity { from: time(5), until: None });
        assert_eq!(early.and(late), Validity { from: time(5), until: time(9) });
        assert_eq!(late.and(early), early.and(late));

        let lifetime = Duration::from_secs(100);
        let end = |validity: Validity, now| validity.end(Timestamp::from_unix(now), lifetime);
        assert_eq!(end(early, 8).unwrap().unix(), 9);
        assert_eq!(end(late, 5).unwrap().unix(), 105);
        assert!(matches!(end(early, 9), Err(Error::Ended(_))));
        assert!(matches!(end(late, 4), Err(Error::NotYet(_))));
    }

    proptest! {
        #[test]
        fn no_payload_makes_an_extractor_panic(payload in prop::collection::vec(any::<u8>(), 0..300)) {
            for kind in ["sample", "swid", "corim", "in-toto", "other"] {
                let _ = extract(kind, &payload);
            }
        }
    }
}
