//! HTTP towards the services: bounded answers, no redirects, no proxy that the environment names.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use crate::error::{Error, excerpt};

/// A pool of connections. Clones share it.
#[derive(Clone)]
pub(crate) struct Http(Client);

impl Http {
    /// Trusts the certificate authorities in `pem` and no other, or the public ones without.
    pub(crate) fn new(pem: Option<&[u8]>) -> Result<Self, Error> {
        let client = Client::builder()
            .tls_backend_preconfigured(tls(pem).map_err(Error::Client)?)
            .user_agent(USER_AGENT)
            .no_proxy()
            // A redirect would carry a signed request to somebody else.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build();
        client.map(Self).map_err(|e| Error::Client(e.to_string()))
    }

    pub(crate) fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.0.request(method, url)
    }

    /// Sends a request, once more if there is no connection or no answer: all requests here only read.
    pub(crate) async fn send(&self, service: &str, request: RequestBuilder) -> Result<Answer, Error> {
        let again = request.try_clone();
        match (answer(service, request).await, again) {
            (Err(Error::Unreachable { .. }), Some(again)) => answer(service, again).await,
            (outcome, _) => outcome,
        }
    }
}

/// What a service said.
pub(crate) struct Answer {
    service: String,
    pub(crate) status: StatusCode,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The JSON in it.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|_| self.unusable("it is not the JSON expected"))
    }

    pub(crate) fn unusable(&self, cause: &'static str) -> Error {
        Error::Answer { service: self.service.clone(), cause }
    }

    /// Refused for the reason that the service calls `code`.
    pub(crate) fn refused(&self, code: &str) -> Error {
        Error::Refused { service: self.service.clone(), status: self.status.as_u16(), code: excerpt(code) }
    }
}

async fn answer(service: &str, request: RequestBuilder) -> Result<Answer, Error> {
    let broken = |error: reqwest::Error| Error::Unreachable { service: service.to_owned(), cause: chain(error) };
    let mut response = request.send().await.map_err(broken)?;
    let status = response.status();
    let mut body = Zeroizing::new(Vec::with_capacity(FIRST_ROOM));
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Error::Answer { service: service.to_owned(), cause: "it is too long" });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { service: service.to_owned(), status, body })
}

/// The whole chain of causes, without the URL, which holds a signature.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

fn tls(pem: Option<&[u8]>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                roots.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
            }
            if roots.is_empty() {
                return Err("there is no certificate in the PEM".to_owned());
            }
        }
        None => {
            roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

const USER_AGENT: &str = concat!("cocoon-kms/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Services keep secrets of at most 64 KiB, in base64 and JSON.
const MAX_ANSWER: usize = 1 << 20;
const FIRST_ROOM: usize = 128 << 10;
