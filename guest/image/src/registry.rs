//! The registry client: manifests and blobs by the OCI distribution API, with tokens, retries and resumed streams.
//!
//! Its own because the guest has no certificate store (TLS must start from given roots), and because every answer
//! must be bounded, a stalled or broken stream must go on where it stopped, and a refusal must say why.

pub(crate) mod error;
mod tls;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_spec::distribution::Reference;
use oci_spec::image::Digest;
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE, WWW_AUTHENTICATE};
use reqwest::redirect::{Action, Attempt};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::auth::{Challenge, Credentials, Login};
use crate::config::ImageConfig;
use crate::error::Error;

pub use error::RegistryError;
use error::{causes, explanation};

/// Speaks to all registries that images come from.
pub(crate) struct Registry {
    secure: Client,
    plain: Client,
    insecure: HashSet<String>,
    credentials: RwLock<Option<Arc<Credentials>>>,
    authorizations: Mutex<HashMap<(String, String), Authorization>>,
    patience: Patience,
}

/// How long a registry may keep the guest waiting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) connect: Duration,
    /// The longest silence on an open connection.
    pub(crate) stall: Duration,
    /// The pause after the first failure; each further one is four times as long.
    pub(crate) backoff: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), stall: Duration::from_secs(30), backoff: Duration::from_millis(200) }
    }
}

/// A document with its claimed type.
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

impl Registry {
    pub(crate) fn new(config: &ImageConfig, patience: Patience) -> Result<Self, Error> {
        let tls = tls::client_config(&config.extra_root_certificates)?;
        let client = |https_only| {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .https_only(https_only)
                .no_proxy()
                .connect_timeout(patience.connect)
                .read_timeout(patience.stall)
                .redirect(reqwest::redirect::Policy::custom(redirect))
                .user_agent(concat!("cocoon/", env!("CARGO_PKG_VERSION")))
                .build()
                .map_err(|e| Error::Config { cause: format!("the HTTP client can't be built: {}", causes(&e)) })
        };
        let insecure = config.registry_config.registry.iter().filter(|entry| entry.insecure);
        Ok(Self {
            secure: client(true)?,
            plain: client(false)?,
            insecure: insecure.map(|entry| entry.location.clone()).collect(),
            credentials: RwLock::default(),
            authorizations: Mutex::default(),
            patience,
        })
    }

    pub(crate) fn set_credentials(&self, credentials: Credentials) {
        *self.credentials.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(credentials));
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(crate) fn has_credentials(&self) -> bool {
        self.credentials.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Fetches a manifest or index by tag or digest. Its digest is for the caller to check.
    pub(crate) async fn manifest(&self, reference: &Reference, version: &str) -> Result<Document, RegistryError> {
        let (path, headers) = (format!("manifests/{version}"), [(ACCEPT.as_str(), MANIFEST_TYPES)]);
        self.patiently(|| self.fetch(reference, &path, &headers)).await
    }

    /// Fetches a blob of at most [`MAX_DOCUMENT`] bytes into memory. Its digest is for the caller to check.
    pub(crate) async fn document(&self, reference: &Reference, digest: &Digest) -> Result<Bytes, RegistryError> {
        let path = format!("blobs/{digest}");
        Ok(self.patiently(|| self.fetch(reference, &path, &[])).await?.bytes)
    }

    /// Streams exactly `size` bytes of a blob into `sink`, resuming where a stream broke.
    ///
    /// Returns early and without an error once nobody reads from `sink` any more.
    pub(crate) async fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        sink: mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let mut offset = 0;
        let mut failures = 0;
        let mut mark = 0;
        loop {
            let Err(error) = self.stream(reference, digest, size, &mut offset, &sink).await else { return Ok(()) };
            // A stream that got on deserves new patience; one that only dribbles does not.
            if offset - mark >= PROGRESS {
                failures = 0;
            }
            (mark, failures) = (offset, failures + 1);
            if failures >= TRIES || !error.is_transient() {
                return Err(error);
            }
            tracing::warn!(blob = %digest, offset, %error, "blob stream broke, resuming");
            tokio::time::sleep(self.pause(failures)).await;
        }
    }

    async fn fetch(
        &self,
        reference: &Reference,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Document, RegistryError> {
        let response = self.get(reference, path, headers).await?;
        let media_type = header(response.headers(), CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(Document { media_type, bytes: self.bounded(reference, response, MAX_DOCUMENT).await? })
    }

    async fn stream(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        offset: &mut u64,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let registry = || reference.registry().to_owned();
        let range = format!("bytes={offset}-");
        let headers: &[_] = if *offset > 0 { &[(RANGE.as_str(), range.as_str())] } else { &[] };
        let mut response = self.get(reference, &format!("blobs/{digest}"), headers).await?;

        let mut skip = 0;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let start = header(response.headers(), CONTENT_RANGE.as_str()).and_then(range_start);
            if start != Some(*offset) {
                return Err(RegistryError::Range { registry: registry() });
            }
        } else {
            skip = *offset;
        }

        while let Some(mut chunk) = response.chunk().await.map_err(|e| self.classify(reference, e))? {
            if skip > 0 {
                let count = skip.min(chunk.len() as u64);
                skip -= count;
                drop(chunk.split_to(count as usize));
            }
            *offset += chunk.len() as u64;
            if *offset > size {
                return Err(RegistryError::TooLong { registry: registry(), limit: size });
            }
            if !chunk.is_empty() && sink.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        match *offset == size {
            true => Ok(()),
            false => Err(RegistryError::Broken {
                registry: registry(),
                cause: format!("the stream ended after {offset} of {size} bytes"),
            }),
        }
    }

    /// One GET below the repository, with a new token if the registry asks for one.
    async fn get(
        &self,
        reference: &Reference,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response, RegistryError> {
        let host = reference.resolve_registry();
        let (client, scheme) =
            if self.insecure.contains(host) { (&self.plain, "http") } else { (&self.secure, "https") };
        let url = format!("{scheme}://{host}/v2/{}/{path}", reference.repository());
        let scope = (host.to_owned(), reference.repository().to_owned());

        let mut authorization = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(&scope).cloned();
        let mut asked = false;
        loop {
            let mut request = client.get(&url);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            request = match &authorization {
                Some(Authorization::Token(token)) => request.bearer_auth(token.as_str()),
                Some(Authorization::Login(login)) => request.basic_auth(&login.user, Some(login.password.as_str())),
                None => request,
            };
            let response = request.send().await.map_err(|e| self.classify(reference, e))?;
            if response.status() != StatusCode::UNAUTHORIZED || asked {
                return self.accept(reference, response).await;
            }
            asked = true;
            let fresh = self.authorize(client, reference, &response).await?;
            self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).insert(scope.clone(), fresh.clone());
            authorization = Some(fresh);
        }
    }

    /// Answers a 401: fetches a token, anonymously if there are no credentials, or falls back to the password.
    async fn authorize(
        &self,
        client: &Client,
        reference: &Reference,
        response: &Response,
    ) -> Result<Authorization, RegistryError> {
        let denied = |cause: String| RegistryError::Denied { registry: reference.registry().to_owned(), cause };
        let credentials = self.credentials.read().unwrap_or_else(PoisonError::into_inner).clone();
        let login = credentials.as_ref().and_then(|credentials| credentials.find(reference));
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        match Challenge::pick(challenges) {
            Some(Challenge::Bearer { realm, service }) => {
                let mut url =
                    Url::parse(&realm).map_err(|_| denied(format!("its token service {realm:?} is not a URL")))?;
                if is_inside(&url) && !is_inside(response.url()) {
                    return Err(denied(format!("its token service {realm:?} would be inside the guest")));
                }
                url.query_pairs_mut()
                    .extend_pairs(service.map(|service| ("service", service)))
                    .append_pair("scope", &format!("repository:{}:pull", reference.repository()));
                let mut request = client.get(url);
                if let Some(login) = login {
                    request = request.basic_auth(&login.user, Some(login.password.as_str()));
                }
                let response = request.send().await.map_err(|e| self.classify(reference, e))?;
                let response = self.accept(reference, response).await?;
                let bytes = self.bounded(reference, response, MAX_TOKEN).await?;
                let token: TokenResponse = serde_json::from_slice(&bytes)
                    .map_err(|_| denied("its token service answered no token".to_owned()))?;
                let token = token.token.or(token.access_token);
                token
                    .map(|token| Authorization::Token(Arc::new(token)))
                    .ok_or_else(|| denied("no token was given".to_owned()))
            }
            Some(Challenge::Basic) => login
                .cloned()
                .map(Authorization::Login)
                .ok_or_else(|| denied("it wants a password and none is configured for it".to_owned())),
            None => Err(denied("it asks for a kind of authentication that is not supported".to_owned())),
        }
    }

    async fn accept(&self, reference: &Reference, response: Response) -> Result<Response, RegistryError> {
        let registry = reference.registry().to_owned();
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let url = response.url().path().to_owned();
        let body = self.bounded(reference, response, MAX_TOKEN).await.unwrap_or_default();
        let cause = format!("{status}{}", explanation(&body));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied { registry, cause },
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, path: url },
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                RegistryError::Broken { registry, cause }
            }
            _ => RegistryError::Refused { registry, cause },
        })
    }

    async fn bounded(&self, reference: &Reference, mut response: Response, limit: u64) -> Result<Bytes, RegistryError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.classify(reference, e))? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLong { registry: reference.registry().to_owned(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    async fn patiently<T, F: Future<Output = Result<T, RegistryError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<T, RegistryError> {
        let mut failures = 0;
        loop {
            match attempt().await {
                Err(error) if error.is_transient() && failures + 1 < TRIES => {
                    failures += 1;
                    tracing::warn!(%error, failures, "registry request failed, trying again");
                    tokio::time::sleep(self.pause(failures)).await;
                }
                outcome => return outcome,
            }
        }
    }

    fn pause(&self, failures: u32) -> Duration {
        self.patience.backoff * 4_u32.pow(failures.saturating_sub(1).min(4))
    }

    fn classify(&self, reference: &Reference, error: reqwest::Error) -> RegistryError {
        let registry = reference.registry().to_owned();
        // A redirect's URL may carry a signature.
        let error = error.without_url();
        if error.is_timeout() && !error.is_connect() {
            RegistryError::Stalled { registry, seconds: self.patience.stall.as_secs_f32() }
        } else if error.is_connect() {
            RegistryError::Unreachable { registry, cause: causes(&error) }
        } else if error.is_redirect() || error.is_builder() {
            RegistryError::Refused { registry, cause: causes(&error) }
        } else {
            RegistryError::Broken { registry, cause: causes(&error) }
        }
    }
}

#[derive(Clone)]
enum Authorization {
    Token(Arc<Zeroizing<String>>),
    Login(Login),
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

/// Follows redirects, but not into the guest: there, a secret could be read as a manifest or a token.
fn redirect(attempt: Attempt<'_>) -> Action {
    let inside = is_inside(attempt.url()) && !attempt.previous().first().is_some_and(is_inside);
    match attempt.previous().len() {
        _ if inside => attempt.error("the redirect leads into the guest"),
        0..=MAX_REDIRECTS => attempt.follow(),
        _ => attempt.error("there are too many redirects"),
    }
}

/// Whether a URL's host is this machine, as far as its name tells.
fn is_inside(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>().map(|ip| ip.to_canonical());
    host == "localhost" || host.ends_with(".localhost") || ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The first byte's place in a `Content-Range` such as `bytes 100-199/200`.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The distribution specification asks registries to accept manifests of up to 4 MiB.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
const MAX_TOKEN: u64 = 256 << 10;
const MAX_REDIRECTS: usize = 5;
const TRIES: u32 = 3;
const PROGRESS: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_starts_where_it_says() {
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("bytes */200"), None);
        assert_eq!(range_start("100-199"), None);
    }

    #[test]
    fn what_is_inside_the_guest_is_known_by_its_name() {
        for (url, inside) in [
            ("http://127.0.0.1:8006/cdh/resource/default/key/1", true),
            ("http://127.1/", true),
            ("http://0.0.0.0/", true),
            ("http://LOCALHOST./", true),
            ("http://a.localhost/", true),
            ("http://[::1]/", true),
            ("http://[::ffff:127.0.0.1]/", true),
            ("https://registry.example/", false),
            ("https://10.0.2.2:5000/", false),
            ("https://[fd00::1]/", false),
        ] {
            assert_eq!(is_inside(&Url::parse(url).unwrap()), inside, "{url}");
        }
    }
}
