//! The node's own accounts for registries, from Docker's `config.json`.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

/// Accounts by registry, or by registry and leading path.
#[derive(Default)]
pub(crate) struct Credentials(HashMap<String, Account>);

/// User name and password.
#[derive(Clone)]
pub(crate) struct Account {
    pub(crate) user: String,
    pub(crate) password: Zeroizing<String>,
}

impl Credentials {
    /// Reads `{"auths": {"host[/path]": {"auth": base64("user:password")}}}`; entries of another form are not looked at.
    ///
    /// # Errors
    /// What is wrong, without a word of the document. A missing file is an empty one.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = match std::fs::read(path) {
            Ok(text) => Zeroizing::new(text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e.to_string()),
        };
        // The parser's own message could quote a password.
        let document: Document = serde_json::from_slice(&text).map_err(|_| "not a Docker config.json".to_owned())?;
        let known = document.auths.into_iter().filter_map(|(key, entry)| Some((place(&key), entry.account()?)));
        Ok(Self(known.collect()))
    }

    /// The account for a repository: the longest matching path wins, then the host alone.
    pub(crate) fn find(&self, host: &str, repository: &str) -> Option<Account> {
        let mut scope = format!("{}/{repository}", canonical(host));
        loop {
            if let Some(account) = self.0.get(&scope) {
                return Some(account.clone());
            }
            scope.truncate(scope.rfind('/')?);
        }
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<Zeroizing<String>>,
}

impl Entry {
    fn account(self) -> Option<Account> {
        let decoded = Zeroizing::new(STANDARD.decode(self.auth?.trim()).ok()?);
        let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        let password = Zeroizing::new(password.trim_end_matches(['\r', '\n']).to_owned());
        Some(Account { user: user.to_owned(), password })
    }
}

/// A key as it is looked for. One with a scheme is a host's, whatever path an old tool put behind it.
fn place(key: &str) -> String {
    let whole = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    let place = whole.map_or(key, |rest| rest.split('/').next().unwrap_or_default()).trim_end_matches('/');
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_longest_scope_wins_and_another_host_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        let auth = |login: &str| json!({ "auth": STANDARD.encode(login) });
        let document = json!({ "auths": {
            "r.example": auth("a:1"), "r.example/team": auth("b:2\n"), "https://index.docker.io/v1/": auth("c:3:4"),
            "empty.example": {}, "bad.example": { "auth": "!" },
        }});
        std::fs::write(&file, document.to_string()).unwrap();
        let all = Credentials::read(&file).unwrap();
        for (host, repository, expected) in [
            ("r.example", "x", "a:1"),
            ("r.example", "team/x/y", "b:2"),
            ("r.example", "teamwork", "a:1"),
            ("registry-1.docker.io", "library/busybox", "c:3:4"),
            ("r.example:5000", "x", ""),
            ("empty.example", "x", ""),
            ("bad.example", "x", ""),
        ] {
            let found = all.find(host, repository).map(|it| format!("{}:{}", it.user, *it.password));
            assert_eq!(found.unwrap_or_default(), expected, "{host}/{repository}");
        }
    }

    #[test]
    fn a_refusal_never_quotes_the_document() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.json");
        assert!(Credentials::read(&file).unwrap().find("r", "x").is_none());
        std::fs::write(&file, r#"{"auths":{"r":{"auth":["secret"]}}}"#).unwrap();
        let error = Credentials::read(&file).err().unwrap();
        assert!(!error.contains("secret"), "{error}");
    }
}
