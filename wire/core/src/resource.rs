//! Names of resources: the path `repository/type/tag` and the URI `kbs:///repository/type/tag`.

use std::fmt;
use std::str::FromStr;

/// The path of one resource in the key broker: exactly three segments.
///
/// A segment is made of ASCII letters, digits, `_`, `-` and, not in front, `.`; so a path can't leave its folder.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ResourcePath(String);

impl ResourcePath {
    /// Parses `repository/type/tag`.
    ///
    /// # Errors
    /// [`Error::Path`] for anything else.
    pub fn parse(path: &str) -> Result<Self, Error> {
        let segments = path.split('/').filter(|segment| is_segment(segment)).count();
        if segments == 3 && path.split('/').count() == 3 && path.len() <= MAX_LENGTH {
            Ok(Self(path.to_owned()))
        } else {
            Err(Error::Path(excerpt(path)))
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The three segments.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for ResourcePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ResourcePath {
    type Err = Error;

    fn from_str(path: &str) -> Result<Self, Error> {
        Self::parse(path)
    }
}

/// A resource as guests name it: `kbs[+plugin]://[host]/segment/segment…[?query]`.
///
/// The host is accepted and ignored: which broker answers is configuration, not the name's choice.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ResourceUri {
    /// The broker's plugin, `resource` unless the scheme names another.
    pub plugin: String,
    /// The path without a leading slash.
    pub path: String,
    /// What follows `?`.
    pub query: Option<String>,
}

impl ResourceUri {
    /// Parses a URI.
    ///
    /// # Errors
    /// [`Error::Uri`] for another scheme, an empty path, or segments that a path of the broker can't hold.
    pub fn parse(uri: &str) -> Result<Self, Error> {
        let refused = || Error::Uri(excerpt(uri));
        if uri.len() > MAX_LENGTH {
            return Err(refused());
        }
        let (scheme, rest) = uri.split_once("://").ok_or_else(refused)?;
        let plugin = match scheme.split_once('+') {
            None if scheme == "kbs" => DEFAULT_PLUGIN,
            Some(("kbs", plugin)) if is_segment(plugin) => plugin,
            _ => return Err(refused()),
        };
        let (location, query) = match rest.split_once('?') {
            Some((location, query)) if is_query(query) => (location, Some(query.to_owned())),
            Some(_) => return Err(refused()),
            None => (rest, None),
        };
        let (_host, path) = location.split_once('/').ok_or_else(refused)?;
        if !path.split('/').all(is_segment) {
            return Err(refused());
        }
        Ok(Self { plugin: plugin.to_owned(), path: path.to_owned(), query })
    }

    /// The URI of a path of the plugin `resource`.
    pub fn resource(path: &ResourcePath) -> Self {
        Self { plugin: DEFAULT_PLUGIN.to_owned(), path: path.as_str().to_owned(), query: None }
    }

    /// The part of a request's URL behind `/kbs/v0/`.
    pub fn url_path(&self) -> String {
        match &self.query {
            Some(query) => format!("{}/{}?{query}", self.plugin, self.path),
            None => format!("{}/{}", self.plugin, self.path),
        }
    }
}

impl fmt::Display for ResourceUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.plugin.as_str() {
            DEFAULT_PLUGIN => f.write_str("kbs:///")?,
            plugin => write!(f, "kbs+{plugin}:///")?,
        }
        f.write_str(&self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

impl FromStr for ResourceUri {
    type Err = Error;

    fn from_str(uri: &str) -> Result<Self, Error> {
        Self::parse(uri)
    }
}

/// Why a name was refused. The text shown is escaped and cut, since it can come from anyone.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("\"{0}\" is not a resource path; write repository/type/tag, such as default/key/1")]
    Path(String),
    #[error("\"{0}\" is not a resource URI; write kbs:///repository/type/tag, such as kbs:///default/key/1")]
    Uri(String),
}

fn is_segment(segment: &str) -> bool {
    !segment.starts_with('.')
        && !segment.is_empty()
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

fn is_query(query: &str) -> bool {
    query.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'#' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`'))
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

const DEFAULT_PLUGIN: &str = "resource";
const MAX_LENGTH: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_path_has_three_plain_segments() {
        for good in ["default/key/1", "a/b/c.d", "A_-9/b..c/d"] {
            assert_eq!(ResourcePath::parse(good).unwrap().to_string(), good);
        }
        for bad in
            ["", "a/b", "a/b/c/d", "/a/b/c", "a//c", "a/b/..", "../a/b", "a/b/.c", "a/b/c d", "a/b/c%2f", "a/b/ü"]
        {
            assert!(ResourcePath::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_uri_names_plugin_path_and_query() {
        for (uri, url, shown) in [
            ("kbs:///default/key/1", "resource/default/key/1", "kbs:///default/key/1"),
            ("kbs+resource://host:1/a/b/c", "resource/a/b/c", "kbs:///a/b/c"),
            (
                "kbs+nebula-ca:///credential?name=n&ip=1.2.3.4/8",
                "nebula-ca/credential?name=n&ip=1.2.3.4/8",
                "kbs+nebula-ca:///credential?name=n&ip=1.2.3.4/8",
            ),
        ] {
            let parsed = ResourceUri::parse(uri).unwrap();
            assert_eq!(parsed.url_path(), url);
            assert_eq!(parsed.to_string(), shown);
        }
        for bad in [
            "",
            "kbs://",
            "kbs:///",
            "https:///a/b/c",
            "kbs+://a/b",
            "kbs:///a/../b",
            "kbs:///kbs:///a/b/c",
            "kbs:///a//b",
            "kbs:///a?b c",
        ] {
            assert!(ResourceUri::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,200}") {
            let _ = ResourcePath::parse(&text);
            let _ = ResourceUri::parse(&text);
        }

        #[test]
        fn a_shown_uri_parses_to_the_same(path in "[a-z0-9_-]{1,8}(/[a-z0-9_-]{1,8}){0,4}", plugin in "[a-z0-9-]{1,8}") {
            let uri = ResourceUri { plugin, path, query: None };
            prop_assert_eq!(ResourceUri::parse(&uri.to_string()).unwrap(), uri);
        }
    }
}
