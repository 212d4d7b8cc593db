//! PAX records: `LENGTH KEY=VALUE\n`, where only the length says where a value ends.

/// What the records of one extended header say about the next entry.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Records {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    /// Extended attributes in the archive's order.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse_name: Option<Vec<u8>>,
    /// Offsets and lengths in turn, of the formats of files with holes that have their map here.
    pub(crate) sparse_map: Vec<u64>,
    pub(crate) real_size: Option<u64>,
    sparse_major: Option<u64>,
    sparse_minor: Option<u64>,
}

impl Records {
    /// Reads all records; keys that say nothing about a file's content or metadata are passed over.
    pub(crate) fn parse(mut bytes: &[u8]) -> Option<Self> {
        let mut records = Self::default();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes)?;
            bytes = rest;
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                records.xattrs.push((name.to_vec(), value.to_vec()));
                continue;
            }
            // An empty value takes an earlier record back.
            let given = !value.is_empty();
            match key {
                b"path" => records.path = given.then(|| value.to_vec()),
                b"linkpath" => records.link = given.then(|| value.to_vec()),
                b"size" => records.size = optional(value, given)?,
                b"uid" => records.uid = optional(value, given)?,
                b"gid" => records.gid = optional(value, given)?,
                b"mtime" => records.mtime = if given { Some(time(value)?) } else { None },
                b"GNU.sparse.major" => records.sparse_major = optional(value, given)?,
                b"GNU.sparse.minor" => records.sparse_minor = optional(value, given)?,
                b"GNU.sparse.name" => records.sparse_name = given.then(|| value.to_vec()),
                b"GNU.sparse.realsize" | b"GNU.sparse.size" => records.real_size = optional(value, given)?,
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => records.sparse_map.push(decimal(value)?),
                b"GNU.sparse.map" => {
                    let numbers = value.split(|byte| *byte == b',').map(decimal);
                    records.sparse_map = numbers.collect::<Option<_>>()?;
                }
                _ => {}
            }
        }
        Some(records)
    }

    /// Major and minor number of GNU's format of files with holes, if it is one; 0.0 and 0.1 need not say so.
    pub(crate) fn sparse_version(&self) -> Option<(u64, u64)> {
        match (self.sparse_major, self.sparse_minor) {
            (None, None) => (!self.sparse_map.is_empty()).then_some((0, 0)),
            (major, minor) => Some((major.unwrap_or(0), minor.unwrap_or(0))),
        }
    }
}

/// Splits the first record off.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(MAX_LENGTH_DIGITS + 1).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (head, rest) = bytes.split_at_checked(length)?;
    let body = head.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

fn optional(value: &[u8], given: bool) -> Option<Option<u64>> {
    if given { decimal(value).map(Some) } else { Some(None) }
}

pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Seconds with a sign and a fraction, such as `-1.25`, as whole seconds below it and nanoseconds above them.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let (seconds, fraction) = match value.iter().position(|byte| *byte == b'.') {
        Some(point) => (&value[..point], &value[point + 1..]),
        None => (value, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(seconds)?).ok()?;
    let nanoseconds = (0..9).fold(0, |sum, place| sum * 10 + u32::from(fraction.get(place).map_or(0, |d| d - b'0')));
    match (negative, nanoseconds) {
        (false, _) => Some((seconds, nanoseconds)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanoseconds)),
    }
}

const MAX_LENGTH_DIGITS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_have_signs_and_fractions() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-0.5", Some((-1, 500_000_000))),
            ("", None),
            ("1.x", None),
            ("1e3", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for text in ["6 a=b", "5 a=b\n", "7 a=b\n", "6 a b\n", "x a=b\n", "6a=b\n", "999999999 a=b\n", "11 uid=-1\n\n"]
        {
            assert_eq!(Records::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Records::parse(b"6 a=b\n"), Some(Records::default()));
    }

    proptest! {
        #[test]
        fn any_value_survives(value in proptest::collection::vec(any::<u8>(), 0..300)) {
            let body = [b" SCHILY.xattr.user.x=", &value[..], b"\n"].concat();
            let digits = (1..9).find(|digits| (body.len() + digits).to_string().len() == *digits).unwrap();
            let bytes = [(body.len() + digits).to_string().as_bytes(), &body].concat();
            prop_assert_eq!(Records::parse(&bytes).unwrap().xattrs, [(b"user.x".to_vec(), value)]);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Records::parse(&bytes);
        }
    }
}
