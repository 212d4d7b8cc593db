//! Names of sandboxes, containers and processes, which also become names of folders.

use std::borrow::Borrow;
use std::fmt;
use std::path::Path;

/// The name of a sandbox, a container or a process: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}`.
///
/// Such a name is a single path component and never `.` or `..`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

impl Id {
    /// Parses a name that came from outside.
    ///
    /// # Errors
    /// [`InvalidId`] for anything that does not match the pattern.
    pub fn parse(text: &str) -> Result<Self, InvalidId> {
        let starts_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text.len() <= MAX_LENGTH && starts_well && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId(text.chars().take(MAX_LENGTH).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for Id {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A name that can't be one of a sandbox, a container or a process.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0:?} is not an id; next: use at most 128 letters, digits, '_', '.' and '-', the first a letter or digit")]
pub struct InvalidId(String);

const MAX_LENGTH: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_plain_names_are_ids() {
        for good in ["a", "0", "web-1.x_y", "a".repeat(128).as_str()] {
            assert!(Id::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\0", "é", "a\n", "a".repeat(129).as_str()] {
            assert!(Id::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_one_component_of_a_path(text in ".{0,140}") {
            if let Ok(id) = Id::parse(&text) {
                let folder = Path::new("/run").join(&id);
                prop_assert_eq!(folder.parent(), Some(Path::new("/run")));
            }
        }
    }
}
