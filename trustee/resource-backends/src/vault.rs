//! Resources in HashiCorp Vault or OpenBao: KV version 1 and 2, one secret a path, its member `data` the value.
//!
//! The member is a text where the value is one, otherwise an array of its bytes: both are what upstream reads.

mod login;
mod value;

use std::path::PathBuf;

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use store::clock::Clock;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::http::{self, Answer, Http, Limits, Repeat, Trust};
use crate::{Backend, Condition, MAX_LISTED, Resource};
pub use login::Login;
use login::Session;
use value::Value;

/// Where Vault is and how to log in: exactly one of `token`, `token_file` and `login`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    vault_url: String,
    /// A token that the broker renews itself where it has an end.
    token: Option<Zeroizing<String>>,
    /// A file that another program, such as Vault's agent, keeps a token in.
    token_file: Option<PathBuf>,
    login: Option<Login>,
    #[serde(default = "default_mount")]
    mount_path: String,
    /// 1 or 2.
    #[serde(default = "default_version")]
    kv_version: u8,
    /// Sent with every request as `X-Vault-Namespace`.
    namespace: Option<String>,
    #[serde(default = "default_verify")]
    verify_ssl: bool,
    /// Files in PEM that are trusted besides the system's.
    #[serde(default)]
    ca_certs: Vec<PathBuf>,
}

/// A mount of Vault's KV engine.
pub(crate) struct Vault {
    http: Http,
    session: Session,
    url: String,
    mount: String,
    second: bool,
}

impl Vault {
    pub(crate) async fn new(config: Config, clock: &Clock, limits: Limits) -> Result<Self, Error> {
        let url = http::base_url("vault_url", &config.vault_url)?;
        let mount = login::mount("mount_path", &config.mount_path)?;
        let second = match config.kv_version {
            1 => false,
            2 => true,
            other => return Err(Error::Config { key: "kv_version", cause: format!("{other} is neither 1 nor 2") }),
        };
        let login = match (config.token, config.token_file, config.login) {
            (Some(token), None, None) => login::Method::Token(token),
            (None, Some(path), None) => login::Method::TokenFile(path),
            (None, None, Some(login)) => login::Method::Login(login),
            _ => {
                let cause = "give exactly one of token, token_file and login".to_owned();
                return Err(Error::Config { key: "token", cause });
            }
        };
        if !config.verify_ssl {
            tracing::warn!(
                vault = url,
                "verify_ssl = false: whoever is on the way to Vault can read token and secrets"
            );
        }
        let mut extra = Vec::new();
        for path in &config.ca_certs {
            let failed = |source| Error::File { path: path.clone(), source };
            extra.push(tokio::fs::read(path).await.map_err(failed)?);
        }
        let trust = Trust { extra, verify: config.verify_ssl, ..Trust::default() };
        let http = Http::new(format!("Vault at {url}"), trust, limits)?;
        let session = Session::new(login, &url, config.namespace, http.service(), clock)?;
        Ok(Self { http, session, url, mount, second })
    }

    /// Sends a request with the session's token, and once more with a new one if that is refused.
    async fn call(
        &self,
        method: Method,
        url: &str,
        body: Option<&Zeroizing<Vec<u8>>>,
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        loop {
            let token = self.session.token(&self.http).await?;
            let mut request = self.session.request(&self.http, method.clone(), url)?;
            request = request.header("X-Vault-Token", http::sensitive(&token)?);
            if let Some(body) = body {
                request = request.header("Content-Type", "application/json").body(http::body(body.clone()));
            }
            let answer = self.http.send(request, repeat).await?;
            if answer.status != StatusCode::FORBIDDEN || !self.session.refused(&token).await {
                return Ok(answer);
            }
        }
    }

    fn data_url(&self, path: &ResourcePath) -> String {
        let part = if self.second { "data/" } else { "" };
        format!("{}/v1/{}/{part}{path}", self.url, self.mount)
    }

    fn metadata_url(&self, path: &str) -> String {
        let part = if self.second { "metadata/" } else { "" };
        format!("{}/v1/{}/{part}{path}", self.url, self.mount)
    }

    async fn write(&self, path: &ResourcePath, value: &[u8], cas: Option<u64>) -> Result<Option<u64>, Written> {
        let data = Data { data: Value(value) };
        let room = value.len() * 5;
        let body = if self.second {
            http::json(&Second { options: Options { cas }, data }, room)?
        } else {
            http::json(&data, room)?
        };
        // A write that was taken must not meet its own version and be told of a conflict.
        let repeat = if cas.is_some() { Repeat::Untaken } else { Repeat::Always };
        let answer = self.call(Method::POST, &self.data_url(path), Some(&body), repeat).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(None),
            StatusCode::OK if self.second => Ok(Some(self.http.parse::<Wrapped<Version>>(&answer)?.data.version)),
            StatusCode::OK => Ok(None),
            StatusCode::BAD_REQUEST if self.is_conflict(&answer) => Err(Written::Conflict),
            status => Err(Error::refusal(self.http.service(), status, "").into()),
        }
    }

    fn is_conflict(&self, answer: &Answer) -> bool {
        let errors = self.http.parse::<Errors>(answer).map(|answer| answer.errors).unwrap_or_default();
        errors.iter().any(|error| error.contains("check-and-set parameter did not match"))
    }

    /// The version of a secret whose latest version was deleted in Vault: the next one follows it.
    async fn deleted_version(&self, path: &ResourcePath) -> Result<Option<u64>, Error> {
        let answer = self.call(Method::GET, &self.data_url(path), None, Repeat::Always).await?;
        match answer.status {
            StatusCode::NOT_FOUND => Ok(self
                .http
                .parse::<Wrapped<Found<serde::de::IgnoredAny>>>(&answer)
                .ok()
                .map(|a| a.data.metadata.version)),
            _ => Ok(None),
        }
    }

    /// The names below a folder; folders end with a slash.
    async fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let url = format!("{}?list=true", self.metadata_url(folder));
        let answer = self.call(Method::GET, &url, None, Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => Ok(self.http.parse::<Wrapped<Keys>>(&answer)?.data.keys),
            StatusCode::NOT_FOUND => Ok(Vec::new()),
            status => Err(Error::refusal(self.http.service(), status, "")),
        }
    }
}

#[async_trait]
impl Backend for Vault {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let answer = self.call(Method::GET, &self.data_url(path), None, Repeat::Always).await?;
        match answer.status {
            StatusCode::OK if self.second => {
                let found = self.http.parse::<Wrapped<Found<Data<value::Read>>>>(&answer)?.data;
                Ok(Some(Resource { value: found.data.data.0, version: Some(found.metadata.version.to_string()) }))
            }
            StatusCode::OK => {
                let found = self.http.parse::<Wrapped<Data<value::Read>>>(&answer)?.data;
                Ok(Some(Resource { value: found.data.0, version: None }))
            }
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(Error::refusal(self.http.service(), status, "")),
        }
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        let cas = match condition {
            Condition::Any => None,
            _ if !self.second => return Err(self.http.unsupported("write")),
            Condition::Absent => Some(0),
            Condition::Version(text) => match text.parse() {
                Ok(version) if version > 0 => Some(version),
                _ => return Err(Error::Conflict { path: path.clone() }),
            },
        };
        let mut written = self.write(path, value, cas).await;
        if matches!(written, Err(Written::Conflict))
            && *condition == Condition::Absent
            && let Some(version) = self.deleted_version(path).await?
        {
            written = self.write(path, value, Some(version)).await;
        }
        match written {
            Ok(version) => Ok(version.map(|version| version.to_string())),
            Err(Written::Conflict) => Err(Error::Conflict { path: path.clone() }),
            Err(Written::Failed(error)) => Err(error),
        }
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        if *condition != Condition::Any {
            return Err(self.http.unsupported("delete"));
        }
        // With KV version 2 all versions go, so that nobody undeletes what its owner took back.
        let url = self.metadata_url(path.as_str());
        let found = self.call(Method::GET, &url, None, Repeat::Always).await?;
        match found.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(false),
            status => return Err(Error::refusal(self.http.service(), status, "")),
        }
        let answer = self.call(Method::DELETE, &url, None, Repeat::Always).await?;
        match answer.status {
            StatusCode::NO_CONTENT | StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            status => Err(Error::refusal(self.http.service(), status, "")),
        }
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        let mut paths = Vec::new();
        let first = repository.map(|repository| format!("{repository}/")).unwrap_or_default();
        if repository.is_some() && !is_folder(&first) {
            return Ok(paths);
        }
        let mut folders = vec![first];
        while let Some(folder) = folders.pop() {
            for name in self.names(&folder).await? {
                let path = format!("{folder}{name}");
                if let Ok(path) = ResourcePath::parse(&path) {
                    paths.push(path);
                } else if is_folder(&path) {
                    folders.push(path);
                }
            }
            if paths.len() + folders.len() > MAX_LISTED {
                return Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED });
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }
}

/// Whether resources may lie in a folder: not if it lies too deep, or has a name that no resource has.
fn is_folder(path: &str) -> bool {
    ["t/t", "t"].iter().any(|rest| path.ends_with('/') && ResourcePath::parse(&format!("{path}{rest}")).is_ok())
}

/// Why a write did not happen.
enum Written {
    Conflict,
    Failed(Error),
}

impl From<Error> for Written {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

#[derive(Deserialize)]
struct Wrapped<T> {
    data: T,
}

/// A secret's content. Other members are left alone: they don't belong to the resource.
#[derive(Deserialize, Serialize)]
struct Data<T> {
    data: T,
}

#[derive(Serialize)]
struct Second<'a> {
    options: Options,
    data: Data<Value<'a>>,
}

#[derive(Serialize)]
struct Options {
    #[serde(skip_serializing_if = "Option::is_none")]
    cas: Option<u64>,
}

#[derive(Deserialize)]
struct Found<T> {
    data: T,
    metadata: Version,
}

#[derive(Deserialize)]
struct Version {
    version: u64,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<String>,
}

fn default_mount() -> String {
    "secret".to_owned()
}

fn default_version() -> u8 {
    1
}

fn default_verify() -> bool {
    true
}
