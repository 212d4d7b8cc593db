//! Who the guest is to a registry: credentials of a Docker `auth.json`, and challenges of RFC 7235.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeRef;
use oci_spec::distribution::Reference;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::Error;

/// User names and passwords by registry or by registry and leading path.
pub(crate) struct Credentials(HashMap<String, Login>);

/// One account.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Zeroizing<String>,
}

impl Credentials {
    /// Reads `{"auths": {"host[/path]": {"auth": base64("user:password")}}}`.
    pub(crate) fn parse(auth_json: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Document {
            auths: HashMap<String, Entry>,
        }
        #[derive(Deserialize)]
        struct Entry {
            auth: Zeroizing<String>,
        }
        let refused = |cause: &str| Error::Config { cause: format!("registry credentials: {cause}") };
        // The parser's own message could quote a password.
        let document: Document = serde_json::from_slice(auth_json)
            .map_err(|_| refused("not an auth.json with an auth for each registry"))?;
        let mut logins = HashMap::new();
        for (key, entry) in document.auths {
            let decoded = STANDARD.decode(entry.auth.trim()).map(Zeroizing::new);
            let login = decoded
                .ok()
                .and_then(|bytes| {
                    std::str::from_utf8(&bytes).ok().and_then(|text| text.split_once(':')).map(Login::new)
                })
                .ok_or_else(|| refused(&format!("the auth of {key:?} is not base64 of user:password")))?;
            logins.insert(normalised(&key).to_owned(), login);
        }
        Ok(Self(logins))
    }

    /// The account for a repository: the longest matching path wins, then the host alone.
    pub(crate) fn find(&self, reference: &Reference) -> Option<&Login> {
        [reference.registry(), reference.resolve_registry()].into_iter().find_map(|host| {
            let mut scope = format!("{host}/{}", reference.repository());
            loop {
                if let Some(login) = self.0.get(&scope) {
                    return Some(login);
                }
                scope.truncate(scope.rfind('/')?);
            }
        })
    }
}

impl Login {
    fn new((user, password): (&str, &str)) -> Self {
        Self { user: user.to_owned(), password: Zeroizing::new(password.trim_end_matches(['\r', '\n']).to_owned()) }
    }
}

/// What a registry asks for when it answers 401.
#[derive(Debug, PartialEq)]
pub(crate) enum Challenge {
    /// A token of another service.
    Bearer { realm: String, service: Option<String> },
    /// User name and password.
    Basic,
}

impl Challenge {
    /// Picks from the values of `WWW-Authenticate`; a token is preferred.
    pub(crate) fn pick<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut basic = None;
        for header in headers {
            for challenge in http_auth::parse_challenges(header).unwrap_or_default() {
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    if let Some(realm) = parameter(&challenge, "realm") {
                        return Some(Self::Bearer { realm, service: parameter(&challenge, "service") });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

fn parameter(challenge: &ChallengeRef<'_>, name: &str) -> Option<String> {
    challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
}

fn normalised(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credentials(entries: &[(&str, &str)]) -> Credentials {
        let auths: serde_json::Map<_, _> = entries
            .iter()
            .map(|(key, login)| ((*key).to_owned(), serde_json::json!({ "auth": STANDARD.encode(login) })))
            .collect();
        Credentials::parse(serde_json::json!({ "auths": auths }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn the_longest_scope_wins_and_another_host_gets_nothing() {
        let all = credentials(&[("r.example", "a:1"), ("r.example/team", "b:2"), ("https://s.example/v2/", "c:3\n")]);
        let user = |image: &str| all.find(&image.parse().unwrap()).map(|login| login.user.clone());
        assert_eq!(user("r.example/x:1"), Some("a".to_owned()));
        assert_eq!(user("r.example/team/x:1"), Some("b".to_owned()));
        assert_eq!(user("r.example/teamwork/x:1"), Some("a".to_owned()));
        assert_eq!(user("s.example/x:1"), Some("c".to_owned()));
        assert_eq!(user("t.example/r.example/x:1"), None);
        assert_eq!(&*all.find(&"s.example/x".parse().unwrap()).unwrap().password, "3");
    }

    #[test]
    fn a_refusal_never_quotes_the_password() {
        for text in [
            r#"{"auths":{"r":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"r":{"auth":"secret!"}}}"#,
            r#"{"auths":{"r":"secret"}}"#,
        ] {
            let error = Credentials::parse(text.as_bytes()).err().unwrap().to_string();
            assert!(!error.contains("secret") && !error.contains("c2Vj"), "{error}");
        }
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let bearer = r#"Bearer realm="https://auth.example/token",service="r.example",scope="repository:x:pull""#;
        let expected =
            Challenge::Bearer { realm: "https://auth.example/token".to_owned(), service: Some("r.example".to_owned()) };
        assert_eq!(Challenge::pick([r#"Basic realm="x""#, bearer].into_iter()), Some(expected));
        assert_eq!(Challenge::pick([r#"basic realm="x""#].into_iter()), Some(Challenge::Basic));
        assert_eq!(Challenge::pick(["Negotiate"].into_iter()), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(header in "[ -~]{0,200}") {
            let _ = Challenge::pick([header.as_str()].into_iter());
        }
    }
}
