//! A resource's value as a member of a Vault secret: a text, or an array of bytes.

use std::fmt;

use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// A value to write: a text if it is one.
pub(super) struct Value<'a>(pub(super) &'a [u8]);

/// A value that was read.
pub(super) struct Read(pub(super) Zeroizing<Vec<u8>>);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Read {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Bytes)
    }
}

struct Bytes;

impl<'de> Visitor<'de> for Bytes {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or an array of bytes")
    }

    fn visit_str<E>(self, text: &str) -> Result<Read, E> {
        Ok(Read(Zeroizing::new(text.as_bytes().to_vec())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Read, A::Error> {
        let mut value = Zeroizing::new(Vec::new());
        while let Some(byte) = bytes.next_element()? {
            if value.len() == value.capacity() {
                // Grown by hand, so that the memory left behind is wiped.
                let mut larger = Zeroizing::new(Vec::with_capacity(value.len() * 2 + 64));
                larger.extend_from_slice(&value);
                value = larger;
            }
            value.push(byte);
        }
        if value.len() > MAX { Err(A::Error::custom("too long")) } else { Ok(Read(value)) }
    }
}

/// As much as the own store holds.
const MAX: usize = store::MAX_VALUE;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn upstreams_forms_are_read_and_written() {
        assert_eq!(serde_json::to_string(&Value(b"a \"text\"")).unwrap(), r#""a \"text\"""#);
        assert_eq!(serde_json::to_string(&Value(&[0xff, 0])).unwrap(), "[255,0]");
        assert_eq!(serde_json::to_string(&Value(b"")).unwrap(), r#""""#);
        assert_eq!(serde_json::from_str::<Read>("[1,2,255]").unwrap().0.as_slice(), [1, 2, 255]);
        for bad in ["null", "7", "[256]", "[-1]", "[\"a\"]", "{}"] {
            assert!(serde_json::from_str::<Read>(bad).is_err(), "{bad} passed");
        }
    }

    proptest! {
        #[test]
        fn every_value_survives(value: Vec<u8>) {
            let written = serde_json::to_string(&Value(&value)).unwrap();
            let read = serde_json::from_str::<Read>(&written).unwrap();
            prop_assert_eq!(read.0.as_slice(), value);
        }
    }
}
