//! Where AWS credentials come from: the first place of the default chain that the environment names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde::Deserialize;
use store::clock::{Clock, Timestamp};
use zeroize::Zeroizing;

use super::domain;
use super::signature::Credentials;
use crate::Environment;
use crate::error::Error;
use crate::http::{self, Answer, Http, Limits, Repeat, Trust};
use crate::lease::{Granted, Lease};

/// The place and the credentials in use.
pub(super) struct Provider {
    source: Source,
    clock: Clock,
    lease: Lease<Credentials>,
}

enum Source {
    Environment { access_key: String, secret_key: Zeroizing<String>, session_token: Option<Zeroizing<String>> },
    Profile { path: PathBuf, profile: String },
    WebIdentity { http: Http, url: String, role: String, session: String, token_file: PathBuf },
    Container { http: Http, url: String, token: Option<Zeroizing<String>>, token_file: Option<PathBuf> },
    Instance(Instance),
}

impl Provider {
    pub(super) fn find(environment: &Environment, region: &str, clock: &Clock, limits: Limits) -> Result<Self, Error> {
        let source = Source::find(environment, region, limits)?;
        Ok(Self { source, clock: clock.clone(), lease: Lease::new("AWS credentials", clock) })
    }

    /// The credentials to sign with now.
    pub(super) async fn credentials(&self) -> Result<Arc<Credentials>, Error> {
        self.lease.get(self.source.fetch(&self.clock)).await
    }

    /// Notes that credentials were refused; true if there may be others.
    pub(super) async fn refused(&self, used: &Arc<Credentials>) -> bool {
        self.lease.refused(used).await
    }
}

impl Source {
    fn find(environment: &Environment, region: &str, limits: Limits) -> Result<Self, Error> {
        let secret = |name| environment.get(name).map(Zeroizing::new);
        if let (Some(access_key), Some(secret_key)) =
            (environment.get("AWS_ACCESS_KEY_ID"), secret("AWS_SECRET_ACCESS_KEY"))
        {
            return Ok(Self::Environment { access_key, secret_key, session_token: secret("AWS_SESSION_TOKEN") });
        }
        let path = file(environment, "AWS_SHARED_CREDENTIALS_FILE", "credentials");
        if let Some(path) = path.filter(|path| path.exists()) {
            return Ok(Self::Profile { path, profile: profile(environment) });
        }
        if let (Some(role), Some(token_file)) =
            (environment.get("AWS_ROLE_ARN"), environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"))
        {
            let url = match environment.get("AWS_ENDPOINT_URL_STS") {
                Some(url) => http::base_url("AWS_ENDPOINT_URL_STS", &url)?,
                None => format!("https://sts.{region}.{}", domain(region)),
            };
            let http = Http::new(format!("AWS STS at {url}"), Trust::default(), limits)?;
            let session = environment.get("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "trustee".to_owned());
            return Ok(Self::WebIdentity { http, url, role, session, token_file: token_file.into() });
        }
        let container = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
        let url = container
            .map(|path| format!("{CONTAINER}{path}"))
            .or_else(|| environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"));
        if let Some(url) = url {
            let token = secret("AWS_CONTAINER_AUTHORIZATION_TOKEN");
            let token_file = environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(PathBuf::from);
            let http = Http::new("the container's AWS credentials".to_owned(), Trust::local(), limits)?;
            return Ok(Self::Container { http, url, token, token_file });
        }
        Ok(Self::Instance(Instance::new(environment, limits)?))
    }

    async fn fetch(&self, clock: &Clock) -> Result<Granted<Credentials>, Error> {
        match self {
            Self::Environment { access_key, secret_key, session_token } => Ok(Granted {
                credential: Credentials {
                    access_key: access_key.clone(),
                    secret_key: secret_key.clone(),
                    session_token: session_token.clone(),
                },
                lasts: None,
            }),
            Self::Profile { path, profile } => from_profile(path, profile).await,
            Self::WebIdentity { http, url, role, session, token_file } => {
                let token = http::read_secret(token_file).await?;
                let form = http::form(&[
                    ("Action", "AssumeRoleWithWebIdentity"),
                    ("Version", "2011-06-15"),
                    ("RoleArn", role),
                    ("RoleSessionName", session),
                    ("WebIdentityToken", &token),
                ]);
                let request = http
                    .request(Method::POST, &format!("{url}/"))
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .body(http::body(form));
                let answer = fetched(http, request).await?;
                from_sts(&answer).ok_or_else(|| http.malformed("no credentials in it"))?.granted(clock)
            }
            Self::Container { http, url, token, token_file } => {
                let token = match (token_file, token) {
                    (Some(path), _) => Some(http::read_secret(path).await?),
                    (None, token) => token.clone(),
                };
                let mut request = http.request(Method::GET, url);
                if let Some(token) = token {
                    request = request.header("Authorization", http::sensitive(&token)?);
                }
                let answer = fetched(http, request).await?;
                http.parse::<Temporary>(&answer)?.granted(clock)
            }
            Self::Instance(instance) => instance.credentials().await?.granted(clock),
        }
    }
}

/// The region that the environment, the profile or the instance names.
pub(super) async fn region(environment: &Environment, limits: Limits) -> Result<String, Error> {
    let named = environment.get("AWS_REGION").or_else(|| environment.get("AWS_DEFAULT_REGION"));
    if let Some(region) = named {
        return Ok(region);
    }
    if let Some(path) = file(environment, "AWS_CONFIG_FILE", "config")
        && let Ok(text) = tokio::fs::read_to_string(&path).await
    {
        let profile = profile(environment);
        let section = if profile == "default" { profile } else { format!("profile {profile}") };
        if let Some(region) = value(&text, &section, "region") {
            return Ok(region.to_owned());
        }
    }
    Instance::new(environment, limits)?.region().await.map_err(|e| Error::Config {
        key: "region",
        cause: format!("neither it, nor AWS_REGION, nor a profile names one, and no instance does: {e}"),
    })
}

/// The metadata service of an instance, version 2.
struct Instance {
    http: Http,
    url: String,
}

impl Instance {
    fn new(environment: &Environment, limits: Limits) -> Result<Self, Error> {
        if environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
            let cause = "the environment names none, and the instance's metadata is disabled".to_owned();
            return Err(Error::Credentials { service: "AWS".to_owned(), cause });
        }
        let url = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or_else(|| INSTANCE.to_owned());
        let url = http::base_url("AWS_EC2_METADATA_SERVICE_ENDPOINT", &url)?;
        let http = Http::new("the instance's metadata service".to_owned(), Trust::local(), limits)?;
        Ok(Self { http, url })
    }

    async fn credentials(&self) -> Result<Temporary, Error> {
        let token = self.token().await?;
        let roles = self.read(&token, "iam/security-credentials/").await?;
        let role = std::str::from_utf8(&roles.body).unwrap_or_default().lines().next().unwrap_or_default().trim();
        if role.is_empty() || !role.bytes().all(|b| b.is_ascii_alphanumeric() || b"+=,.@_-".contains(&b)) {
            return Err(self.http.malformed("it names no role"));
        }
        self.http.parse(&self.read(&token, &format!("iam/security-credentials/{role}")).await?)
    }

    async fn region(&self) -> Result<String, Error> {
        let answer = self.read(&self.token().await?, "placement/region").await?;
        Ok(String::from_utf8_lossy(&answer.body).trim().to_owned())
    }

    async fn token(&self) -> Result<Zeroizing<String>, Error> {
        let request = self
            .http
            .request(Method::PUT, &format!("{}/latest/api/token", self.url))
            .header("X-aws-ec2-metadata-token-ttl-seconds", "300");
        let answer = fetched(&self.http, request).await?;
        let text = std::str::from_utf8(&answer.body).map_err(|_| self.http.malformed("the token is no text"))?;
        Ok(Zeroizing::new(text.trim().to_owned()))
    }

    async fn read(&self, token: &str, path: &str) -> Result<Answer, Error> {
        let request = self
            .http
            .request(Method::GET, &format!("{}/latest/meta-data/{path}", self.url))
            .header("X-aws-ec2-metadata-token", http::sensitive(token)?);
        fetched(&self.http, request).await
    }
}

/// Credentials that end, as containers and instances give them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Temporary {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    token: Option<Zeroizing<String>>,
    expiration: Option<Timestamp>,
}

impl Temporary {
    fn granted(self, clock: &Clock) -> Result<Granted<Credentials>, Error> {
        let now = clock.now().unix();
        let lasts = self.expiration.map(|end| Duration::from_secs(end.unix().saturating_sub(now)));
        if lasts == Some(Duration::ZERO) {
            let cause = "they have ended already; the clocks may differ".to_owned();
            return Err(Error::Credentials { service: "AWS".to_owned(), cause });
        }
        let credential = Credentials {
            access_key: self.access_key_id,
            secret_key: self.secret_access_key,
            session_token: self.token,
        };
        Ok(Granted { credential, lasts })
    }
}

async fn fetched(http: &Http, request: RequestBuilder) -> Result<Answer, Error> {
    let answer = http.send(request, Repeat::Always).await?;
    match answer.status {
        StatusCode::OK => Ok(answer),
        status if status.is_server_error() => Err(Error::refusal(http.service(), status, "")),
        status => Err(Error::Credentials {
            service: http.service().to_owned(),
            cause: format!("they were refused ({})", status.as_u16()),
        }),
    }
}

async fn from_profile(path: &Path, profile: &str) -> Result<Granted<Credentials>, Error> {
    let text = http::read_secret(path).await?;
    let get = |key| value(&text, profile, key);
    match (get("aws_access_key_id"), get("aws_secret_access_key")) {
        (Some(access_key), Some(secret_key)) => Ok(Granted {
            credential: Credentials {
                access_key: access_key.to_owned(),
                secret_key: Zeroizing::new(secret_key.to_owned()),
                session_token: get("aws_session_token").map(|token| Zeroizing::new(token.to_owned())),
            },
            // Another program may write new ones into the file.
            lasts: Some(REREAD),
        }),
        _ => Err(Error::Credentials {
            service: "AWS".to_owned(),
            cause: format!("{} has no access key in profile {profile}", path.display()),
        }),
    }
}

/// The value of a key in a section of a profile file.
fn value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut inside = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim() == key
        {
            return Some(value.trim());
        }
    }
    None
}

fn from_sts(answer: &Answer) -> Option<Temporary> {
    let document = roxmltree::Document::parse(std::str::from_utf8(&answer.body).ok()?).ok()?;
    let credentials = document.descendants().find(|node| node.tag_name().name() == "Credentials")?;
    let text = |name| credentials.children().find(|node| node.tag_name().name() == name)?.text();
    Some(Temporary {
        access_key_id: text("AccessKeyId")?.to_owned(),
        secret_access_key: Zeroizing::new(text("SecretAccessKey")?.to_owned()),
        token: Some(Zeroizing::new(text("SessionToken")?.to_owned())),
        expiration: Some(text("Expiration")?.parse().ok()?),
    })
}

fn file(environment: &Environment, variable: &str, name: &str) -> Option<PathBuf> {
    let named = environment.get(variable).map(PathBuf::from);
    named.or_else(|| Some(Path::new(&environment.get("HOME")?).join(".aws").join(name)))
}

fn profile(environment: &Environment) -> String {
    environment.get("AWS_PROFILE").unwrap_or_else(|| "default".to_owned())
}

const CONTAINER: &str = "http://169.254.170.2";
const INSTANCE: &str = "http://169.254.169.254";
const REREAD: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_its_own_section() {
        let text = "[default]\naws_access_key_id = A\n# x = y\n[ other ]\n aws_access_key_id=B = C\n";
        assert_eq!(value(text, "default", "aws_access_key_id"), Some("A"));
        assert_eq!(value(text, "other", "aws_access_key_id"), Some("B = C"));
        assert_eq!(value(text, "default", "aws_secret_access_key"), None);
        assert_eq!(value(text, "third", "aws_access_key_id"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_profile_makes_it_panic(text in ".{0,80}") {
            let _ = value(&text, "default", "region");
        }
    }
}
