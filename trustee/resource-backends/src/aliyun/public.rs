//! The public interface of Alibaba Cloud KMS (version 2016-01-20), with an access key.
//!
//! A value that is a text is written as one, which is what upstream reads; any other as `binary`, in base64.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, Request, StatusCode};
use serde::Deserialize;
use store::clock::Clock;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use super::MAX_NAME;
use super::signature::AccessKey;
use crate::canonical::{random_id, sha256};
use crate::error::Error;
use crate::http::{self, Answer, Http, Limits, Repeat, Trust};
use crate::lease::{Granted, Lease};
use crate::naming::{Alphabet, Naming};
use crate::{Backend, Condition, MAX_LISTED, Resource};

/// What the interface needs.
pub(super) struct Settings {
    pub(super) access_key: String,
    pub(super) secret_file: PathBuf,
    pub(super) region: String,
    /// The instance that new secrets are kept in, and the key there that encrypts them.
    pub(super) instance: Option<(String, String)>,
    pub(super) endpoint: Option<String>,
    pub(super) naming: Naming,
}

/// The secrets of one region.
pub(super) struct Public {
    http: Http,
    clock: Clock,
    key: Lease<AccessKey>,
    url: String,
    settings: Settings,
}

impl Public {
    pub(super) fn new(settings: Settings, clock: &Clock, limits: Limits) -> Result<Self, Error> {
        if settings.region.is_empty() || !settings.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let cause = "it is not a region such as cn-shanghai".to_owned();
            return Err(Error::Config { key: "region_id", cause });
        }
        let url = match &settings.endpoint {
            Some(url) => http::base_url("endpoint_url", url)?,
            None => format!("https://kms.{}.aliyuncs.com", settings.region),
        };
        let http = Http::new(format!("Alibaba Cloud KMS at {url}"), Trust::default(), limits)?;
        let http = http.busy_when(|answer| answer.is_bad_request_with("\"Throttling"));
        settings.naming.announce(http.service());
        let key = Lease::new(http.service(), clock);
        Ok(Self { http, clock: clock.clone(), key, url, settings })
    }

    /// Calls one action. Its parameters travel in the body, since a secret has no place in a URL.
    async fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Result<Answer, Refusal>, Error> {
        let key = self.key.get(self.read_key()).await?;
        let body = http::form(parameters);
        // A write that was taken must not meet its own secret and be told of a conflict.
        let repeat = match action {
            "CreateSecret" | "PutSecretValue" => Repeat::Untaken,
            _ => Repeat::Always,
        };
        // The interface takes a nonce once, so every attempt has its own.
        let answer = self.http.send_each(|| self.signed(&key, action, &body), repeat).await?;
        if answer.status == StatusCode::OK {
            return Ok(Ok(answer));
        }
        let code = self.http.parse::<Code>(&answer).map(|refusal| refusal.code).unwrap_or_default();
        Ok(Err(Refusal { status: answer.status, code }))
    }

    fn signed(&self, key: &AccessKey, action: &str, body: &Zeroizing<Vec<u8>>) -> Result<Request, Error> {
        let (payload, nonce, date) = (sha256(body), random_id()?, self.clock.now().to_string());
        let signed = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("host", http::host(&self.url)),
            ("x-acs-action", action),
            ("x-acs-content-sha256", &payload),
            ("x-acs-date", &date),
            ("x-acs-signature-nonce", &nonce),
            ("x-acs-version", VERSION),
        ];
        let authorization = key.sign("", &signed, &payload);
        let mut request = self
            .http
            .request(Method::POST, &format!("{}/", self.url))
            .header("Accept", "application/json")
            .header("Authorization", http::sensitive(&authorization)?)
            .body(http::body(body.clone()));
        for (name, value) in signed.into_iter().filter(|(name, _)| *name != "host") {
            request = request.header(name, value);
        }
        request.build().map_err(|_| self.http.malformed("no request can be made for it"))
    }

    async fn read_key(&self) -> Result<Granted<AccessKey>, Error> {
        let secret = http::read_secret(&self.settings.secret_file).await?;
        Ok(Granted { credential: AccessKey { id: self.settings.access_key.clone(), secret }, lasts: Some(REREAD) })
    }

    fn name(&self, path: &ResourcePath) -> Result<String, Error> {
        self.settings.naming.name(path, Alphabet::Path, self.http.service(), MAX_NAME)
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        let status = match refusal.status {
            StatusCode::BAD_REQUEST if refusal.code.starts_with("Throttling") => StatusCode::TOO_MANY_REQUESTS,
            status => status,
        };
        Error::refusal(self.http.service(), status, &refusal.code)
    }

    async fn create(&self, name: &str, parameters: &[(&str, &str)]) -> Result<Result<Answer, Refusal>, Error> {
        let mut parameters = parameters.to_vec();
        if let Some((instance, key)) = &self.settings.instance {
            parameters.extend([("DKMSInstanceId", instance.as_str()), ("EncryptionKeyId", key.as_str())]);
        }
        parameters.push(("SecretName", name));
        self.call("CreateSecret", &parameters).await
    }

    async fn write(&self, name: &str, parameters: &[(&str, &str)]) -> Result<Result<Answer, Refusal>, Error> {
        let mut parameters = parameters.to_vec();
        parameters.push(("SecretName", name));
        self.call("PutSecretValue", &parameters).await
    }
}

#[async_trait]
impl Backend for Public {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let answer = match self.call("GetSecretValue", &[("SecretName", &self.name(path)?)]).await? {
            Ok(answer) => answer,
            Err(refusal) if refusal.is_absent() || refusal.is_deleted() => return Ok(None),
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let found: Found = self.http.parse(&answer)?;
        let value = value(&found.secret_data, Some(&found.secret_data_type));
        let value = value.ok_or_else(|| self.http.malformed("the secret is not base64"))?;
        Ok(Some(Resource { value, version: Some(version(&found.version_id)) }))
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        let name = self.name(path)?;
        self.http.fits(value, MAX_VALUE)?;
        let binary = Zeroizing::new(STANDARD.encode(value));
        let (data, kind) = std::str::from_utf8(value).map_or((binary.as_str(), "binary"), |text| (text, "text"));
        let version = random_id()?;
        let parameters = [("SecretData", data), ("SecretDataType", kind), ("VersionId", &version)];
        let first = match condition {
            Condition::Version(_) => {
                return Err(self.http.unsupported("write"));
            }
            Condition::Any => self.write(&name, &parameters).await?,
            Condition::Absent => self.create(&name, &parameters).await?,
        };
        let outcome = match first {
            Err(refusal) if *condition == Condition::Any && refusal.is_absent() => {
                self.create(&name, &parameters).await?
            }
            // A deleted secret keeps its name for the days in which it can be restored.
            Err(refusal) if refusal.is_deleted() => match self.call("RestoreSecret", &[("SecretName", &name)]).await? {
                Ok(_) => self.write(&name, &parameters).await?,
                Err(refusal) => Err(refusal),
            },
            outcome => outcome,
        };
        match outcome {
            Ok(_) => Ok(Some(version)),
            Err(refusal) if refusal.code == "Rejected.ResourceExist" => Err(Error::Conflict { path: path.clone() }),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        let name = self.name(path)?;
        if *condition != Condition::Any {
            return Err(self.http.unsupported("delete"));
        }
        match self.call("DeleteSecret", &[("SecretName", &name)]).await? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.is_absent() || refusal.is_deleted() => Ok(false),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        self.settings.naming.listable(self.http.service())?;
        let mut paths = Vec::new();
        for number in 1..=MAX_LISTED / PAGE {
            let parameters = [("PageNumber", &*number.to_string()), ("PageSize", &PAGE.to_string())];
            let answer = self.call("ListSecrets", &parameters).await?.map_err(|refusal| self.refused(&refusal))?;
            let page: Page = self.http.parse(&answer)?;
            let names = page.secret_list.secret.iter().map(|secret| secret.secret_name.as_str());
            let found = names.filter_map(|name| Alphabet::Path.decode(name));
            paths.extend(found.filter(|path| repository.is_none_or(|name| path.segments().next() == Some(name))));
            if page.secret_list.secret.len() < PAGE {
                paths.sort_unstable();
                return Ok(paths);
            }
        }
        Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED })
    }
}

/// A secret's bytes from its data and type.
pub(super) fn value(data: &str, kind: Option<&str>) -> Option<Zeroizing<Vec<u8>>> {
    match kind {
        Some("binary") => STANDARD.decode(data).ok().map(Zeroizing::new),
        _ => Some(Zeroizing::new(data.as_bytes().to_vec())),
    }
}

/// A version's id, which others may have chosen, cut to what a version may hold.
pub(super) fn version(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).take(128).collect()
}

struct Refusal {
    status: StatusCode,
    code: String,
}

impl Refusal {
    fn is_absent(&self) -> bool {
        self.code == "Forbidden.ResourceNotFound"
    }

    fn is_deleted(&self) -> bool {
        self.code == "Rejected.ResourceInDeleting" || self.code == "Forbidden.ResourceInDeleting"
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Code {
    code: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    secret_data: Zeroizing<String>,
    secret_data_type: String,
    version_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    secret_list: List,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct List {
    #[serde(default)]
    secret: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    secret_name: String,
}

const VERSION: &str = "2016-01-20";
const REREAD: Duration = Duration::from_secs(300);
const MAX_VALUE: usize = 30_720;
const PAGE: usize = 100;
