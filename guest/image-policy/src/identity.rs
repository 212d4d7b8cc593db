//! Whether the name that a signer wrote into a signature is the name that was asked for.

use std::fmt;

use oci_spec::distribution::Reference;
use serde::Deserialize;
use wire::image_reference::parse_reference;

/// How the signed name must relate to the name that was asked for.
///
/// Source: containers-policy.json(5), "signedIdentity".
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(crate) enum SignedIdentity {
    /// The same repository and tag; a reference by digest never matches.
    MatchExact {},
    /// The same repository, and for a reference by tag the same tag.
    MatchRepoDigestOrExact {},
    /// The same repository.
    MatchRepository {},
    /// This name with its tag or digest, whatever was asked for.
    #[serde(rename_all = "camelCase")]
    ExactReference { docker_reference: FullName },
    /// This repository, whatever was asked for.
    #[serde(rename_all = "camelCase")]
    ExactRepository { docker_repository: Repository },
    /// Like `matchRepoDigestOrExact` after the prefix of the asked name was replaced.
    #[serde(rename_all = "camelCase")]
    RemapIdentity { prefix: Prefix, signed_prefix: Prefix },
}

impl SignedIdentity {
    /// Whether an image called `asked` may carry a signature that names it `signed`.
    pub(crate) fn accepts(&self, asked: &Name, signed: &Name) -> bool {
        match self {
            Self::MatchExact {} => asked.is_by_tag() && asked == signed,
            Self::MatchRepoDigestOrExact {} => asked.matches_by_repository_or_exactly(signed),
            Self::MatchRepository {} => asked.repository == signed.repository,
            Self::ExactReference { docker_reference } => docker_reference.0 == *signed,
            Self::ExactRepository { docker_repository } => docker_repository.0 == signed.repository,
            Self::RemapIdentity { prefix, signed_prefix } => {
                asked.remapped(&prefix.0, &signed_prefix.0).matches_by_repository_or_exactly(signed)
            }
        }
    }
}

/// A normalised name; unlike a [`Reference`] it knows whether a tag was given.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Name {
    /// Registry and path, as in `docker.io/library/busybox`.
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Name {
    /// Parses a name as a signer or a policy writes it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let reference = parse_reference(text).map_err(|e| format!("{text:?} is not an image's name: {e}"))?;
        let untagged = text.split('@').next().unwrap_or_default();
        let tagged = untagged.rsplit('/').next().is_some_and(|last| last.contains(':'));
        Ok(Self { tag: reference.tag().filter(|_| tagged).map(str::to_owned), ..Self::of(&reference) })
    }

    /// The name of an image to be pulled; of a tag beside a digest nothing is known.
    pub(crate) fn of(reference: &Reference) -> Self {
        Self {
            repository: format!("{}/{}", reference.registry(), reference.repository()),
            tag: reference.tag().filter(|_| reference.digest().is_none()).map(str::to_owned),
            digest: reference.digest().map(str::to_owned),
        }
    }

    fn is_by_tag(&self) -> bool {
        self.tag.is_some() && self.digest.is_none()
    }

    fn matches_by_repository_or_exactly(&self, signed: &Self) -> bool {
        match self.is_by_tag() {
            true => self == signed,
            false => self.digest.is_some() && self.repository == signed.repository,
        }
    }

    /// Replaces the prefix where it ends at a path's boundary.
    fn remapped(&self, prefix: &str, signed_prefix: &str) -> Self {
        match self.repository.strip_prefix(prefix) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                Self { repository: format!("{signed_prefix}{rest}"), ..self.clone() }
            }
            _ => self.clone(),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

/// A name with a tag or digest.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct FullName(Name);

impl TryFrom<String> for FullName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = Name::parse(&text)?;
        match name.tag.is_some() || name.digest.is_some() {
            true => Ok(Self(name)),
            false => Err(format!("dockerReference {text:?} has neither tag nor digest")),
        }
    }
}

/// A name without tag and digest.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct Repository(String);

impl TryFrom<String> for Repository {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = Name::parse(&text)?;
        match name.tag.is_none() && name.digest.is_none() {
            true => Ok(Self(name.repository)),
            false => Err(format!("dockerRepository {text:?} has a tag or digest")),
        }
    }
}

/// A registry or a registry with a path, taken as it is written.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "String")]
pub(crate) struct Prefix(String);

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // A registry alone, such as "host:5000", would be taken for a name with a tag.
        match Name::parse(&format!("{text}/x")) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(format!("{text:?} is not a prefix such as registry.example/team")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn identity(json: &str) -> SignedIdentity {
        serde_json::from_str(json).unwrap()
    }

    fn accepts(identity: &SignedIdentity, asked: &str, signed: &str) -> bool {
        let asked: Reference = asked.replace("$D", D).parse().unwrap();
        identity.accepts(&Name::of(&asked), &Name::parse(&signed.replace("$D", D)).unwrap())
    }

    #[test]
    fn each_identity_type_accepts_what_the_format_says() {
        let exact_reference = r#"{"type":"exactReference","dockerReference":"r.io/signed:v1"}"#;
        let exact_repository = r#"{"type":"exactRepository","dockerRepository":"busybox"}"#;
        let remap = r#"{"type":"remapIdentity","prefix":"mirror:5000/pub","signedPrefix":"vendor.io"}"#;
        for (json, asked, signed, expected) in [
            (r#"{"type":"matchExact"}"#, "r.io/a:v1", "r.io/a:v1", true),
            (r#"{"type":"matchExact"}"#, "r.io/a", "r.io/a:latest", true),
            (r#"{"type":"matchExact"}"#, "r.io/a", "r.io/a", false),
            (r#"{"type":"matchExact"}"#, "r.io/a:v1", "r.io/a:v2", false),
            (r#"{"type":"matchExact"}"#, "r.io/a@$D", "r.io/a@$D", false),
            (r#"{"type":"matchExact"}"#, "busybox:1", "docker.io/library/busybox:1", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "r.io/a:v1", "r.io/a:v1", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "r.io/a:v1", "r.io/a:v2", false),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "r.io/a@$D", "r.io/a:v2", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "r.io/a:v1@$D", "r.io/a:v2", true),
            (r#"{"type":"matchRepoDigestOrExact"}"#, "r.io/a@$D", "r.io/b:v2", false),
            (r#"{"type":"matchRepository"}"#, "r.io/a:v1", "r.io/a", true),
            (r#"{"type":"matchRepository"}"#, "r.io/a:v1", "r.io/a/b", false),
            (r#"{"type":"matchRepository"}"#, "r.io:1/a:v1", "r.io/a", false),
            (exact_reference, "other.io/x:1", "r.io/signed:v1", true),
            (exact_reference, "other.io/x:1", "r.io/signed", false),
            (exact_repository, "other.io/x:1", "docker.io/library/busybox:7", true),
            (exact_repository, "busybox:1", "docker.io/busybox2:1", false),
            (remap, "mirror:5000/pub/app:1", "vendor.io/app:1", true),
            (remap, "mirror:5000/public/app:1", "vendor.iolic/app:1", false),
            (remap, "mirror:5000/pub/app:1", "mirror:5000/pub/app:1", false),
            (remap, "elsewhere.io/app:1", "elsewhere.io/app:1", true),
        ] {
            assert_eq!(accepts(&identity(json), asked, signed), expected, "{json}: {asked} signed as {signed}");
        }
    }

    #[test]
    fn an_identity_that_could_never_match_is_refused_at_once() {
        for json in [
            r#"{"type":"exactReference","dockerReference":"r.io/a"}"#,
            r#"{"type":"exactRepository","dockerRepository":"r.io/a:v1"}"#,
            r#"{"type":"exactRepository","dockerRepository":"NOT/a name"}"#,
            r#"{"type":"remapIdentity","prefix":"r.io/a:1","signedPrefix":"s.io"}"#,
            r#"{"type":"remapIdentity","prefix":"r.io/"}"#,
            r#"{"type":"matchExact","extra":1}"#,
            r#"{"type":"matchAll"}"#,
        ] {
            assert!(serde_json::from_str::<SignedIdentity>(json).is_err(), "{json}");
        }
    }
}
