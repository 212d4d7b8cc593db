//! Resources in AWS Secrets Manager.

mod credentials;
mod signature;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use store::clock::Clock;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::canonical;
use crate::error::Error;
use crate::http::{self, Answer, Http, Limits, Repeat, Trust};
use crate::naming::{Alphabet, Naming};
use crate::{Backend, Condition, Environment, MAX_LISTED, MAX_PAGES, Resource};
use credentials::Provider;
use signature::{Signed, Signer};

/// Which region's Secrets Manager. Credentials come from the default chain: environment, profile file, web
/// identity, container, instance.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Without it, `AWS_REGION`, `AWS_DEFAULT_REGION`, the profile's or the instance's.
    region: Option<String>,
    /// Without it, the region's public endpoint.
    endpoint_url: Option<String>,
    #[serde(default)]
    pub(crate) naming: Naming,
}

/// Secrets Manager in one region.
pub(crate) struct Aws {
    http: Http,
    clock: Clock,
    provider: Provider,
    region: String,
    url: String,
    naming: Naming,
}

impl Aws {
    pub(crate) async fn new(
        config: Config,
        environment: &Environment,
        clock: &Clock,
        limits: Limits,
    ) -> Result<Self, Error> {
        let region = match config.region {
            Some(region) => region,
            None => credentials::region(environment, limits).await?,
        };
        if region.is_empty() || !region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::Config { key: "region", cause: "it is not a region such as eu-west-1".to_owned() });
        }
        let url = match &config.endpoint_url {
            Some(url) => http::base_url("endpoint_url", url)?,
            None => format!("https://secretsmanager.{region}.{}", domain(&region)),
        };
        let http = Http::new(format!("AWS Secrets Manager at {url}"), Trust::default(), limits)?;
        let http = http.busy_when(|answer| answer.is_bad_request_with("ThrottlingException"));
        let provider = Provider::find(environment, &region, clock, limits)?;
        config.naming.announce(http.service());
        Ok(Self { http, clock: clock.clone(), provider, region, url, naming: config.naming })
    }

    /// Calls one action, and once more with new credentials if those in use were refused.
    async fn call(&self, action: &str, body: &Zeroizing<Vec<u8>>) -> Result<Result<Answer, Refusal>, Error> {
        loop {
            let credentials = self.provider.credentials().await?;
            let target = format!("secretsmanager.{action}");
            let headers = [("content-type", CONTENT_TYPE), ("x-amz-target", target.as_str())];
            let signer = Signer { credentials: &credentials, region: &self.region, service: "secretsmanager" };
            let host = http::host(&self.url);
            let now = self.clock.now();
            let signed =
                signer.sign(&Signed { method: "POST", host, path: "/", query: "", headers: &headers, body }, now);
            let mut request = self.http.request(Method::POST, &format!("{}/", self.url)).body(http::body(body.clone()));
            for (name, value) in headers {
                request = request.header(name, value);
            }
            for (name, value) in &signed {
                request = request.header(*name, http::sensitive(value)?);
            }
            // Writes carry a token of their own, so that a repeated one is the same one.
            let answer = self.http.send(request, Repeat::Always).await?;
            if answer.status == StatusCode::OK {
                return Ok(Ok(answer));
            }
            let refusal = self.http.parse::<Refusal>(&answer).unwrap_or_default().with(answer.status);
            let stale = matches!(refusal.code(), "ExpiredTokenException" | "UnrecognizedClientException");
            if !(stale && self.provider.refused(&credentials).await) {
                return Ok(Err(refusal));
            }
        }
    }

    async fn act(&self, action: &str, body: &impl Serialize) -> Result<Result<Answer, Refusal>, Error> {
        self.call(action, &http::json(body, 512)?).await
    }

    async fn create(&self, name: &str, token: &str, binary: &str) -> Result<Result<String, Refusal>, Error> {
        let body = Create { name, client_request_token: token, secret_binary: binary };
        self.version(self.call("CreateSecret", &http::json(&body, binary.len())?).await?)
    }

    async fn write(&self, name: &str, token: &str, binary: &str) -> Result<Result<String, Refusal>, Error> {
        let body = Write { secret_id: name, client_request_token: token, secret_binary: binary };
        self.version(self.call("PutSecretValue", &http::json(&body, binary.len())?).await?)
    }

    /// The version that a write made.
    fn version(&self, outcome: Result<Answer, Refusal>) -> Result<Result<String, Refusal>, Error> {
        match outcome {
            Ok(answer) => Ok(Ok(self.http.parse::<Version>(&answer)?.version_id)),
            Err(refusal) => Ok(Err(refusal)),
        }
    }

    fn name(&self, path: &ResourcePath) -> Result<String, Error> {
        self.naming.name(path, Alphabet::Path, self.http.service(), MAX_NAME)
    }

    fn refused(&self, refusal: &Refusal) -> Error {
        let code = refusal.code();
        let throttled = matches!(code, "ThrottlingException" | "InternalServiceError");
        let denied = matches!(
            code,
            "AccessDeniedException"
                | "UnrecognizedClientException"
                | "InvalidSignatureException"
                | "ExpiredTokenException"
                | "MissingAuthenticationTokenException"
        );
        let status = match refusal.status {
            // This interface answers 400 for most things, and says in its code what it was.
            StatusCode::BAD_REQUEST if throttled => StatusCode::TOO_MANY_REQUESTS,
            StatusCode::BAD_REQUEST if denied => StatusCode::FORBIDDEN,
            status => status,
        };
        Error::refusal(self.http.service(), status, code)
    }
}

#[async_trait]
impl Backend for Aws {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let name = self.name(path)?;
        let answer = match self.act("GetSecretValue", &Named { secret_id: &name }).await? {
            Ok(answer) => answer,
            Err(refusal) if refusal.is_absent() || refusal.is_deleted() => return Ok(None),
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let found: Found = self.http.parse(&answer)?;
        let value = match (found.secret_binary, found.secret_string) {
            (Some(binary), _) => STANDARD
                .decode(binary.as_bytes())
                .map(Zeroizing::new)
                .map_err(|_| self.http.malformed("the secret is not base64"))?,
            (None, Some(text)) => Zeroizing::new(text.as_bytes().to_vec()),
            (None, None) => return Err(self.http.malformed("there is no secret in it")),
        };
        Ok(Some(Resource { value, version: Some(found.version_id) }))
    }

    async fn put(&self, path: &ResourcePath, value: &[u8], condition: &Condition) -> Result<Option<String>, Error> {
        let name = self.name(path)?;
        self.http.fits(value, MAX_VALUE)?;
        let binary = Zeroizing::new(STANDARD.encode(value));
        let token = canonical::random_id()?;
        let first = match condition {
            Condition::Version(_) => {
                return Err(self.http.unsupported("write"));
            }
            Condition::Any => self.write(&name, &token, &binary).await?,
            Condition::Absent => self.create(&name, &token, &binary).await?,
        };
        let outcome = match first {
            Err(refusal) if *condition == Condition::Any && refusal.is_absent() => {
                self.create(&name, &token, &binary).await?
            }
            // A deleted secret keeps its name for the days in which it can be restored.
            Err(refusal) if refusal.is_deleted() => match self.act("RestoreSecret", &Named { secret_id: &name }).await?
            {
                Ok(_) => self.write(&name, &token, &binary).await?,
                Err(refusal) => Err(refusal),
            },
            outcome => outcome,
        };
        match outcome {
            Ok(version) => Ok(Some(version)),
            Err(refusal) if refusal.code() == "ResourceExistsException" => Err(Error::Conflict { path: path.clone() }),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    async fn delete(&self, path: &ResourcePath, condition: &Condition) -> Result<bool, Error> {
        let name = self.name(path)?;
        if *condition != Condition::Any {
            return Err(self.http.unsupported("delete"));
        }
        match self.act("DeleteSecret", &Named { secret_id: &name }).await? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.is_absent() || refusal.is_deleted() => Ok(false),
            Err(refusal) => Err(self.refused(&refusal)),
        }
    }

    async fn list(&self, repository: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        self.naming.listable(self.http.service())?;
        let mut paths = Vec::new();
        let mut next_token = None;
        for _ in 0..MAX_PAGES {
            let body = List { max_results: 100, next_token: next_token.take() };
            let answer = self.act("ListSecrets", &body).await?.map_err(|refusal| self.refused(&refusal))?;
            let page: Page = self.http.parse(&answer)?;
            let found = page.secret_list.iter().filter_map(|secret| Alphabet::Path.decode(&secret.name));
            paths.extend(
                found.filter(|path| repository.is_none_or(|repository| path.segments().next() == Some(repository))),
            );
            if paths.len() > MAX_LISTED {
                return Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED });
            }
            next_token = page.next_token;
            if next_token.is_none() {
                paths.sort_unstable();
                return Ok(paths);
            }
        }
        Err(Error::TooMany { service: self.http.service().to_owned(), max: MAX_LISTED })
    }
}

/// What Secrets Manager says instead of doing what was asked.
#[derive(Default, Deserialize)]
struct Refusal {
    #[serde(rename = "__type", default)]
    kind: String,
    #[serde(alias = "Message", default)]
    message: String,
    #[serde(skip)]
    status: StatusCode,
}

impl Refusal {
    fn with(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The code, without the namespace that may be in front.
    fn code(&self) -> &str {
        self.kind.rsplit('#').next().unwrap_or_default()
    }

    fn is_absent(&self) -> bool {
        self.code() == "ResourceNotFoundException"
    }

    /// The secret was deleted and can still be restored; the code alone doesn't tell that.
    fn is_deleted(&self) -> bool {
        self.code() == "InvalidRequestException"
            && (self.message.contains("marked for deletion") || self.message.contains("scheduled for deletion"))
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Named<'a> {
    secret_id: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Create<'a> {
    name: &'a str,
    client_request_token: &'a str,
    secret_binary: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Write<'a> {
    secret_id: &'a str,
    client_request_token: &'a str,
    secret_binary: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct List {
    max_results: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    secret_binary: Option<Zeroizing<String>>,
    secret_string: Option<Zeroizing<String>>,
    version_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Version {
    version_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    secret_list: Vec<Listed>,
    next_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    name: String,
}

/// The domain of a region's services.
fn domain(region: &str) -> &'static str {
    if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" }
}

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";
const MAX_NAME: usize = 512;
const MAX_VALUE: usize = 65_536;
