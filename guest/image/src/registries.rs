//! Where an image may come from: registries, mirrors and remaps of a containers-registries document, version 2.
//!
//! Source: containers-registries.conf(5). A rule is found by the longest prefix that begins the image's name and ends
//! at a separator; the image stays what its own name says, and with it the signature policy that it must satisfy.

use std::collections::BTreeMap;
use std::fmt;

use oci_spec::distribution::Reference;
use serde::Deserialize;
use serde::de::IgnoredAny;
use wire::image_reference::parse_reference;

use crate::registry::error::{Attempt, RegistryError};

/// A containers-registries document. Parsed, it holds no rule that could not be followed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Document")]
pub struct RegistryConfig {
    /// Hosts to try, in order, for names without a registry, which are names at `docker.io`; nothing if not given.
    search: Option<Vec<String>>,
    aliases: BTreeMap<String, String>,
    rules: Vec<Rule>,
}

/// One place from which an image may be fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Source {
    /// The image's name there.
    pub(crate) reference: Reference,
    /// Whether HTTP, or TLS with any certificate, is good enough.
    pub(crate) insecure: bool,
}

/// All places for one image.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    /// In the order in which they are to be tried.
    pub(crate) sources: Vec<Source>,
    /// Those that the document forbids or describes in a way that gives no name.
    pub(crate) refused: Vec<Attempt>,
}

impl RegistryConfig {
    /// Parses a TOML document.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.message().to_owned())
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned()).and_then(Self::parse)
    }

    /// Where `original` may come from: for each name that it stands for its mirrors first, then its own place.
    pub(crate) fn candidates(&self, original: &Reference) -> Candidates {
        let mut found = Candidates { sources: Vec::new(), refused: Vec::new() };
        for name in self.names(original) {
            match name {
                Ok(reference) => self.add(&reference, &mut found),
                Err((name, cause)) => found.refuse(name, cause),
            }
        }
        found
    }

    /// The image itself, or what a name without a registry may mean.
    fn names(&self, original: &Reference) -> Vec<Result<Reference, (String, String)>> {
        if original.registry() != DOCKER_HUB {
            return vec![Ok(original.clone())];
        }
        let short = original.repository().strip_prefix("library/").unwrap_or(original.repository());
        if let Some(target) = self.aliases.get(short) {
            return vec![renamed(target, original).map_err(|cause| (target.clone(), cause))];
        }
        let named = |host: &String| match host.as_str() {
            DOCKER_HUB => Ok(original.clone()),
            host => {
                let name = format!("{host}/{short}");
                renamed(&name, original).map_err(|cause| (name, cause))
            }
        };
        match &self.search {
            Some(hosts) => hosts.iter().map(named).collect(),
            None => vec![Ok(original.clone())],
        }
    }

    fn add(&self, reference: &Reference, found: &mut Candidates) {
        let matches = self.rules.iter().filter_map(|rule| Some((rule, rule.prefix.rest(reference)?)));
        let Some((rule, rest)) = matches.max_by_key(|(rule, _)| rule.prefix.0.len()) else {
            return found.add(Source { reference: reference.clone(), insecure: false });
        };
        if rule.blocked {
            let cause = RegistryError::Blocked { rule: rule.prefix.0.clone() };
            return found.refused.push(Attempt { source: reference.whole(), cause });
        }
        let mirrors = rule.mirrors.iter().filter(|mirror| match mirror.pull_from_mirror {
            PullFromMirror::All => true,
            PullFromMirror::DigestOnly => reference.digest().is_some(),
            PullFromMirror::TagOnly => reference.digest().is_none(),
        });
        for mirror in mirrors {
            found.add_renamed(&mirror.location, &rest, reference, mirror.insecure);
        }
        match &rule.location {
            Some(location) => found.add_renamed(location, &rest, reference, rule.insecure),
            None => found.add(Source { reference: reference.clone(), insecure: rule.insecure }),
        }
    }
}

impl Candidates {
    /// The same sources with one of them in front: what has one part of an image should have the others.
    pub(crate) fn starting_with(&self, first: &Source) -> Self {
        let others = self.sources.iter().filter(|source| *source != first).cloned();
        Self { sources: std::iter::once(first.clone()).chain(others).collect(), refused: Vec::new() }
    }

    fn add_renamed(&mut self, location: &str, rest: &str, reference: &Reference, insecure: bool) {
        let name = format!("{location}{rest}");
        match renamed(&name, reference) {
            Ok(reference) => self.add(Source { reference, insecure }),
            Err(cause) => self.refuse(name, cause),
        }
    }

    fn add(&mut self, source: Source) {
        if !self.sources.contains(&source) {
            self.sources.push(source);
        }
    }

    fn refuse(&mut self, name: String, cause: String) {
        self.refused.push(Attempt { source: name, cause: RegistryError::Name { cause } });
    }
}

/// One `[[registry]]` table.
#[derive(Clone, Debug)]
struct Rule {
    prefix: Prefix,
    location: Option<String>,
    insecure: bool,
    blocked: bool,
    mirrors: Vec<Mirror>,
}

/// `host[:port][/path…]`, also with a tag or digest, or `*.host[:port]`.
#[derive(Clone, Debug)]
struct Prefix(String);

impl Prefix {
    /// What follows the prefix in the name of an image that it covers, without tag and digest.
    fn rest(&self, reference: &Reference) -> Option<String> {
        let name = format!("{}/{}", reference.registry(), reference.repository());
        let digest = reference.digest().map(|digest| format!("{name}@{digest}"));
        let forms = std::iter::once(reference.whole()).chain(digest);
        let end = forms.filter_map(|form| self.end(&form)).next()?;
        Some(name.get(end..).unwrap_or_default().to_owned())
    }

    fn end(&self, name: &str) -> Option<usize> {
        let ends_well = |end: &usize| matches!(name.as_bytes().get(*end), None | Some(b':' | b'/' | b'@'));
        match self.0.strip_prefix('*') {
            None => Some(self.0.len()).filter(|end| name.starts_with(&self.0) && ends_well(end)),
            Some(suffix) => {
                let within_host = |start: &usize| *start > 0 && !name[..*start].contains('/');
                let starts = name.match_indices(suffix).map(|(start, _)| start);
                starts.filter(within_host).map(|start| start + suffix.len()).find(ends_well)
            }
        }
    }
}

/// The name `text`, with the original's digest if that has one, and its tag unless `text` brings its own.
fn renamed(text: &str, original: &Reference) -> Result<Reference, String> {
    let (host, path) = text.split_once('/').ok_or("it has no repository")?;
    let versioned = path.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    let parsed = parse_reference(text)?;
    if parsed.registry() != host && !(parsed.registry() == DOCKER_HUB && host == "index.docker.io") {
        return Err(format!("{host:?} is not the name of a registry"));
    }
    if let (true, Some(own), Some(asked)) = (versioned, parsed.digest(), original.digest())
        && own != asked
    {
        return Err("it has another digest than the image".to_owned());
    }
    let tag = if versioned { parsed.tag() } else { original.tag() };
    let digest = original.digest().or(parsed.digest());
    let (registry, repository) = (parsed.registry().to_owned(), parsed.repository().to_owned());
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => {
            Reference::with_tag_and_digest(registry, repository, tag.to_owned(), digest.to_owned())
        }
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.to_owned()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    })
}

/// The document as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    unqualified_search_registries: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<Entry>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// How a person is asked; there is nobody to ask inside a guest.
    #[serde(default, rename = "short-name-mode")]
    _short_name_mode: Option<IgnoredAny>,
    #[serde(default)]
    credential_helpers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFromMirror,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum PullFromMirror {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

impl TryFrom<Document> for RegistryConfig {
    type Error = Unusable;

    fn try_from(document: Document) -> Result<Self, Unusable> {
        if let Some(helper) = document.credential_helpers.iter().find(|helper| *helper != "containers-auth.json") {
            return Err(Unusable(format!("the credential helper {helper:?} can't run inside a guest")));
        }
        let rules = document.registry.into_iter().map(Rule::try_from).collect::<Result<Vec<_>, _>>()?;
        let mut prefixes: Vec<_> = rules.iter().map(|rule| rule.prefix.0.as_str()).collect();
        prefixes.sort_unstable();
        if let Some(pair) = prefixes.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Unusable(format!("there are two registries with the prefix {:?}", pair[0])));
        }
        // An empty target takes an alias of another file back.
        let aliases = document.aliases.into_iter().filter(|(_, target)| !target.is_empty()).collect();
        Ok(Self { search: document.unqualified_search_registries, aliases, rules })
    }
}

impl TryFrom<Entry> for Rule {
    type Error = Unusable;

    fn try_from(entry: Entry) -> Result<Self, Unusable> {
        let prefix = match (entry.prefix.as_deref(), entry.location.as_deref()) {
            (Some(prefix), _) if !prefix.is_empty() => location(prefix)?,
            (_, Some(place)) => location(place)?,
            _ => return Err(Unusable("a registry has neither prefix nor location".to_owned())),
        };
        if prefix.strip_prefix('*').map_or(prefix.contains('*'), |rest| !rest.starts_with('.') || rest.contains('*')) {
            return Err(Unusable(format!("the prefix {prefix:?} may begin with *. and have no other star")));
        }
        let mut mirrors = entry.mirror;
        for mirror in &mut mirrors {
            mirror.location = location(&mirror.location)?;
            if entry.mirror_by_digest_only {
                if mirror.pull_from_mirror != PullFromMirror::All {
                    return Err(Unusable(format!(
                        "the registry {prefix:?} has mirror-by-digest-only and a mirror with pull-from-mirror"
                    )));
                }
                mirror.pull_from_mirror = PullFromMirror::DigestOnly;
            }
        }
        // A location that only names the prefix changes nothing.
        let own = entry.location.as_deref().filter(|place| !place.is_empty()).map(location).transpose()?;
        if own.as_deref().is_some_and(|own| own.contains('*')) {
            return Err(Unusable(format!("the location {own:?} has a star")));
        }
        Ok(Self { prefix: Prefix(prefix), location: own, insecure: entry.insecure, blocked: entry.blocked, mirrors })
    }
}

fn location(text: &str) -> Result<String, Unusable> {
    let trimmed = text.trim_end_matches('/');
    match trimmed.is_empty() || trimmed.contains("://") || !trimmed.bytes().all(|b| b.is_ascii_graphic()) {
        true => Err(Unusable(format!("{text:?} is not a place such as registry.example:5000/path"))),
        false => Ok(trimmed.to_owned()),
    }
}

/// Why a document can't be followed.
#[derive(Debug)]
struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const DOCKER_HUB: &str = "docker.io";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// What is tried, `!` before an insecure place and `-` before a refused one.
    fn tried(config: &str, image: &str) -> Vec<String> {
        let image = image.replace("@D", &format!("@{DIGEST}"));
        let found = RegistryConfig::parse(config).unwrap().candidates(&image.parse().unwrap());
        let shown = |source: &Source| format!("{}{}", if source.insecure { "!" } else { "" }, source.reference);
        let refused = found.refused.iter().map(|attempt| format!("-{}", attempt.source));
        found.sources.iter().map(shown).chain(refused).map(|text| text.replace(DIGEST, "D")).collect()
    }

    #[test]
    fn every_image_is_looked_for_in_the_right_places() {
        let mirrors = "[[registry]]\nprefix = \"a.io/team\"\nlocation = \"own.io/x\"\n\
             [[registry.mirror]]\nlocation = \"m1.io\"\n[[registry.mirror]]\nlocation = \"m2.io:5000/y\"\ninsecure = true";
        let by_digest =
            "[[registry]]\nlocation = \"a.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m.io\"";
        let by_kind = "[[registry]]\nlocation = \"a.io\"\n\
             [[registry.mirror]]\nlocation = \"t.io\"\npull-from-mirror = \"tag-only\"\n\
             [[registry.mirror]]\nlocation = \"d.io\"\npull-from-mirror = \"digest-only\"\n\
             [[registry.mirror]]\nlocation = \"all.io\"\npull-from-mirror = \"all\"";
        let longest = "[[registry]]\nprefix = \"a.io\"\nlocation = \"one.io\"\n\
             [[registry]]\nprefix = \"a.io/x\"\nlocation = \"two.io\"\n[[registry]]\nprefix = \"a.io/x/y\"\nblocked = true";
        let star = "[[registry]]\nprefix = \"*.a.io\"\nlocation = \"m.io/a\"";
        let port = "[[registry]]\nprefix = \"*.a.io:5000\"\nlocation = \"m.io/a\"";
        let tagged = "[[registry]]\nprefix = \"a.io/x:v1\"\nlocation = \"m.io/y\"";
        let retagged = "[[registry]]\nprefix = \"a.io/x\"\nlocation = \"m.io/y:v9\"";
        let search = "unqualified-search-registries = [\"q.io\", \"docker.io\", \"r.io/hub\"]";
        let hub = "[[registry]]\nprefix = \"docker.io/library\"\nlocation = \"m.io/hub\"";
        let plain = "[[registry]]\nprefix = \"a.io/x\"\ninsecure = true";
        let stuck = "[[registry]]\nprefix = \"a.io/x\"\nlocation = \"m.io\"";
        let alias = "[aliases]\nfedora = \"reg.io/fedora\"\ngone = \"\"";
        for (config, image, expected) in [
            ("", "a.io/x:v1", &["a.io/x:v1"][..]),
            ("", "busybox", &["docker.io/library/busybox:latest"]),
            ("", "a.io/x:v1@D", &["a.io/x:v1@D"]),
            (mirrors, "a.io/team/x:v1", &["m1.io/x:v1", "!m2.io:5000/y/x:v1", "own.io/x/x:v1"]),
            (mirrors, "a.io/team/x@D", &["m1.io/x@D", "!m2.io:5000/y/x@D", "own.io/x/x@D"]),
            (mirrors, "a.io/teams/x:v1", &["a.io/teams/x:v1"]),
            // Only the beginning of a name counts.
            (mirrors, "evil.com/a.io/team/x:v1", &["evil.com/a.io/team/x:v1"]),
            (by_digest, "a.io/x:v1", &["a.io/x:v1"]),
            (by_digest, "a.io/x@D", &["m.io/x@D", "a.io/x@D"]),
            (by_digest, "a.io/x:v1@D", &["m.io/x:v1@D", "a.io/x:v1@D"]),
            (by_kind, "a.io/x:v1", &["t.io/x:v1", "all.io/x:v1", "a.io/x:v1"]),
            (by_kind, "a.io/x@D", &["d.io/x@D", "all.io/x@D", "a.io/x@D"]),
            (longest, "a.io/z", &["one.io/z:latest"]),
            (longest, "a.io/x/z", &["two.io/z:latest"]),
            (longest, "a.io/x/y/z", &["-a.io/x/y/z:latest"]),
            (longest, "a.io:5000/x", &["one.io:5000/x:latest"]),
            (star, "r.a.io/x", &["m.io/a/x:latest"]),
            (star, "s.r.a.io:5000/x", &["-m.io/a:5000/x"]),
            (star, "a.io/x", &["a.io/x:latest"]),
            (star, "ra.io/x", &["ra.io/x:latest"]),
            (star, "evil.com/r.a.io/x", &["evil.com/r.a.io/x:latest"]),
            (star, "r.a.io.evil.com/x", &["r.a.io.evil.com/x:latest"]),
            (star, "a.a.io.b.a.io/x", &["m.io/a/x:latest"]),
            (port, "r.a.io:5000/x", &["m.io/a/x:latest"]),
            (port, "r.a.io/x", &["r.a.io/x:latest"]),
            (tagged, "a.io/x:v1", &["m.io/y:v1"]),
            (tagged, "a.io/x:v12", &["a.io/x:v12"]),
            // The digest is the image: no remap may lose it.
            (tagged, "a.io/x:v1@D", &["m.io/y:v1@D"]),
            (retagged, "a.io/x:v1", &["m.io/y:v9"]),
            (retagged, "a.io/x@D", &["m.io/y:v9@D"]),
            (
                search,
                "busybox",
                &["q.io/busybox:latest", "docker.io/library/busybox:latest", "r.io/hub/busybox:latest"],
            ),
            (search, "docker.io/team/x", &["q.io/team/x:latest", "docker.io/team/x:latest", "r.io/hub/team/x:latest"]),
            (search, "a.io/x", &["a.io/x:latest"]),
            ("unqualified-search-registries = [\"q.io\"]", "busybox:1@D", &["q.io/busybox:1@D"]),
            ("unqualified-search-registries = []", "busybox", &[]),
            (hub, "busybox", &["m.io/hub/busybox:latest"]),
            (hub, "docker.io/team/x", &["docker.io/team/x:latest"]),
            (plain, "a.io/x:v1", &["!a.io/x:v1"]),
            (plain, "a.io/y:v1", &["a.io/y:v1"]),
            (stuck, "a.io/x:v1", &["-m.io"]),
            (alias, "fedora:40", &["reg.io/fedora:40"]),
            (alias, "gone", &["docker.io/library/gone:latest"]),
        ] {
            assert_eq!(tried(config, image), expected, "{image} by {config}");
        }
    }

    #[test]
    fn a_document_that_can_not_be_followed_is_refused() {
        for (config, expected) in [
            ("[registries.search]\nregistries = [\"a\"]", "unknown field `registries`"),
            ("[[registry]]\ninsecure = true", "neither prefix nor location"),
            ("[[registry]]\nlocation = \"https://a.io\"", "is not a place"),
            ("[[registry]]\nprefix = \"*a.io\"", "may begin with *."),
            ("[[registry]]\nprefix = \"a.*.io\"", "may begin with *."),
            ("[[registry]]\nlocation = \"a.io\"\n[[registry]]\nprefix = \"a.io\"", "two registries"),
            ("[[registry]]\nlocation = \"a.io\"\nsecure = true", "unknown field `secure`"),
            ("[[registry]]\nlocation = \"a.io\"\n[[registry.mirror]]\ninsecure = true", "missing field `location`"),
            (
                "[[registry]]\nlocation = \"a.io\"\nmirror-by-digest-only = true\n\
                 [[registry.mirror]]\nlocation = \"m.io\"\npull-from-mirror = \"tag-only\"",
                "mirror-by-digest-only",
            ),
            ("credential-helpers = [\"secretservice\"]", "\"secretservice\" can't run"),
        ] {
            let error = RegistryConfig::parse(config).unwrap_err();
            assert!(error.contains(expected), "{config:?} gave {error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_rule_makes_it_panic_or_loses_the_digest(
            prefix in "[a*.:/@]{1,12}", place in "[a.:/@v]{1,12}", image in "[a]{1,3}\\.[a.]{0,3}a(:5)?/[a]{1,3}(/[a]{1,2})?",
        ) {
            let document = format!("[[registry]]\nprefix = {prefix:?}\nlocation = {place:?}\n");
            let image: Result<Reference, _> = format!("{image}@{DIGEST}").parse();
            if let (Ok(config), Ok(image)) = (RegistryConfig::parse(&document), image) {
                for source in config.candidates(&image).sources {
                    prop_assert_eq!(source.reference.digest(), Some(DIGEST));
                }
            }
        }
    }
}
