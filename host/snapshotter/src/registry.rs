//! Downloads from registries, with what the node itself may have.

use std::error::Error as StdError;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt as _};
use http_auth::ChallengeRef;
use oci_spec::distribution::Reference;
use reqwest::header::{ACCEPT, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::credentials::{Account, Credentials};
use crate::hosts::{self, Host};

/// One image's registry and its mirrors.
pub(crate) struct Registry {
    name: String,
    repository: String,
    sources: Vec<Source>,
}

/// One host that may have the image.
struct Source {
    host: Host,
    client: Client,
    account: Option<Account>,
    /// What the host accepted last.
    token: Mutex<Option<Zeroizing<String>>>,
}

impl Registry {
    /// Reads what the node is configured with. No request is made yet.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn of(image: &Reference, registries: &Path, credentials: &Path) -> Result<Self, String> {
        // The client asks for the process's provider; if another part installed one already, that one is used.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let credentials = Credentials::read(credentials)
            .map_err(|cause| format!("credentials {}: {cause}", credentials.display()))?;
        let (name, repository) = (image.registry().to_owned(), image.repository().to_owned());
        let hosts = hosts::of_registry(registries, &name).map_err(|cause| format!("registries: {cause}"))?;
        let source = |host: Host| {
            let client = client(&host)?;
            let account = credentials.find(&host.name, &repository);
            Ok(Source { host, client, account, token: Mutex::default() })
        };
        let sources = hosts.into_iter().map(source).collect::<Result<_, String>>()?;
        Ok(Self { name, repository, sources })
    }

    /// Fetches a manifest or an index of at most `limit` bytes. Whoever asked checks its digest.
    ///
    /// # Errors
    /// What each host said.
    pub(crate) async fn manifest(&self, digest: &str, limit: usize) -> Result<Bytes, String> {
        let mut response = self.get(&format!("manifests/{digest}"), Some(MANIFEST_TYPES)).await?;
        let mut document = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| causes(&e))? {
            if document.len() + chunk.len() > limit {
                return Err(format!("manifest {digest} is longer than {limit} bytes"));
            }
            document.extend_from_slice(&chunk);
        }
        Ok(document.freeze())
    }

    /// Fetches a blob as a stream.
    ///
    /// # Errors
    /// What each host said.
    pub(crate) async fn blob(&self, digest: &str) -> Result<impl Stream<Item = Result<Bytes, String>>, String> {
        let response = self.get(&format!("blobs/{digest}"), None).await?;
        Ok(response.bytes_stream().map_err(|e| causes(&e)))
    }

    /// The first answer with what was asked for.
    async fn get(&self, path: &str, accept: Option<&str>) -> Result<Response, String> {
        let mut said = Vec::new();
        for source in &self.sources {
            match source.get(self, path, accept).await {
                Ok(response) => return Ok(response),
                Err(cause) => said.push(format!("registry {}: {path}: {cause}", source.host.name)),
            }
        }
        Err(said.join("; "))
    }
}

impl Source {
    async fn get(&self, image: &Registry, path: &str, accept: Option<&str>) -> Result<Response, String> {
        let mut url = Url::parse(&format!("{}/{}/{path}", self.host.base, image.repository)).map_err(|e| causes(&e))?;
        if !self.host.is(&image.name) {
            // A mirror of several registries has to know which one is meant.
            url.query_pairs_mut().append_pair("ns", &image.name);
        }
        let request = |authorization: Option<Authorization>| {
            let request = self.client.get(url.clone());
            let request = accept.iter().fold(request, |request, types| request.header(ACCEPT, *types));
            match authorization {
                Some(authorization) => authorization.apply(request),
                None => request,
            }
        };
        let known = self.token().clone().map(Authorization::Token);
        let mut response = request(known).send().await.map_err(|e| causes(&e))?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let fresh = self.authorize(&response, &image.repository).await?;
            response = request(Some(fresh)).send().await.map_err(|e| causes(&e))?;
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(format!("it answers {status}")),
        }
    }

    /// Answers a 401 with the node's account if there is one, else as anybody.
    async fn authorize(&self, response: &Response, repository: &str) -> Result<Authorization, String> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<ChallengeRef<'_>> =
            headers.flat_map(|header| http_auth::parse_challenges(header).unwrap_or_default()).collect();
        let of = |scheme: &str| challenges.iter().find(|it| it.scheme.eq_ignore_ascii_case(scheme));
        if let Some(challenge) = of("bearer") {
            let token = self.ask_for_token(challenge, repository).await?;
            *self.token() = Some(token.clone());
            return Ok(Authorization::Token(token));
        }
        match (of("basic"), &self.account) {
            (Some(_), Some(account)) => Ok(Authorization::Account(account.clone())),
            _ => Err("it wants an account, and the node has none for it".to_owned()),
        }
    }

    async fn ask_for_token(&self, challenge: &ChallengeRef<'_>, repository: &str) -> Result<Zeroizing<String>, String> {
        let parameter = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let realm = parameter("realm").ok_or("it names no token service")?;
        let mut url = Url::parse(&realm).map_err(|_| format!("its token service {realm:?} is not a URL"))?;
        url.query_pairs_mut()
            .extend_pairs(parameter("service").map(|service| ("service", service)))
            .append_pair("scope", &format!("repository:{repository}:pull"));
        let secure = url.scheme() == "https" || self.host.base.starts_with("http://");
        let request = self.client.get(url);
        let request = match &self.account {
            Some(_) if !secure => return Err(format!("its token service {realm:?} has no TLS")),
            Some(account) => Authorization::Account(account.clone()).apply(request),
            None => request,
        };
        let mut response = request.send().await.map_err(|e| format!("its token service: {}", causes(&e)))?;
        if !response.status().is_success() {
            return Err(format!("its token service answers {}", response.status()));
        }
        let mut body = Zeroizing::new(Vec::new());
        while let Some(chunk) = response.chunk().await.map_err(|e| format!("its token service: {}", causes(&e)))? {
            if body.len() + chunk.len() > MAX_TOKEN {
                return Err(format!("its token service sends more than {MAX_TOKEN} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        // The parser's own message could quote a token.
        let answer: Token = serde_json::from_slice(&body).map_err(|_| "its token service sends no token")?;
        answer.token.or(answer.access_token).ok_or_else(|| "its token service sends no token".to_owned())
    }

    fn token(&self) -> std::sync::MutexGuard<'_, Option<Zeroizing<String>>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Authorization {
    Token(Zeroizing<String>),
    Account(Account),
}

impl Authorization {
    fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Token(token) => request.bearer_auth(token.as_str()),
            Self::Account(account) => request.basic_auth(&account.user, Some(account.password.as_str())),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

fn client(host: &Host) -> Result<Client, String> {
    let unusable = |e: reqwest::Error| format!("registry {}: its HTTP client can't be made: {}", host.name, causes(&e));
    let bundles = host.authorities.iter().map(|pem| Certificate::from_pem_bundle(pem)).collect::<Result<Vec<_>, _>>();
    Client::builder()
        .user_agent(concat!("cocoon-snapshotter/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(STALL)
        // Names are looked up in /etc/hosts and by /etc/resolv.conf. The C library's way would load modules of the node's,
        // which a program that is linked statically can't.
        .tls_certs_merge(bundles.map_err(unusable)?.into_iter().flatten())
        .tls_danger_accept_invalid_certs(host.skip_verify)
        .build()
        .map_err(unusable)
}

/// An error with its causes; a redirect's URL may carry a signature and is left out.
fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = match error.downcast_ref::<reqwest::Error>() {
            Some(error) if error.is_timeout() => "nothing came in time".to_owned(),
            Some(error) if error.is_connect() => "no connection".to_owned(),
            Some(_) => "the request failed".to_owned(),
            None => error.to_string(),
        };
        texts.push(text);
        next = error.source();
    }
    texts.dedup();
    texts.join(": ")
}

const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";
const MAX_TOKEN: usize = 256 << 10;
const CONNECT: Duration = Duration::from_secs(10);
/// The longest silence on an open connection.
const STALL: Duration = Duration::from_secs(30);
