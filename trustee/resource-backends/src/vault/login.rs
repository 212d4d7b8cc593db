//! How the broker comes to a Vault token and keeps it alive.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::HeaderValue;
use reqwest::{RequestBuilder, StatusCode};
use serde::{Deserialize, Serialize};
use store::clock::Clock;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::http::{self, Answer, Http, Repeat};
use crate::lease::{Granted, Lease};

/// A login of Vault that ends in a token; the key `method` selects it.
#[derive(Clone, Deserialize)]
#[serde(tag = "method", rename_all = "lowercase", deny_unknown_fields)]
pub enum Login {
    /// The token of the pod's service account, which Vault checks with Kubernetes.
    Kubernetes {
        /// The role to log in to.
        role: String,
        /// Where Vault mounts this login.
        #[serde(default = "default_kubernetes")]
        mount: String,
        /// The file of the service account's token.
        #[serde(default = "default_jwt")]
        jwt_file: PathBuf,
    },
    /// A role and its secret.
    AppRole {
        /// The role.
        role_id: String,
        /// The file of the role's secret.
        secret_id_file: PathBuf,
        /// Where Vault mounts this login.
        #[serde(default = "default_approle")]
        mount: String,
    },
}

/// Where the token comes from.
pub(super) enum Method {
    Token(Zeroizing<String>),
    TokenFile(PathBuf),
    Login(Login),
}

/// The broker's session with Vault.
pub(super) struct Session {
    method: Method,
    url: String,
    namespace: Option<HeaderValue>,
    lease: Lease<Zeroizing<String>>,
}

impl Session {
    pub(super) fn new(
        method: Method,
        url: &str,
        namespace: Option<String>,
        service: &str,
        clock: &Clock,
    ) -> Result<Self, Error> {
        let namespace = namespace.map(|namespace| {
            let cause = "it has characters that no header can hold".to_owned();
            HeaderValue::from_str(&namespace).map_err(|_| Error::Config { key: "namespace", cause })
        });
        if let Method::Login(Login::Kubernetes { mount, .. } | Login::AppRole { mount, .. }) = &method {
            self::mount("login.mount", mount)?;
        }
        Ok(Self { method, url: url.to_owned(), namespace: namespace.transpose()?, lease: Lease::new(service, clock) })
    }

    /// The token to use now.
    pub(super) async fn token(&self, http: &Http) -> Result<Arc<Zeroizing<String>>, Error> {
        self.lease.get(self.log_in(http)).await
    }

    /// Notes that a token was refused; true if another one may be had. A fixed token has no other.
    pub(super) async fn refused(&self, token: &Arc<Zeroizing<String>>) -> bool {
        !matches!(self.method, Method::Token(_)) && self.lease.refused(token).await
    }

    /// A request with the headers that every request has.
    pub(super) fn request(&self, http: &Http, method: reqwest::Method, url: &str) -> Result<RequestBuilder, Error> {
        let request = http.request(method, url).header("X-Vault-Request", "true");
        Ok(match &self.namespace {
            Some(namespace) => request.header("X-Vault-Namespace", namespace),
            None => request,
        })
    }

    async fn log_in(&self, http: &Http) -> Result<Granted<Zeroizing<String>>, Error> {
        match &self.method {
            Method::Token(token) => Ok(Granted { credential: token.clone(), lasts: self.renew(http, token).await? }),
            Method::TokenFile(path) => Ok(Granted { credential: http::read_secret(path).await?, lasts: Some(REREAD) }),
            Method::Login(Login::Kubernetes { role, mount, jwt_file }) => {
                let jwt = http::read_secret(jwt_file).await?;
                self.exchange(http, mount, &Kubernetes { role, jwt: &jwt }).await
            }
            Method::Login(Login::AppRole { role_id, secret_id_file, mount }) => {
                let secret_id = http::read_secret(secret_id_file).await?;
                self.exchange(http, mount, &AppRole { role_id, secret_id: &secret_id }).await
            }
        }
    }

    /// Renews a fixed token, and tells how long it lasts now.
    ///
    /// A token that can't be renewed, or may not renew itself, is used as it is: requests tell whether it is good.
    async fn renew(&self, http: &Http, token: &str) -> Result<Option<Duration>, Error> {
        let url = format!("{}/v1/auth/token/renew-self", self.url);
        let request = self.session_request(http, &url, Zeroizing::new(b"{}".to_vec()))?;
        let answer = http.send(request.header("X-Vault-Token", http::sensitive(token)?), Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => Ok(self.auth(http, &answer)?.lasts()),
            StatusCode::FORBIDDEN => Ok(Some(REREAD)),
            StatusCode::BAD_REQUEST => Ok(None),
            status => Err(Error::refusal(http.service(), status, "")),
        }
    }

    async fn exchange(
        &self,
        http: &Http,
        mount: &str,
        login: &(impl Serialize + Sync),
    ) -> Result<Granted<Zeroizing<String>>, Error> {
        let url = format!("{}/v1/auth/{}/login", self.url, mount.trim_matches('/'));
        let request = self.session_request(http, &url, http::json(login, MAX_LOGIN)?)?;
        let answer = http.send(request, Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => {
                let auth = self.auth(http, &answer)?;
                let lasts = auth.lasts();
                Ok(Granted { credential: auth.client_token, lasts })
            }
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Err(Error::Credentials {
                service: http.service().to_owned(),
                cause: format!("the login at auth/{mount} was refused ({})", answer.status.as_u16()),
            }),
            status => Err(Error::refusal(http.service(), status, "")),
        }
    }

    fn session_request(&self, http: &Http, url: &str, body: Zeroizing<Vec<u8>>) -> Result<RequestBuilder, Error> {
        let request = self.request(http, reqwest::Method::POST, url)?;
        Ok(request.header("Content-Type", "application/json").body(http::body(body)))
    }

    fn auth(&self, http: &Http, answer: &Answer) -> Result<Auth, Error> {
        Ok(http.parse::<LoggedIn>(answer)?.auth)
    }
}

/// Checks a mount's path, which becomes part of URLs.
pub(super) fn mount(key: &'static str, text: &str) -> Result<String, Error> {
    let mount = text.trim_matches('/');
    let segment = |s: &str| {
        !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if mount.split('/').all(segment) {
        Ok(mount.to_owned())
    } else {
        Err(Error::Config { key, cause: "it is not a path of letters, digits, '-', '_' and '.'".to_owned() })
    }
}

#[derive(Serialize)]
struct Kubernetes<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Serialize)]
struct AppRole<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Deserialize)]
struct LoggedIn {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    client_token: Zeroizing<String>,
    lease_duration: u64,
}

impl Auth {
    /// Vault writes 0 for a token without end.
    fn lasts(&self) -> Option<Duration> {
        (self.lease_duration > 0).then(|| Duration::from_secs(self.lease_duration))
    }
}

fn default_kubernetes() -> String {
    "kubernetes".to_owned()
}

fn default_approle() -> String {
    "approle".to_owned()
}

fn default_jwt() -> PathBuf {
    PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/token")
}

/// How long a token is used before its file is read again, or before it is tried to renew it again.
const REREAD: Duration = Duration::from_secs(60);
const MAX_LOGIN: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_can_t_leave_its_place_in_a_url() {
        for (text, expected) in [("secret", "secret"), ("/team-a/kv_1/", "team-a/kv_1"), ("kv.2", "kv.2")] {
            assert_eq!(mount("mount_path", text).unwrap(), expected);
        }
        for bad in ["", "/", "a//b", "../sys", "a/..", "a?b", "a%2fb", "a b"] {
            assert!(mount("mount_path", bad).is_err(), "{bad:?} passed");
        }
    }
}
