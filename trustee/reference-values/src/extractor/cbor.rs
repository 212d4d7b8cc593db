//! Bounded access to CBOR (RFC 8949).

use ciborium::Value;

use crate::Error;

/// Parses one item that takes all of `bytes`, with at most 100,000 items in it, nested at most 32 deep.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, Error> {
    check_count(bytes).ok_or(Error::Payload("it is not CBOR of at most 100000 items"))?;
    let mut rest = bytes;
    match ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH) {
        Ok(value) if rest.is_empty() => Ok(value),
        _ => Err(Error::Payload("it is not one CBOR item, nested at most 32 deep")),
    }
}

/// The item as bytes.
pub(super) fn encoded(item: &Value) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    ciborium::into_writer(item, &mut bytes).map_err(|_| Error::Payload("one of its CBOR items can't be written"))?;
    Ok(bytes)
}

/// The member of a map under an integer key.
pub(super) fn member(map: &Value, key: i64) -> Result<Option<&Value>, Error> {
    let map = map.as_map().ok_or(Error::Payload("it has another CBOR item where a map should be"))?;
    let mut found = map.iter().filter(|(name, _)| *name == Value::from(key)).map(|(_, value)| value);
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(Error::Payload("a map in it has the same key twice")),
        (value, None) => Ok(value),
    }
}

/// As [`member`], a text.
pub(super) fn text_member(map: &Value, key: i64) -> Result<Option<&str>, Error> {
    match member(map, key)? {
        Some(value) if !value.is_text() => Err(Error::Payload("it has another CBOR item where a text should be")),
        value => Ok(value.and_then(Value::as_text)),
    }
}

/// The items of an array.
pub(super) fn items(value: &Value) -> Result<&[Value], Error> {
    let items = value.as_array().map(Vec::as_slice);
    items.ok_or(Error::Payload("it has another CBOR item where an array should be"))
}

/// A byte string.
pub(super) fn bytes(value: &Value) -> Result<&[u8], Error> {
    let bytes = value.as_bytes().map(Vec::as_slice);
    bytes.ok_or(Error::Payload("it has another CBOR item where bytes should be"))
}

/// Counts the heads of items one after the other: a small document must not become a large tree.
fn check_count(bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    for _ in 0..MAX_ITEMS {
        let Some((&first, after)) = rest.split_first() else { return Some(()) };
        let (major, info) = (first >> 5, first & 0x1f);
        let width = match info {
            24..=27 => 1 << (info - 24),
            _ => 0,
        };
        let (argument, after) = after.split_at_checked(width)?;
        let argument = match info {
            0..=23 => u64::from(info),
            _ => argument.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        };
        let is_string = matches!(major, 2 | 3) && info != INDEFINITE;
        rest = after.get(if is_string { usize::try_from(argument).ok()? } else { 0 }..)?;
    }
    rest.is_empty().then_some(())
}

const MAX_DEPTH: usize = 32;
const MAX_ITEMS: usize = 100_000;
const INDEFINITE: u8 = 31;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bounds_hold() {
        let nested = |depth| [vec![0x81; depth], vec![0]].concat();
        assert!(parse(&nested(20)).is_ok());
        assert!(parse(&nested(40)).is_err());
        assert!(parse(&nested(500_000)).is_err());

        let wide = |items: u32| [&[0x9a][..], &items.to_be_bytes(), &vec![0; items as usize]].concat();
        assert!(parse(&wide(99_999)).is_ok());
        assert!(parse(&wide(100_000)).is_err());
        // A head that promises more than there is.
        assert!(parse(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(parse(&[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        for bad in [&[][..], &[0, 0], &[0x18], &[0x41], &[0xff]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_key_counts_once() {
        let map = parse(&[0xa3, 0x01, 0x61, b'a', 0x02, 0x05, 0x02, 0x06]).unwrap();
        assert_eq!(text_member(&map, 1).unwrap(), Some("a"));
        assert_eq!(text_member(&map, 3).unwrap(), None);
        assert!(member(&map, 2).is_err());
        assert!(text_member(&parse(&[0xa1, 0x02, 0x05]).unwrap(), 2).is_err());
        assert!(member(&Value::Null, 1).is_err());
    }

    proptest! {
        #[test]
        fn what_the_library_writes_is_within_the_count(bytes: Vec<u8>, text: String, number: u64) {
            let value = Value::Array(vec![Value::Bytes(bytes), Value::Text(text), Value::from(number)]);
            prop_assert_eq!(parse(&encoded(&value).unwrap()).unwrap(), value);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
