//! Conditional writes (RFC 9110, section 13): `If-Match` with an ETag, and `If-None-Match: *`.

use hyper::HeaderMap;
use hyper::header::{HeaderName, IF_MATCH, IF_NONE_MATCH};
use resource_backends::Condition;
use store::If;

use crate::refusal::Refusal;

/// What must be true for a write to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Precondition {
    /// Nothing.
    None,
    /// There is nothing yet.
    Absent,
    /// What is there has this ETag.
    Version(String),
}

impl Precondition {
    /// The condition in a request's headers.
    ///
    /// # Errors
    /// [`Refusal::Precondition`] for what these headers can't say here.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        match (header(headers, IF_MATCH)?, header(headers, IF_NONE_MATCH)?) {
            (None, None) => Ok(Self::None),
            (None, Some("*")) => Ok(Self::Absent),
            (Some(etag), None) => {
                let version = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
                let plain = version.filter(|version| !version.is_empty() && !version.contains(['"', ',']));
                plain.map(|version| Self::Version(version.to_owned())).ok_or(Refusal::Precondition)
            }
            _ => Err(Refusal::Precondition),
        }
    }

    /// The same for the store.
    ///
    /// # Errors
    /// [`Refusal::Changed`] for an ETag that the store never gave out.
    pub fn of_store(&self) -> Result<If, Refusal> {
        match self {
            Self::None => Ok(If::Any),
            Self::Absent => Ok(If::Absent),
            Self::Version(version) => u64::from_str_radix(version, 16).map(If::Version).map_err(|_| Refusal::Changed),
        }
    }

    /// The same for a back end of resources.
    pub fn of_backend(self) -> Condition {
        match self {
            Self::None => Condition::Any,
            Self::Absent => Condition::Absent,
            Self::Version(version) => Condition::Version(version),
        }
    }
}

/// The ETag of a version in the store.
pub(crate) fn etag(version: u64) -> String {
    format!("{version:x}")
}

fn header(headers: &HeaderMap, name: HeaderName) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|text| Some(text.trim())).map_err(|_| Refusal::Precondition),
        (Some(_), Some(_)) => Err(Refusal::Precondition),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_condition_is_read_or_refused() {
        let read = |pairs: &[(HeaderName, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, HeaderValue::from_static(value));
            }
            Precondition::of(&headers).ok()
        };
        assert_eq!(read(&[]), Some(Precondition::None));
        assert_eq!(read(&[(IF_NONE_MATCH, "*")]), Some(Precondition::Absent));
        assert_eq!(read(&[(IF_MATCH, "\"1f\"")]), Some(Precondition::Version("1f".to_owned())));
        assert_eq!(Precondition::Version("1f".to_owned()).of_store().ok(), Some(If::Version(31)));
        assert!(matches!(Precondition::Version("x".to_owned()).of_store(), Err(Refusal::Changed)));
        for bad in ["*", "1f", "W/\"1f\"", "\"1\", \"2\"", "\"\"", "\"", ""] {
            assert_eq!(read(&[(IF_MATCH, bad)]), None, "{bad:?}");
        }
        assert_eq!(read(&[(IF_NONE_MATCH, "\"1\"")]), None);
        assert_eq!(read(&[(IF_MATCH, "\"1\""), (IF_NONE_MATCH, "*")]), None);
        assert_eq!(read(&[(IF_MATCH, "\"1\""), (IF_MATCH, "\"2\"")]), None);
    }
}
