//! How a resource's path becomes a secret's name in services that have one flat space of names.

use serde::Deserialize;
use wire::resource::ResourcePath;

use crate::error::Error;

/// Which part of a resource's path names the secret.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Naming {
    /// The tag alone, as upstream reads: paths that differ in repository or type only are one secret.
    #[default]
    Tag,
    /// The whole path, so that no two paths share a secret.
    Path,
}

impl Naming {
    /// The secret's name for `path`.
    pub(crate) fn name(
        self,
        path: &ResourcePath,
        alphabet: Alphabet,
        service: &str,
        max: usize,
    ) -> Result<String, Error> {
        let name = match self {
            Self::Tag => path.segments().last().unwrap_or_default().to_owned(),
            Self::Path => alphabet.encode(path.as_str()),
        };
        if name.len() > max {
            return Err(Error::Name { path: path.clone(), service: service.to_owned(), max });
        }
        Ok(name)
    }

    /// What a service must say when it is asked for paths.
    pub(crate) fn listable(self, service: &str) -> Result<(), Error> {
        match self {
            Self::Path => Ok(()),
            Self::Tag => Err(Error::Unsupported {
                service: service.to_owned(),
                operation: "list paths while secrets are named by tag",
                advice: "set naming = \"path\"",
            }),
        }
    }

    /// Says once, at the start, what naming by tag means.
    pub(crate) fn announce(self, service: &str) {
        if self == Self::Tag {
            tracing::warn!(
                service,
                "secrets are named by the tag alone, so resources of two repositories with one tag are one secret; \
                 next: set naming = \"path\" unless upstream's layout is needed"
            );
        }
    }
}

/// Which characters a service allows in names. Every encoding maps different paths to different names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Alphabet {
    /// All that a path has.
    Path,
    /// Letters, digits, `-` and `_`: what else there is, and `_` itself, is `_` with a digit or `_` behind it.
    Underscore,
    /// Letters of either case as one, digits and `-`: `-` escapes all but small letters and digits.
    Hyphen,
}

impl Alphabet {
    pub(crate) fn encode(self, path: &str) -> String {
        let mut name = String::with_capacity(path.len() + 16);
        for c in path.chars() {
            match (self, c) {
                (Self::Path, c) => name.push(c),
                (Self::Underscore, '_') => name.push_str("__"),
                (Self::Underscore, '/') => name.push_str("_1"),
                (Self::Underscore, '.') => name.push_str("_2"),
                (Self::Underscore, c) => name.push(c),
                (Self::Hyphen, '-') => name.push_str("--"),
                (Self::Hyphen, '/') => name.push_str("-1"),
                (Self::Hyphen, '.') => name.push_str("-2"),
                (Self::Hyphen, '_') => name.push_str("-3"),
                (Self::Hyphen, c) if c.is_ascii_uppercase() => name.extend(['-', c.to_ascii_lowercase()]),
                (Self::Hyphen, c) => name.push(c),
            }
        }
        name
    }

    /// The path whose name this is; nothing for a secret that is no resource.
    pub(crate) fn decode(self, name: &str) -> Option<ResourcePath> {
        let mut path = String::with_capacity(name.len());
        let mut rest = name.chars();
        while let Some(c) = rest.next() {
            path.push(match (self, c) {
                (Self::Underscore, '_') => match rest.next()? {
                    '_' => '_',
                    '1' => '/',
                    '2' => '.',
                    _ => return None,
                },
                (Self::Hyphen, '-') => match rest.next()?.to_ascii_lowercase() {
                    '-' => '-',
                    '1' => '/',
                    '2' => '.',
                    '3' => '_',
                    c if c.is_ascii_lowercase() => c.to_ascii_uppercase(),
                    _ => return None,
                },
                (Self::Hyphen, c) => c.to_ascii_lowercase(),
                (Self::Path | Self::Underscore, c) => c,
            });
        }
        ResourcePath::parse(&path).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATH: &str = "[A-Za-z0-9_-][A-Za-z0-9_.-]{0,9}(/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,9}){2}";

    #[test]
    fn a_path_is_named_as_the_service_allows() {
        let path = ResourcePath::parse("default/Key_1/my-k.1").unwrap();
        for (naming, alphabet, name) in [
            (Naming::Tag, Alphabet::Underscore, "my-k.1"),
            (Naming::Path, Alphabet::Path, "default/Key_1/my-k.1"),
            (Naming::Path, Alphabet::Underscore, "default_1Key__1_1my-k_21"),
            (Naming::Path, Alphabet::Hyphen, "default-1-key-31-1my--k-21"),
        ] {
            assert_eq!(naming.name(&path, alphabet, "s", 30).unwrap(), name);
        }
        assert!(matches!(Naming::Path.name(&path, Alphabet::Hyphen, "s", 25), Err(Error::Name { max: 25, .. })));
        assert!(matches!(Naming::Tag.listable("s"), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn what_is_no_encoded_path_is_no_resource() {
        for (alphabet, name) in [
            (Alphabet::Path, "only/two"),
            (Alphabet::Underscore, "a_1b_1c_"),
            (Alphabet::Underscore, "a_1b_1c_9"),
            (Alphabet::Hyphen, "a-1b-1c-"),
            (Alphabet::Hyphen, "a-1b-1c-9"),
            (Alphabet::Hyphen, "a-1b-1-2hidden"),
        ] {
            assert_eq!(alphabet.decode(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn a_name_leads_back_to_its_path_and_to_no_other(path in PATH) {
            for alphabet in [Alphabet::Path, Alphabet::Underscore, Alphabet::Hyphen] {
                let name = alphabet.encode(&path);
                prop_assert_eq!(alphabet.decode(&name), ResourcePath::parse(&path).ok());
            }
            let hyphens = Alphabet::Hyphen.encode(&path);
            prop_assert!(hyphens.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            // A service that ignores case may give the name back in another one.
            prop_assert_eq!(Alphabet::Hyphen.decode(&hyphens.to_uppercase()), ResourcePath::parse(&path).ok());
            let underscores = Alphabet::Underscore.encode(&path);
            prop_assert!(underscores.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')));
        }

        #[test]
        fn no_name_makes_it_panic(name in ".{0,40}") {
            for alphabet in [Alphabet::Path, Alphabet::Underscore, Alphabet::Hyphen] {
                let _ = alphabet.decode(&name);
            }
        }
    }
}
