//! Fetches keys over HTTPS, within bounds of size and time.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CACHE_CONTROL, HeaderMap};
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::OnceCell;

use crate::error::Error;

/// Fetches keys from issuers that prove who they are to one of the system's CAs, or to one that was named besides.
///
/// A fetch takes at most 10 seconds and 1 MiB, and follows at most three redirections, to HTTPS only. Clones share
/// their connections. The system's CAs are read at the first fetch: where all keys are files, there is none.
#[derive(Clone)]
pub struct Http(Arc<Lazy>);

struct Lazy {
    client: OnceCell<Client>,
    extra: Vec<CertificateDer<'static>>,
    timeout: Duration,
}

/// What was fetched.
pub(crate) struct Fetched {
    pub body: Vec<u8>,
    /// How long the answer may be used, if its sender says so.
    pub max_age: Option<Duration>,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("TLS can't be set up: {0}")]
    Client(String),
    #[error("no answer: {0}")]
    NoAnswer(String),
    #[error("it answers with status {0}")]
    Status(u16),
    #[error("it answers with more than 1 MiB")]
    TooLarge,
}

impl Http {
    /// A client that trusts the system's CAs and those in a PEM.
    ///
    /// # Errors
    /// [`Error::Client`] if the PEM has no CA certificate, or TLS can't be set up.
    pub fn new(extra_ca: Option<&[u8]>) -> Result<Self, Error> {
        Self::with_timeout(extra_ca, TIMEOUT)
    }

    pub(crate) fn with_timeout(extra_ca: Option<&[u8]>, timeout: Duration) -> Result<Self, Error> {
        let client = |e: &dyn std::error::Error| Error::Client(e.to_string());
        let mut extra = Vec::new();
        for certificate in extra_ca.into_iter().flat_map(CertificateDer::pem_slice_iter) {
            let certificate = certificate.map_err(|e| client(&e))?;
            RootCertStore::empty().add(certificate.clone()).map_err(|e| client(&e))?;
            extra.push(certificate);
        }
        if extra_ca.is_some() && extra.is_empty() {
            return Err(Error::Client("the PEM has no certificate".to_owned()));
        }
        Ok(Self(Arc::new(Lazy { client: OnceCell::new(), extra, timeout })))
    }

    /// Fetches what is at an address, in one of the media types.
    pub(crate) async fn get(&self, url: Url, media_types: &'static str) -> Result<Fetched, FetchError> {
        let request = self.0.client().await?.get(url).header(ACCEPT, media_types);
        let mut response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        if !status.is_success() {
            return Err(FetchError::Status(status.as_u16()));
        }
        let max_age = max_age(response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Fetched { body, max_age })
    }
}

impl Lazy {
    async fn client(&self) -> Result<&Client, FetchError> {
        let (extra, timeout) = (self.extra.clone(), self.timeout);
        let making = async || {
            let made = tokio::task::spawn_blocking(move || client(extra, timeout)).await;
            made.map_err(|_| FetchError::Client("the process ends".to_owned()))?.map_err(FetchError::Client)
        };
        self.client.get_or_try_init(making).await
    }
}

/// Reads the system's store, which takes some 50 ms.
fn client(extra: Vec<CertificateDer<'static>>, timeout: Duration) -> Result<Client, String> {
    let mut roots = RootCertStore::empty();
    // What is wrong with the system's store shows where nothing is left of it: as an issuer that is not known.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots.add_parsable_certificates(extra);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .redirect(Policy::limited(3))
        .timeout(timeout)
        .user_agent(concat!("cocoon-trustee/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| e.to_string())
}

/// An error with its causes, and without the address, which is told anyway.
fn no_answer(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    FetchError::NoAnswer(text)
}

/// The `max-age` of Cache-Control, or none at all where it says so.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let directives = headers.get_all(CACHE_CONTROL).into_iter().filter_map(|value| value.to_str().ok());
    let mut age = None;
    for directive in directives.flat_map(|value| value.split(',')).map(str::trim) {
        if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") {
            return Some(Duration::ZERO);
        }
        if let Some((name, seconds)) = directive.split_once('=')
            && name.trim().eq_ignore_ascii_case("max-age")
        {
            age = seconds.trim().trim_matches('"').parse().ok().map(Duration::from_secs).or(age);
        }
    }
    age
}

const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_control_is_read() {
        for (value, expected) in [
            ("max-age=600", Some(600)),
            ("public, Max-Age = \"60\", must-revalidate", Some(60)),
            ("max-age=600, no-store", Some(0)),
            ("no-cache", Some(0)),
            ("s-maxage=5", None),
            ("max-age=x", None),
            ("max-age=-1", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, value.parse().unwrap())]);
            assert_eq!(max_age(&headers), expected.map(Duration::from_secs), "{value}");
        }
        assert_eq!(max_age(&HeaderMap::new()), None);
    }

    #[test]
    fn a_ca_that_is_none_is_refused() {
        for bad in [&b""[..], b"no PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(Http::new(Some(bad)), Err(Error::Client(_))));
        }
    }
}
