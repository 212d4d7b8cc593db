//! The registry client: manifests and blobs by the OCI distribution API, from the first source that has them.
//!
//! Its own because the guest has no certificate store (TLS must start from given roots), and because every answer
//! must be bounded, a stalled or broken stream must go on where it stopped, and a refusal must say why.

mod access;
mod blob;
mod client;
pub(crate) mod error;
mod pace;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_spec::distribution::Reference;
use oci_spec::image::Digest;
use reqwest::header::{ACCEPT, CONTENT_TYPE, DATE, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::auth::Credentials;
use crate::digest;
use crate::node_cache::NodeCache;
use crate::registries::{Candidates, RegistryConfig, Source};

use access::Authorization;
pub(crate) use blob::Delivery;
pub(crate) use client::{Clients, Patience};
pub use error::RegistryError;
use error::{Attempt, blames_certificate, causes, explanation};
use pace::Pace;

/// Speaks to registries for one pull: with the accounts, mirrors and tokens of that pull and of no other.
pub(crate) struct Session {
    clients: Arc<Clients>,
    registries: RegistryConfig,
    credentials: Credentials,
    authorizations: Mutex<HashMap<(String, String), Authorization>>,
    /// How an insecure registry is spoken to, once it has answered.
    schemes: Mutex<HashMap<String, &'static str>>,
}

/// A document with its claimed type.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

impl Session {
    pub(crate) fn new(clients: Arc<Clients>, registries: RegistryConfig, credentials: Credentials) -> Self {
        let (authorizations, schemes) = (Mutex::default(), Mutex::default());
        Self { clients, registries, credentials, authorizations, schemes }
    }

    /// Where an image may come from.
    pub(crate) fn candidates(&self, reference: &Reference) -> Candidates {
        self.registries.candidates(reference)
    }

    /// The node's cache, if the guest has one.
    pub(crate) fn node(&self) -> Option<&NodeCache> {
        self.clients.node.as_ref()
    }

    /// Asks each source in turn, and those that may do better next time again after a pause.
    ///
    /// # Errors
    /// What each of them said last, behind what the configuration refuses.
    pub(crate) async fn first<'a, T, F>(
        &self,
        candidates: &'a Candidates,
        ask: impl Fn(&'a Source) -> F,
    ) -> Result<(&'a Source, T), RegistryError>
    where
        F: Future<Output = Result<T, RegistryError>>,
    {
        let mut said: Vec<Option<RegistryError>> = vec![None; candidates.sources.len()];
        for round in 1..=TRIES {
            for (source, last) in candidates.sources.iter().zip(&mut said) {
                if last.as_ref().is_none_or(RegistryError::is_transient) {
                    match ask(source).await {
                        Ok(answer) => return Ok((source, answer)),
                        Err(error) => *last = Some(error),
                    }
                }
            }
            let hopeful = || said.iter().flatten().filter(|error| error.is_transient());
            if round == TRIES || hopeful().next().is_none() {
                break;
            }
            hopeful().for_each(|error| tracing::warn!(%error, round, "registry request failed, trying again"));
            let asked = hopeful().filter_map(RegistryError::retry_after).min();
            tokio::time::sleep(self.clients.patience.pause(round, asked)).await;
        }
        let told = candidates.sources.iter().zip(said);
        let told = told.filter_map(|(source, said)| Some(Attempt { source: source.reference.whole(), cause: said? }));
        Err(RegistryError::of(candidates.refused.iter().cloned().chain(told).collect()))
    }

    /// Fetches a manifest or index by tag or digest; one asked for by digest has that digest, and may be the node's.
    pub(crate) async fn manifest(&self, source: &Source, version: &str) -> Result<Document, RegistryError> {
        if let Ok(digest) = version.parse()
            && let Some(bytes) = self.of_node(&digest).await
            && let Some(media_type) = own_media_type(&bytes)
        {
            return Ok(Document { media_type, bytes });
        }
        let document = self.fetch(source, &format!("manifests/{version}"), &[(ACCEPT, MANIFEST_TYPES)]).await?;
        if !version.contains(':') {
            return Ok(document);
        }
        match version.parse() {
            Ok(digest) => self.check(source, &document.bytes, &digest).map(|()| document),
            Err(e) => Err(RegistryError::Name { cause: format!("{version:?}: {e}") }),
        }
    }

    /// Fetches a blob of at most [`MAX_DOCUMENT`] bytes into memory, with the digest that was asked for.
    pub(crate) async fn document(&self, source: &Source, digest: &Digest) -> Result<Bytes, RegistryError> {
        if let Some(bytes) = self.of_node(digest).await {
            return Ok(bytes);
        }
        let bytes = self.fetch(source, &format!("blobs/{digest}"), &[]).await?.bytes;
        self.check(source, &bytes, digest).map(|()| bytes)
    }

    /// Fetches any other document below the repository.
    pub(crate) async fn other(&self, source: &Source, path: &str, accept: &str) -> Result<Document, RegistryError> {
        self.fetch(source, path, &[(ACCEPT, accept)]).await
    }

    /// Fetches a document that lies on a web server and not in a registry; nothing if there is none.
    pub(crate) async fn web(&self, url: &str) -> Result<Option<Bytes>, RegistryError> {
        let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
        // What errors name is a reference's registry.
        let place = Reference::with_tag(host, String::new(), String::new());
        let client = if url.starts_with("http://") { &self.clients.unverified } else { &self.clients.verified };
        let response = client.get(url).send().await.map_err(|e| self.classify(&place, e))?;
        match self.accept(&place, response).await {
            Ok(response) => self.bounded(&place, response, MAX_DOCUMENT).await.map(Some),
            Err(RegistryError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn of_node(&self, digest: &Digest) -> Option<Bytes> {
        self.node()?.document(digest, MAX_DOCUMENT).await
    }

    fn check(&self, source: &Source, bytes: &[u8], digest: &Digest) -> Result<(), RegistryError> {
        let registry = source.reference.registry().to_owned();
        match digest::supported(digest) {
            true => digest::verify(bytes, digest).map_err(|cause| RegistryError::Digest { registry, cause }),
            false => Err(RegistryError::Digest { registry, cause: format!("{digest} is of an unknown algorithm") }),
        }
    }

    async fn fetch(
        &self,
        source: &Source,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Document, RegistryError> {
        let response = self.get(source, path, headers).await?;
        let media_type = header(response.headers(), &CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(Document { media_type, bytes: self.bounded(&source.reference, response, MAX_DOCUMENT).await? })
    }

    /// One GET below the repository. An insecure registry is tried with TLS and then without.
    async fn get(
        &self,
        source: &Source,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response, RegistryError> {
        if !source.insecure {
            return self.get_by("https", source, path, headers).await;
        }
        let host = source.reference.registry();
        let known = self.schemes.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied();
        if let Some(scheme) = known {
            return self.get_by(scheme, source, path, headers).await;
        }
        let (scheme, outcome) = match self.get_by("https", source, path, headers).await {
            Err(RegistryError::Unreachable { .. }) => ("http", self.get_by("http", source, path, headers).await),
            outcome => ("https", outcome),
        };
        if !matches!(outcome, Err(RegistryError::Unreachable { .. })) {
            self.schemes.lock().unwrap_or_else(PoisonError::into_inner).insert(host.to_owned(), scheme);
        }
        outcome
    }

    /// Gets a new token if the registry asks for one.
    async fn get_by(
        &self,
        scheme: &str,
        source: &Source,
        path: &str,
        headers: &[(HeaderName, &str)],
    ) -> Result<Response, RegistryError> {
        let reference = &source.reference;
        let client = if source.insecure { &self.clients.unverified } else { &self.clients.verified };
        let url = format!("{scheme}://{}/v2/{}/{path}", reference.resolve_registry(), reference.repository());

        let mut authorization = self.authorization(source);
        let mut asked = false;
        loop {
            let mut request = client.get(&url);
            for (name, value) in headers {
                request = request.header(name, *value);
            }
            if let Some(authorization) = &authorization {
                request = authorization.apply(request);
            }
            let response = request.send().await.map_err(|e| self.classify(reference, e))?;
            if response.status() != StatusCode::UNAUTHORIZED || asked {
                return self.accept(reference, response).await.map_err(|e| self.explained(source, e));
            }
            asked = true;
            let fresh = self.authorize(source, &response).await;
            authorization = Some(fresh.map_err(|e| self.explained(source, e))?);
        }
    }

    async fn accept(&self, reference: &Reference, response: Response) -> Result<Response, RegistryError> {
        let registry = reference.registry().to_owned();
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let path = response.url().path().to_owned();
        let retry_after = retry_after(response.headers());
        let body = self.bounded(reference, response, MAX_REFUSAL).await.unwrap_or_default();
        let cause = format!("{status}{}", explanation(&body));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied { registry, cause },
            StatusCode::NOT_FOUND => RegistryError::NotFound { registry, path },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                RegistryError::Busy { registry, cause, retry_after }
            }
            status if status.is_server_error() => RegistryError::Broken { registry, cause },
            _ => RegistryError::Refused { registry, cause },
        })
    }

    async fn bounded(&self, reference: &Reference, mut response: Response, limit: u64) -> Result<Bytes, RegistryError> {
        let (mut body, mut pace) = (BytesMut::new(), Pace::default());
        while let Some(chunk) = self.chunk(reference, &mut response, &mut pace).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLong { registry: reference.registry().to_owned(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn classify(&self, reference: &Reference, error: reqwest::Error) -> RegistryError {
        let registry = reference.registry().to_owned();
        // A redirect's URL may carry a signature.
        let error = error.without_url();
        if error.is_timeout() && !error.is_connect() {
            RegistryError::Stalled { registry, seconds: self.clients.patience.stall.as_secs_f32() }
        } else if blames_certificate(&error) {
            RegistryError::Untrusted { registry, cause: causes(&error) }
        } else if error.is_connect() {
            RegistryError::Unreachable { registry, cause: causes(&error) }
        } else if error.is_redirect() || error.is_builder() {
            RegistryError::Refused { registry, cause: causes(&error) }
        } else {
            RegistryError::Broken { registry, cause: causes(&error) }
        }
    }
}

/// Neither accounts nor tokens.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("registries", &self.registries).finish_non_exhaustive()
    }
}

/// The type of a manifest by itself, since the node's cache gives none. OCI's own may leave it out: then what it lists tells.
fn own_media_type(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        media_type: Option<String>,
        config: Option<IgnoredAny>,
        manifests: Option<IgnoredAny>,
    }
    let head: Head = serde_json::from_slice(bytes).ok()?;
    let told = match (head.config, head.manifests) {
        (Some(_), None) => Some("application/vnd.oci.image.manifest.v1+json".to_owned()),
        (None, Some(_)) => Some("application/vnd.oci.image.index.v1+json".to_owned()),
        // One document that is both would be one image here and another one elsewhere.
        _ => None,
    };
    head.media_type.or(told)
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// How long a registry wants to be left alone: seconds, or a date, which is compared with the answer's own.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = header(headers, &RETRY_AFTER)?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    until.duration_since(httpdate::parse_http_date(header(headers, &DATE)?).ok()?).ok()
}

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// The distribution specification asks registries to accept manifests of up to 4 MiB.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
const MAX_REFUSAL: u64 = 256 << 10;
/// With the default pauses of 0.2, 0.8, 3.2 and 12.8 seconds between them.
const TRIES: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_to_wait_for_is_counted_from_the_answers_own() {
        let headers = |pairs: &[(HeaderName, &str)]| {
            pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect::<HeaderMap>()
        };
        let date = (DATE, "Sat, 28 Nov 2026 10:00:00 GMT");
        for (pairs, expected) in [
            (&[(RETRY_AFTER, "7")][..], Some(7)),
            (&[date.clone(), (RETRY_AFTER, "Sat, 28 Nov 2026 10:01:30 GMT")], Some(90)),
            (&[date.clone(), (RETRY_AFTER, "Sat, 28 Nov 2026 09:00:00 GMT")], None),
            (&[(RETRY_AFTER, "Sat, 28 Nov 2026 10:01:30 GMT")], None),
            (&[date, (RETRY_AFTER, "-1")], None),
            (&[], None),
        ] {
            assert_eq!(retry_after(&headers(pairs)), expected.map(Duration::from_secs));
        }
    }

    #[test]
    fn a_manifest_from_the_node_says_or_shows_what_it_is() {
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        for (text, expected) in [
            (r#"{"mediaType": "a/b", "manifests": []}"#, Some("a/b")),
            (r#"{"schemaVersion": 2, "config": {}, "layers": []}"#, Some(manifest)),
            (r#"{"schemaVersion": 2, "manifests": []}"#, Some("application/vnd.oci.image.index.v1+json")),
            (r#"{"config": {}, "manifests": []}"#, None),
            ("{}", None),
            ("no JSON", None),
        ] {
            assert_eq!(own_media_type(text.as_bytes()).as_deref(), expected, "{text}");
        }
    }
}
