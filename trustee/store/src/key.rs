//! Names in the store: namespaces that the code fixes, keys that come from outside and are checked.

use std::fmt;

use crate::Error;

/// A part of the store that one kind of record has to itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Namespace {
    name: &'static str,
    versioned: bool,
    quiet: bool,
}

impl Namespace {
    /// A namespace named in the code.
    ///
    /// # Panics
    /// At compile time where the name is used as a constant: if it has other characters than `a-z`, `-` and `_`.
    pub const fn new(name: &'static str) -> Self {
        assert!(is_namespace(name));
        Self { name, versioned: false, quiet: false }
    }

    /// A namespace whose keys keep their last [`HISTORY`](crate::HISTORY) versions.
    ///
    /// # Panics
    /// As [`Namespace::new`].
    pub const fn versioned(name: &'static str) -> Self {
        Self { versioned: true, ..Self::new(name) }
    }

    /// A namespace that nobody follows with [`Store::changes`](crate::Store::changes): PostgreSQL then takes its
    /// writes side by side, while those it must tell others about wait for each other.
    ///
    /// # Panics
    /// As [`Namespace::new`].
    pub const fn quiet(name: &'static str) -> Self {
        Self { quiet: true, ..Self::new(name) }
    }

    /// The name.
    pub const fn as_str(self) -> &'static str {
        self.name
    }

    pub(crate) const fn is_versioned(self) -> bool {
        self.versioned
    }

    pub(crate) const fn is_quiet(self) -> bool {
        self.quiet
    }
}

/// Whether a text can name a namespace: a table and a folder of upstream's may bear it.
pub(crate) const fn is_namespace(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        if !(bytes[i].is_ascii_lowercase() || bytes[i] == b'-' || bytes[i] == b'_') {
            return false;
        }
        i += 1;
    }
    !bytes.is_empty() && bytes.len() <= 64
}

/// A key: 1 to [`MAX_KEY`] characters of `a-z A-Z 0-9 - _ . /`, as in upstream's stores.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key(String);

impl Key {
    /// Checks a key's characters and length.
    ///
    /// # Errors
    /// [`Error::Key`] with the start of the text, escaped.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/');
        if text.is_empty() || text.len() > MAX_KEY || !text.bytes().all(allowed) {
            return Err(Error::Key(text.chars().take(80).flat_map(char::escape_default).collect()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Longest key in bytes.
pub const MAX_KEY: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_has_few_kinds_of_characters() {
        for good in ["a", "default/key/1", "A-b_c.9", &"k".repeat(MAX_KEY)] {
            assert_eq!(Key::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a\0", "ü", "a'b", "a%b", "a\\b", &"k".repeat(MAX_KEY + 1)] {
            assert!(Key::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = Key::parse(&text);
        }
    }
}
