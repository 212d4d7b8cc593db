//! Which list of a policy is about an image: the most specific name that the policy has.

use oci_spec::distribution::Reference;

/// The scopes that cover a reference under the transport `docker`, the most specific one first.
///
/// That is the whole reference, its repository, the repository's parents, the registry with its port, and then
/// `*.domain` for each parent domain of the registry without its port. Where a reference has both, its digest counts and
/// its tag doesn't, since nothing proves that the tag ever stood for that digest.
///
/// Source: containers-policy.json(5), "docker:".
pub(crate) fn candidates(reference: &Reference) -> Vec<String> {
    let repository = format!("{}/{}", reference.registry(), reference.repository());
    let whole = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.unwrap_or("latest")),
    };
    let parents = std::iter::successors(Some(&*repository), |name| name.rsplit_once('/').map(|(parent, _)| parent));
    let host = reference.registry().split(':').next().unwrap_or_default();
    let domains = std::iter::successors(host.split_once('.'), |(_, domain)| domain.split_once('.'));
    std::iter::once(whole.clone())
        .chain(parents.map(str::to_owned))
        .chain(domains.map(|(_, domain)| format!("*.{domain}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_from_the_whole_name_to_the_wildcards() {
        const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        let by_digest = format!("a.example.com/x@{DIGEST}");
        for (reference, expected) in [
            (
                "registry.example.com:5000/team/app:v1",
                vec![
                    "registry.example.com:5000/team/app:v1",
                    "registry.example.com:5000/team/app",
                    "registry.example.com:5000/team",
                    "registry.example.com:5000",
                    "*.example.com",
                    "*.com",
                ],
            ),
            (
                "busybox",
                vec![
                    "docker.io/library/busybox:latest",
                    "docker.io/library/busybox",
                    "docker.io/library",
                    "docker.io",
                    "*.io",
                ],
            ),
            ("localhost:5000/app", vec!["localhost:5000/app:latest", "localhost:5000/app", "localhost:5000"]),
            (&*by_digest, vec![&*by_digest, "a.example.com/x", "a.example.com", "*.example.com", "*.com"]),
        ] {
            let reference: Reference = reference.parse().unwrap();
            assert_eq!(candidates(&reference), expected);
        }
    }

    #[test]
    fn a_tag_beside_a_digest_selects_nothing() {
        let reference: Reference = format!("a.example/x:tag@sha256:{}", "0".repeat(64)).parse().unwrap();
        assert!(!candidates(&reference).iter().any(|scope| scope.contains(":tag")));
    }
}
