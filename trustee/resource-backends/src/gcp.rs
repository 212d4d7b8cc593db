//! Resources in Google Cloud Secret Manager.

mod token;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::PathBuf;
use store::clock::Clock;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::bearer::Tokens;
use crate::error::Error;
use crate::http::{self, Answer, Http, Limits, Repeat, Trust};
use crate::naming::{Alphabet, Naming};
use crate::{Backend, Condition, Environment, MAX_LISTED, MAX_PAGES, Resource};

/// Which project's secrets. The token comes from a service account's key or from the metadata server.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    project_id: String,
    /// The version to read: a number, or `latest`.
    #[serde(default = "default_version")]
    version: String,
    /// Without it, the public endpoint.
    endpoint_url: Option<String>,
    /// A service account's key in JSON. Without it, the file that `GOOGLE_APPLICATION_CREDENTIALS` names; without
    /// that, the metadata server.
    credentials_file: Option<PathBuf>,
    #[serde(default)]
    pub(crate) naming: Naming,
}

/// The secrets of one project.
pub(crate) struct Gcp {
    http: Http,
    tokens: Tokens,
    secrets: String,
    version: String,
    naming: Naming,
}

impl Gcp {
    pub(crate) async fn new(
        config: Config,
        environment: &Environment,
        clock: &Clock,
        limits: Limits,
    ) -> Result<Self, Error> {
        let plain = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b':' | b'.' | b'_'))
        };
        for (key, text) in [("project_id", &config.project_id), ("version", &config.version)] {
            if !plain(text) {
                return Err(Error::Config { key, cause: "it has characters that no such name has".to_owned() });
            }
        }
        let url = http::base_url("endpoint_url", config.endpoint_url.as_deref().unwrap_or(ENDPOINT))?;
        let http = Http::new(format!("Google Secret Manager at {url}"), Trust::default(), limits)?;
        let file =
            config.credentials_file.or_else(|| environment.get("GOOGLE_APPLICATION_CREDENTIALS").map(Into::into));
        let tokens = token::find(file, environment, clock, limits).await?;
        config.naming.announce(http.service());
        let secrets = format!("{url}/v1/projects/{}/secrets", config.project_id);
        Ok(Self { http, tokens, secrets, version: config.version, naming: config.naming })
    }

    async fn call(
        &self,
        method: Method,
        url: &str,
        body: Option<&Zeroizing<Vec<u8>>>,
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        self.tokens.call(&self.http, method, url, body, repeat).await
    }

    /// Makes a secret without a version; false if there is one of this name.
    async fn create(&self, name: &str) -> Result<bool, Error> {
        let url = format!("{}?secretId={name}", self.secrets);
        let body = http::json(&json!({ "replication": { "automatic": {} } }), 64)?;
        // Repeated after it was done, it would meet its own secret.
        let answer = self.call(Method::POST, &url, Some(&body), Repeat::Untaken).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::CONFLICT => Ok(false),
            _ => Err(self.refused(&answer)),
        }
    }

    /// Adds a version; nothing if there is no such secret.
    async fn add(&self, name: &str, value: &[u8]) -> Result<Option<String>, Error> {
        let url = format!("{}/{name}:addVersion", self.secrets);
        let data = Zeroizing::new(STANDARD.encode(value));
        let body = http::json(&Add { payload: Data { data: &*data } }, data.len())?;
        let answer = self.call(Method::POST, &url, Some(&body), Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => Ok(Some(version(&self.http.parse::<Named>(&answer)?.name))),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(&answer)),
        }
    }

    fn name(&self, path: &ResourcePath) -> Result<String, Error> {
        self.naming.name(path, Alphabet::Underscore, self.http.service(), MAX_NAME)
    }

    fn refused(&self, answer: &Answer) -> Error {
        let code = self.http.parse::<Refusal>(answer).map(|refusal| refusal.error.status).unwrap_or_default();
        Error::refusal(self.http.service(), answer.status, &code)
    }
}

#[async_trait]
impl Backend for Gcp {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let url = format!("{}/{}/versions/{}:access", self.secrets, self.name(path)?, self.version);
        let answer = self.call(Method::GET, &url, None, Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.refused(&answer)),
        }
        let found: Found = self.http.parse(&answer)?;
        let value = STANDARD
            .decode(found.payload.data.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| self.http.malformed("the secret is not base64"))?;
        Ok(Some(Resource { value, version: Some(version(&found.name)) }))
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        let name = self.name(path)?;
        self.http.fits(value, MAX_VALUE)?;
        match condition {
            Condition::Version(_) => {
                return Err(self.http.unsupported("write"));
            }
            Condition::Any => {
                if let Some(version) = self.add(&name, value).await? {
                    return Ok(Some(version));
                }
                // Whether it is this call or another one that makes the secret does not matter.
                self.create(&name).await?;
            }
            Condition::Absent => {
                if !self.create(&name).await? {
                    return Err(Error::Conflict { path: path.clone() });
                }
            }
        }
        match self.add(&name, value).await {
            Ok(Some(version)) => Ok(Some(version)),
            Ok(None) => Err(Error::Conflict { path: path.clone() }),
            Err(error) => {
                // An empty secret would make a later write under the same condition fail.
                let url = format!("{}/{name}", self.secrets);
                if let Err(error) = self.call(Method::DELETE, &url, None, Repeat::Untaken).await {
                    tracing::warn!(%path, %error, "a secret without a version was left behind");
                }
                Err(error)
            }
        }
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        if *condition != Condition::Any {
            return Err(self.http.unsupported("delete"));
        }
        let url = format!("{}/{}", self.secrets, self.name(path)?);
        let answer = self.call(Method::DELETE, &url, None, Repeat::Untaken).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(&answer)),
        }
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        self.naming.listable(self.http.service())?;
        let mut paths = Vec::new();
        let mut token = String::new();
        for _ in 0..MAX_PAGES {
            let url = http::with_query(&self.secrets, &[("pageSize", "1000"), ("pageToken", &token)]);
            let answer = self.call(Method::GET, &url, None, Repeat::Always).await?;
            if answer.status != StatusCode::OK {
                return Err(self.refused(&answer));
            }
            let page: Page = self.http.parse(&answer)?;
            let names = page.secrets.iter().filter_map(|secret| secret.name.rsplit('/').next());
            let found = names.filter_map(|name| Alphabet::Underscore.decode(name));
            paths.extend(found.filter(|path| repository.is_none_or(|name| path.segments().next() == Some(name))));
            if paths.len() > MAX_LISTED {
                return Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED });
            }
            token = page.next_page_token;
            if token.is_empty() {
                paths.sort_unstable();
                return Ok(paths);
            }
        }
        Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED })
    }
}

/// The last part of a version's full name.
fn version(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect()
}

#[derive(Deserialize)]
struct Found {
    name: String,
    payload: Data<Zeroizing<String>>,
}

#[derive(Deserialize, Serialize)]
struct Data<T> {
    data: T,
}

#[derive(Serialize)]
struct Add<'a> {
    payload: Data<&'a str>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    secrets: Vec<Named>,
    #[serde(default)]
    next_page_token: String,
}

#[derive(Deserialize)]
struct Refusal {
    error: Status,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

fn default_version() -> String {
    "latest".to_owned()
}

const ENDPOINT: &str = "https://secretmanager.googleapis.com";
const MAX_NAME: usize = 255;
const MAX_VALUE: usize = 65_536;
