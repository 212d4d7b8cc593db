//! Resources in Azure Key Vault, named by their path.
//!
//! Key Vault holds texts, so a value is written in base64 with a content type that says so; secrets that someone
//! else wrote without it are read as the text they are.

mod token;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use store::clock::Clock;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::bearer::Tokens;
use crate::error::Error;
use crate::http::{self, Answer, Http, Limits, Repeat, Trust};
use crate::naming::{Alphabet, Naming};
use crate::{Backend, Condition, Environment, MAX_LISTED, MAX_PAGES, Resource};

/// Which vault, and as whom: with `client_secret_file` or `federated_token_file` as an application, otherwise as the
/// machine's managed identity. What is absent comes from the variables that Azure's workload identity sets.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Such as `https://NAME.vault.azure.net`.
    vault_url: String,
    /// Or `AZURE_TENANT_ID`.
    tenant_id: Option<String>,
    /// Or `AZURE_CLIENT_ID`. For a managed identity: which one, if the machine has several.
    client_id: Option<String>,
    client_secret_file: Option<PathBuf>,
    /// Or `AZURE_FEDERATED_TOKEN_FILE`.
    federated_token_file: Option<PathBuf>,
    /// Or `AZURE_AUTHORITY_HOST`; without either, the public cloud's.
    authority_url: Option<String>,
    /// What tokens are for; another one in other clouds.
    #[serde(default = "default_audience")]
    audience: String,
}

/// One key vault.
pub(crate) struct Azure {
    http: Http,
    tokens: Tokens,
    url: String,
}

impl Azure {
    pub(crate) async fn new(
        config: Config,
        environment: &Environment,
        clock: &Clock,
        limits: Limits,
    ) -> Result<Self, Error> {
        let url = http::base_url("vault_url", &config.vault_url)?;
        let http = Http::new(format!("Azure Key Vault at {url}"), Trust::default(), limits)?;
        let tokens = token::find(&config, environment, clock, limits)?;
        Ok(Self { http, tokens, url })
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

    fn secret_url(&self, kind: &str, path: &ResourcePath, action: &str) -> Result<String, Error> {
        let name = Naming::Path.name(path, Alphabet::Hyphen, self.http.service(), MAX_NAME)?;
        Ok(format!("{}/{kind}/{name}{action}?api-version={API}", self.url))
    }

    /// The code of a refusal, the inner one if there is one.
    fn code(&self, answer: &Answer) -> String {
        let Ok(refusal) = self.http.parse::<Refusal>(answer) else { return String::new() };
        refusal.error.innererror.and_then(|inner| inner.code).unwrap_or(refusal.error.code)
    }

    fn refused(&self, answer: &Answer) -> Error {
        Error::refusal(self.http.service(), answer.status, &self.code(answer))
    }
}

#[async_trait]
impl Backend for Azure {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let url = self.secret_url("secrets", path, "")?;
        let answer = self.call(Method::GET, &url, None, Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.refused(&answer)),
        }
        let found: Found = self.http.parse(&answer)?;
        let value = if found.content_type.as_deref() == Some(CONTENT_TYPE) {
            let decoded = STANDARD.decode(found.value.as_bytes());
            Zeroizing::new(decoded.map_err(|_| self.http.malformed("the secret is not base64"))?)
        } else {
            Zeroizing::new(found.value.as_bytes().to_vec())
        };
        Ok(Some(Resource { value, version: Some(version(&found.id)) }))
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        if *condition != Condition::Any {
            return Err(self.http.unsupported("write"));
        }
        self.http.fits(value, MAX_VALUE)?;
        let url = self.secret_url("secrets", path, "")?;
        let value = Zeroizing::new(STANDARD.encode(value));
        let body = http::json(&Write { value: &value, content_type: CONTENT_TYPE }, value.len())?;
        let mut answer = self.call(Method::PUT, &url, Some(&body), Repeat::Always).await?;
        if answer.status == StatusCode::CONFLICT && self.code(&answer) == "ObjectIsDeletedButRecoverable" {
            // A deleted secret keeps its name until it is recovered, which takes the service a few seconds.
            let recover = self.secret_url("deletedsecrets", path, "/recover")?;
            let recovered = self.call(Method::POST, &recover, None, Repeat::Always).await?;
            if recovered.status != StatusCode::OK {
                return Err(self.refused(&recovered));
            }
            answer = self.call(Method::PUT, &url, Some(&body), Repeat::AlsoBusy).await?;
        }
        match answer.status {
            StatusCode::OK => Ok(Some(version(&self.http.parse::<Identified>(&answer)?.id))),
            _ => Err(self.refused(&answer)),
        }
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        if *condition != Condition::Any {
            return Err(self.http.unsupported("delete"));
        }
        let url = self.secret_url("secrets", path, "")?;
        let answer = self.call(Method::DELETE, &url, None, Repeat::Untaken).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refused(&answer)),
        }
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        let mut paths = Vec::new();
        let mut url = format!("{}/secrets?api-version={API}&maxresults=25", self.url);
        let own = format!("{}/", self.url);
        for _ in 0..MAX_PAGES {
            let answer = self.call(Method::GET, &url, None, Repeat::Always).await?;
            if answer.status != StatusCode::OK {
                return Err(self.refused(&answer));
            }
            let page: Page = self.http.parse(&answer)?;
            let names = page.value.iter().filter_map(|secret| secret.id.rsplit('/').next());
            let found = names.filter_map(|name| Alphabet::Hyphen.decode(name));
            paths.extend(found.filter(|path| repository.is_none_or(|name| path.segments().next() == Some(name))));
            if paths.len() > MAX_LISTED {
                return Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED });
            }
            match page.next_link.filter(|link| !link.is_empty()) {
                // The token goes nowhere but to the vault.
                Some(link) if link.starts_with(&own) && link != url => url = link,
                Some(_) => return Err(self.http.malformed("its next page is at another address")),
                None => {
                    paths.sort_unstable();
                    return Ok(paths);
                }
            }
        }
        Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED })
    }
}

/// The last part of a secret's id.
fn version(id: &str) -> String {
    id.rsplit('/').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Found {
    value: Zeroizing<String>,
    id: String,
    content_type: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Write<'a> {
    value: &'a str,
    content_type: &'a str,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    value: Vec<Identified>,
    next_link: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    error: Code,
}

#[derive(Deserialize)]
struct Code {
    code: String,
    innererror: Option<Inner>,
}

#[derive(Deserialize)]
struct Inner {
    code: Option<String>,
}

fn default_audience() -> String {
    "https://vault.azure.net".to_owned()
}

const API: &str = "7.4";
const CONTENT_TYPE: &str = "application/octet-stream; encoding=base64";
const MAX_NAME: usize = 127;
/// Key Vault holds texts of 25,600 bytes, and base64 makes four of three.
const MAX_VALUE: usize = 19_200;
