//! The few protobuf messages of a KMS instance's gateway, without copies of the secret that outlive it.

/// `GetSecretValueRequest { SecretName = 1 }`.
pub(super) fn get_secret_value(name: &str) -> Vec<u8> {
    let mut message = vec![(1 << 3) | LENGTH_DELIMITED];
    let mut length = name.len();
    while length >= 0x80 {
        message.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.extend_from_slice(name.as_bytes());
    message
}

/// The last value of a text field of a message; nothing if it is absent or the message is broken.
pub(super) fn text(message: &[u8], field: u64) -> Option<&str> {
    let mut rest = message;
    let mut found = None;
    while !rest.is_empty() {
        let tag = varint(&mut rest)?;
        match (tag & 7) as u8 {
            0 => {
                varint(&mut rest)?;
            }
            1 => rest = rest.get(8..)?,
            LENGTH_DELIMITED => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                let (value, after) = rest.split_at_checked(length)?;
                rest = after;
                if tag >> 3 == field {
                    found = Some(std::str::from_utf8(value).ok()?);
                }
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    found
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

const LENGTH_DELIMITED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_found_among_others() {
        // 1: 7 (number), 2: eight bytes, 3: "ab", 5: four bytes, 3: "c".
        let message = b"\x08\x07\x11________\x1a\x02ab\x2d____\x1a\x01c";
        assert_eq!(text(message, 3), Some("c"));
        assert_eq!(text(message, 4), None);
        for broken in [&b"\x1a\x05ab"[..], b"\x1a", b"\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0b", b"\x11a"]
        {
            assert_eq!(text(broken, 3), None, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn a_written_name_is_read(name in "[a-z]{0,300}") {
            let message = get_secret_value(&name);
            prop_assert_eq!(text(&message, 1), Some(name.as_str()));
        }

        #[test]
        fn no_message_makes_it_panic(message: Vec<u8>) {
            let _ = text(&message, 3);
        }
    }
}
