//! Who the guest is to a registry: accounts of a Docker or containers `auth.json`, and challenges of RFC 7235.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeRef;
use oci_spec::distribution::Reference;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Accounts by registry, or by registry and leading path.
///
/// Source: containers-auth.json(5) and Docker's `config.json`.
#[derive(Default)]
pub(crate) struct Credentials {
    accounts: HashMap<String, Account>,
    /// The helper that keeps the accounts of all registries that have none here.
    store: Option<String>,
}

/// What a registry knows the guest by.
#[derive(Clone)]
pub(crate) enum Account {
    /// User name and password.
    Login { user: String, password: Zeroizing<String> },
    /// What the token service exchanges for a token (OAuth2, `grant_type=refresh_token`).
    Identity(Zeroizing<String>),
    /// What is sent to the registry as it is.
    Token(Zeroizing<String>),
    /// Only the credential helper of this name knows it, and nothing of that kind can run inside a guest.
    Helper(String),
}

impl Credentials {
    /// Reads `{"auths": {"host[/path]": {"auth": base64("user:password")}}}`, where an entry may have `username` and
    /// `password`, an `identitytoken` or a `registrytoken` instead, and `credHelpers` and `credsStore` beside it.
    ///
    /// # Errors
    /// What is wrong with the document, without a word of it but its registries' names.
    pub(crate) fn parse(auth_json: &[u8]) -> Result<Self, String> {
        // The parser's own message could quote a password.
        let document: Document = serde_json::from_slice(auth_json)
            .map_err(|_| "it is not an auth.json with an account for each registry".to_owned())?;
        let mut accounts = HashMap::new();
        let helpers = document.cred_helpers.into_iter().map(|(key, helper)| (key, Account::Helper(helper)));
        let mut found: Vec<_> = helpers.collect();
        for (key, entry) in document.auths {
            match entry.account() {
                Ok(Some(account)) => found.push((key, account)),
                // What login tools leave behind for an account that a helper keeps.
                Ok(None) => {}
                Err(cause) => return Err(format!("the entry of {key:?} {cause}")),
            }
        }
        // A key that is written as it is looked for counts before one that only means the same.
        found.sort_by_cached_key(|(key, _)| (normalised(key) == *key, key.clone()));
        for (key, account) in found {
            accounts.insert(normalised(&key), account);
        }
        Ok(Self { accounts, store: document.creds_store.filter(|store| !store.is_empty()) })
    }

    /// The account for a repository: the longest matching path wins, then the host alone.
    pub(crate) fn find(&self, reference: &Reference) -> Option<Account> {
        let mut scope = format!("{}/{}", canonical(reference.registry()), reference.repository());
        loop {
            if let Some(account) = self.accounts.get(&scope) {
                return Some(account.clone());
            }
            match scope.rfind('/') {
                Some(end) => scope.truncate(end),
                None => return self.store.clone().map(Account::Helper),
            }
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    auths: HashMap<String, Entry>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
struct Entry {
    auth: Option<Zeroizing<String>>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    identitytoken: Option<Zeroizing<String>>,
    registrytoken: Option<Zeroizing<String>>,
}

impl Entry {
    fn account(self) -> Result<Option<Account>, &'static str> {
        let given = |secret: Option<Zeroizing<String>>| secret.filter(|secret| !secret.is_empty());
        if let Some(token) = given(self.registrytoken) {
            return Ok(Some(Account::Token(token)));
        }
        if let Some(token) = given(self.identitytoken) {
            return Ok(Some(Account::Identity(token)));
        }
        if let Some(auth) = given(self.auth) {
            let decoded = STANDARD.decode(auth.trim()).map(Zeroizing::new).map_err(|_| NOT_A_LOGIN)?;
            let text = std::str::from_utf8(&decoded).map_err(|_| NOT_A_LOGIN)?;
            let (user, password) = text.split_once(':').ok_or(NOT_A_LOGIN)?;
            // `base64` of an `echo` without -n ends in a newline.
            let password = Zeroizing::new(password.trim_end_matches(['\r', '\n', '\0']).to_owned());
            return Ok(Some(Account::Login { user: user.to_owned(), password }));
        }
        match (self.username.filter(|user| !user.is_empty()), given(self.password)) {
            (Some(user), Some(password)) => Ok(Some(Account::Login { user, password })),
            (None, None) => Ok(None),
            _ => Err("has a username or a password and not both"),
        }
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

/// A key as it is looked for. One with a scheme is a host's, whatever path an old tool put behind it.
fn normalised(key: &str) -> String {
    let stripped = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let place = match stripped {
        Some(place) => place.split('/').next().unwrap_or_default(),
        None => key.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2"),
    };
    match place.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical(host)),
        None => canonical(place).to_owned(),
    }
}

/// Docker's hub has several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

const NOT_A_LOGIN: &str = "has an auth that is not base64 of user:password";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn credentials(document: &Value) -> Credentials {
        Credentials::parse(document.to_string().as_bytes()).unwrap()
    }

    fn logins(entries: &[(&str, &str)]) -> Credentials {
        let auths: serde_json::Map<_, _> =
            entries.iter().map(|(key, login)| ((*key).to_owned(), json!({ "auth": STANDARD.encode(login) }))).collect();
        credentials(&json!({ "auths": auths }))
    }

    /// The account as text: nothing but a test may show it.
    fn account(all: &Credentials, image: &str) -> String {
        match all.find(&image.parse().unwrap()) {
            Some(Account::Login { user, password }) => format!("{user}:{}", *password),
            Some(Account::Identity(token)) => format!("identity {}", *token),
            Some(Account::Token(token)) => format!("token {}", *token),
            Some(Account::Helper(name)) => format!("helper {name}"),
            None => String::new(),
        }
    }

    #[test]
    fn the_longest_scope_wins_and_another_host_gets_nothing() {
        let all = logins(&[
            ("r.example", "a:1"),
            ("r.example/team", "b:2"),
            ("r.example/team/x", "d:4"),
            ("https://s.example/v2/", "c:3\n"),
            ("s.example:5000", "e:5"),
            ("t.example/v1/", "f:6\r\n\n"),
            ("https://u.example/team/x", "g:7:8"),
        ]);
        for (image, expected) in [
            ("r.example/x:1", "a:1"),
            ("r.example/team/y:1", "b:2"),
            ("r.example/team/x:1", "d:4"),
            ("r.example/team/x/y", "d:4"),
            ("r.example/teamwork/x:1", "a:1"),
            ("s.example/x:1", "c:3"),
            ("s.example:5000/x:1", "e:5"),
            ("s.example:5001/x:1", ""),
            ("t.example/x", "f:6"),
            ("u.example/other", "g:7:8"),
            ("v.example/r.example/x:1", ""),
            ("xr.example/x", ""),
        ] {
            assert_eq!(account(&all, image), expected, "{image}");
        }
    }

    #[test]
    fn the_hub_is_known_by_all_its_names() {
        for key in
            ["docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/", "http://docker.io"]
        {
            assert_eq!(account(&logins(&[(key, "a:1")]), "busybox"), "a:1", "{key}");
        }
        let all = logins(&[
            ("https://index.docker.io/v1/", "old:1"),
            ("docker.io", "new:2"),
            ("index.docker.io/team", "team:3"),
            ("registry-1.docker.io", "other:4"),
        ]);
        assert_eq!((account(&all, "busybox"), account(&all, "team/x")), ("new:2".to_owned(), "team:3".to_owned()));
    }

    #[test]
    fn an_account_has_many_forms() {
        let all = credentials(&json!({
            "auths": {
                "a.example": { "username": "me", "password": "pw" },
                "b.example": { "auth": STANDARD.encode("<token>:"), "identitytoken": "refresh" },
                "c.example": { "registrytoken": "bearer" },
                "d.example": {},
                "e.example": { "auth": "" , "email": "me@example" },
                "f.example": { "auth": STANDARD.encode("own:1") },
            },
            "credHelpers": { "d.example": "ecr-login", "f.example": "secretservice" },
            "credsStore": "desktop", "HttpHeaders": {},
        }));
        for (image, expected) in [
            ("a.example/x", "me:pw"),
            ("b.example/x", "identity refresh"),
            ("c.example/x", "token bearer"),
            ("d.example/x", "helper ecr-login"),
            ("e.example/x", "helper desktop"),
            ("f.example/x", "own:1"),
            ("g.example/x", "helper desktop"),
        ] {
            assert_eq!(account(&all, image), expected, "{image}");
        }
        assert_eq!(account(&credentials(&json!({ "auths": { "d.example": {} } })), "d.example/x"), "");
        assert_eq!(account(&credentials(&json!({})), "d.example/x"), "");
    }

    #[test]
    fn a_refusal_never_quotes_the_password() {
        for text in [
            r#"{"auths":{"r":{"auth":"c2VjcmV0"}}}"#,
            r#"{"auths":{"r":{"auth":"secret!"}}}"#,
            r#"{"auths":{"r":{"password":"secret"}}}"#,
            r#"{"auths":{"r":"secret"}}"#,
            r#"{"auths":{"r":{"identitytoken":["secret"]}}}"#,
        ] {
            let error = Credentials::parse(text.as_bytes()).err().unwrap();
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

        #[test]
        fn no_document_makes_it_panic(document in "\\PC{0,200}", key in "[a-z:/.v12]{0,20}") {
            let _ = Credentials::parse(document.as_bytes());
            let _ = normalised(&key);
        }
    }
}
