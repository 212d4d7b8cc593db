//! Images' names as users, policies and signers write them.
//!
//! Its own because oci-spec reads names by a regular expression that costs 16 MB and tens of milliseconds to compile,
//! more than all else in a guest that only pulls, and in a node's snapshotter. What is accepted is the same, but that a tag is of ASCII.
//!
//! Source: the distribution project's reference grammar; the rules for names without a registry are Docker's.

use oci_spec::distribution::Reference;

/// Parses a name such as `busybox`, `registry:5000/team/app:v1` or `registry/app@sha256:…`.
///
/// # Errors
/// Says what is wrong with it.
pub fn parse_reference(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    // A colon before the last slash stands before a port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };

    match name.split_once('/') {
        _ if name.is_empty() => return Err("it has no repository"),
        Some((first, path)) if is_path(path) && (is_domain(first) || is_component(first)) => {}
        None if is_component(name) => {}
        _ => return Err("its repository is not made of lowercase letters, digits and single separators"),
    }
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag is not made of up to 128 letters, digits, dots, dashes and underscores");
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err("its digest is not one of SHA-256, SHA-384 or SHA-512 in hexadecimal");
    }
    let (registry, repository) = split(name);
    if repository.len() > MAX_REPOSITORY {
        return Err("its repository is longer than 255 characters");
    }
    Ok(match (tag, digest) {
        (Some(tag), Some(digest)) => Reference::with_tag_and_digest(registry, repository, tag.into(), digest.into()),
        (None, Some(digest)) => Reference::with_digest(registry, repository, digest.into()),
        (tag, None) => Reference::with_tag(registry, repository, tag.unwrap_or("latest").into()),
    })
}

/// Registry and repository: what could be no host is a repository of Docker's, and one without a folder is in `library`.
fn split(name: &str) -> (String, String) {
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    let (registry, repository) = name.split_once('/').filter(|(first, _)| is_host(first)).unwrap_or((DOCKER_HUB, name));
    match registry {
        DOCKER_HUB | "index.docker.io" if !repository.contains('/') => {
            (DOCKER_HUB.to_owned(), format!("library/{repository}"))
        }
        "index.docker.io" => (DOCKER_HUB.to_owned(), repository.to_owned()),
        _ => (registry.to_owned(), repository.to_owned()),
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = text.split_once(':').unwrap_or((text, "0"));
    let is_label = |label: &str| {
        let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        is_end(bytes.first()) && is_end(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    host.split('.').all(is_label) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_component)
}

/// Runs of lowercase letters and digits, with a dot, one or two underscores, or any number of dashes between them.
fn is_component(text: &str) -> bool {
    let is_word = |byte: char| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators = text.split(is_word).filter(|between| !between.is_empty());
    text.starts_with(is_word)
        && text.ends_with(is_word)
        && separators.all(|it| matches!(it, "." | "_" | "__") || it.bytes().all(|byte| byte == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(is_word)
        && text.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let length = match text.split_once(':') {
        Some(("sha256", _)) => 64,
        Some(("sha384", _)) => 96,
        Some(("sha512", _)) => 128,
        _ => return false,
    };
    let hex = &text["sha256:".len()..];
    hex.len() == length && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

const DOCKER_HUB: &str = "docker.io";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What oci-spec makes of it.
    fn theirs(text: &str) -> Option<Reference> {
        text.parse().ok()
    }

    #[test]
    fn names_mean_what_they_mean_to_docker() {
        let sha256 = format!("sha256:{}", "a1".repeat(32));
        let long = "x".repeat(255);
        for (text, expected) in [
            ("busybox", Some("docker.io/library/busybox:latest")),
            ("busybox:1.36", Some("docker.io/library/busybox:1.36")),
            ("test.com:5000", Some("docker.io/library/test.com:5000")),
            ("team/app", Some("docker.io/team/app:latest")),
            ("index.docker.io/busybox", Some("docker.io/library/busybox:latest")),
            ("docker.io/team/app", Some("docker.io/team/app:latest")),
            ("localhost/app", Some("localhost/app:latest")),
            ("localhost:5000/team/app:v1", Some("localhost:5000/team/app:v1")),
            ("REGISTRY.example/app", Some("REGISTRY.example/app:latest")),
            ("registry.example/a.b/c_d/e__f/g---h", Some("registry.example/a.b/c_d/e__f/g---h:latest")),
            ("registry.example/app:_", Some("registry.example/app:_")),
            (&*format!("app@{sha256}"), Some(&*format!("docker.io/library/app@{sha256}"))),
            (&*format!("r.io/app:v1@{sha256}"), Some(&*format!("r.io/app:v1@{sha256}"))),
            (&*format!("r.io/{long}"), Some(&*format!("r.io/{long}:latest"))),
            (&*format!("r.io/{long}x"), None),
            (&*format!("r.io/app:{}", "t".repeat(128)), Some(&*format!("r.io/app:{}", "t".repeat(128)))),
            (&*format!("r.io/app:{}", "t".repeat(129)), None),
            ("", None),
            ("Not An Image!", None),
            ("App", None),
            ("r.io/App", None),
            ("r.io/", None),
            ("/app", None),
            ("r.io//app", None),
            ("r.io/a..b", None),
            ("r.io/a___b", None),
            ("r.io/a._b", None),
            ("r.io/-a", None),
            ("-r.io/a", None),
            ("r..io/a", None),
            ("r.io:/a", None),
            ("r.io:80x/a", None),
            ("r.io/a:", None),
            ("r.io/a:-v", None),
            ("r.io/a:v:w", None),
            ("r.io/a@", None),
            ("r.io/a@sha256:00", None),
            (&*format!("r.io/a@md5:{}", "0".repeat(32)), None),
            (&*format!("r.io/a@{sha256}@{sha256}"), None),
        ] {
            let parsed = parse_reference(text).ok();
            assert_eq!(parsed.as_ref().map(Reference::whole).as_deref(), expected, "{text}");
            assert_eq!(parsed, theirs(text), "{text}");
        }
        // The one difference: registries take tags of ASCII alone.
        assert!(parse_reference("r.io/app:schön").is_err() && theirs("r.io/app:schön").is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn every_name_is_what_it_is_to_oci_spec(text in "[aA0._:/@-]{0,12}") {
            prop_assert_eq!(parse_reference(&text).ok(), theirs(&text));
        }

        #[test]
        fn so_is_every_name_that_looks_like_one(
            text in "(([a-z0-9A-Z]{1,3}[.:-]?){0,3}/)?[a-z0-9._-]{1,6}(/[a-z0-9._-]{1,4})?(:[A-Za-z0-9._-]{0,3})?(@sha256:([0-9a-fA-F]{64}|[0-9a-g]{63,65}))?",
        ) {
            prop_assert_eq!(parse_reference(&text).ok(), theirs(&text));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = parse_reference(&text);
        }
    }
}
