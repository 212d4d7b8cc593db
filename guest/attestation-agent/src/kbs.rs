//! The key broker over HTTP: one call, one bounded answer, one typed error.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderValue, SET_COOKIE};
use reqwest::{Client, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::jwe::Jwe;
use wire::rcar::ErrorInformation;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::config::ConfigError;
use crate::error::{Error, Stage};
use crate::tls;

/// A key broker: its URL and a pool of connections to it. Clones share the pool.
#[derive(Clone)]
pub struct Kbs {
    url: String,
    client: Client,
}

impl Kbs {
    /// A broker at `url` whose certificate is signed by one of the CAs in `cert` (PEM), or by a public one without.
    ///
    /// # Errors
    /// [`ConfigError`] if URL or certificates can't be used. Nothing is connected yet.
    pub fn new(url: &str, cert: Option<&str>) -> Result<Self, ConfigError> {
        let url = base_url(url)?;
        let tls = tls::client(cert).map_err(|cause| ConfigError::Certificate { url: url.clone(), cause })?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .user_agent(USER_AGENT)
            // The environment comes from the kernel's command line, which the host writes.
            .no_proxy()
            // A redirect would carry evidence or token to a place that the configuration doesn't name.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(CALL_TIMEOUT)
            .build()
            .map_err(|e| ConfigError::Client(chain(&e)))?;
        Ok(Self { url, client })
    }

    /// The base URL, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `POST`s JSON to `path` below the base URL and reads a JSON answer, with the cookies for the session's next call.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        stage: Stage,
        path: &str,
        cookies: Option<&HeaderValue>,
        body: &impl Serialize,
    ) -> Result<(T, Option<HeaderValue>), Error> {
        let answer = self.post_raw(stage, path, cookies, body).await?;
        let parsed = serde_json::from_slice(&answer.body).map_err(|e| Error::Answer {
            stage,
            call: format!("POST {}/{path}", self.url),
            // Where it is wrong; the parser's own words could repeat a token.
            cause: format!("it is not the JSON expected (line {}, column {})", e.line(), e.column()),
        })?;
        Ok((parsed, answer.cookies))
    }

    /// `POST`s JSON to `path` below the base URL.
    pub(crate) async fn post_raw(
        &self,
        stage: Stage,
        path: &str,
        cookies: Option<&HeaderValue>,
        body: &impl Serialize,
    ) -> Result<Answer, Error> {
        let url = format!("{}/{path}", self.url);
        let call = format!("POST {url}");
        let body = match serde_json::to_vec(body) {
            Ok(body) => body,
            Err(e) => return Err(Error::Answer { stage, call, cause: format!("the request has no JSON form: {e}") }),
        };
        let mut request = self.client.post(&url).header(CONTENT_TYPE, "application/json").body(body);
        if let Some(cookies) = cookies {
            request = request.header(COOKIE, cookies);
        }
        send(stage, &call, request).await
    }

    /// `GET`s a resource, sealed to the key that the token `jwt` names.
    pub(crate) async fn resource(&self, uri: &ResourceUri, jwt: &str) -> Result<Jwe, Error> {
        let stage = Stage::Resource;
        let url = format!("{}/kbs/v0/{}", self.url, uri.url_path());
        let call = format!("GET {url}");
        let mut bearer = HeaderValue::try_from(format!("Bearer {jwt}"))
            .map_err(|_| Error::Key("the token can't stand in a header".to_owned()))?;
        bearer.set_sensitive(true);
        let request = self.client.get(&url).header(AUTHORIZATION, bearer);
        let answer = send(stage, &call, request).await.map_err(|error| match error {
            Error::Refused { call, status: 404, kind, detail, .. } => Error::NotFound { call, kind, detail },
            error => error,
        })?;
        // The parser's own words could repeat what a broker sent in clear by mistake.
        serde_json::from_slice(&answer.body).map_err(|_| Error::Answer {
            stage,
            call,
            cause: "it is not a sealed resource (JWE)".to_owned(),
        })
    }
}

impl fmt::Debug for Kbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kbs").field(&self.url).finish()
    }
}

/// The answer to a call that succeeded.
pub(crate) struct Answer {
    pub(crate) body: Zeroizing<Vec<u8>>,
    cookies: Option<HeaderValue>,
}

async fn send(stage: Stage, call: &str, request: RequestBuilder) -> Result<Answer, Error> {
    let mut response = request.send().await.map_err(|e| broken(stage, call, e))?;
    let status = response.status();
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(|e| broken(stage, call, e))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Error::Answer {
                stage,
                call: call.to_owned(),
                cause: format!("it is longer than {MAX_ANSWER} bytes"),
            });
        }
        body.extend_from_slice(&chunk);
    }
    if status.is_success() {
        return Ok(Answer { body, cookies: session_cookies(&response) });
    }
    let (kind, detail) = match serde_json::from_slice::<ErrorInformation>(&body) {
        Ok(error) => (excerpt(error.variant()), excerpt(&error.detail)),
        Err(_) => {
            (status.canonical_reason().unwrap_or("(no reason)").to_owned(), excerpt(&String::from_utf8_lossy(&body)))
        }
    };
    Err(Error::Refused { stage, call: call.to_owned(), status: status.as_u16(), kind, detail })
}

fn broken(stage: Stage, call: &str, error: reqwest::Error) -> Error {
    let is_tls = is_tls(&error);
    let (call, cause) = (call.to_owned(), chain(&error.without_url()));
    if is_tls { Error::Tls { stage, call, cause } } else { Error::Unreachable { stage, call, cause } }
}

fn is_tls(error: &reqwest::Error) -> bool {
    let mut next = error.source();
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        // TLS errors travel inside I/O errors, which don't show what they wrap among their sources.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = wrapped.map(|error| error as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    false
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

/// All cookies of an answer, since a load balancer in front of the broker may have added its own.
fn session_cookies(response: &Response) -> Option<HeaderValue> {
    let pairs: Vec<&str> = response
        .headers()
        .get_all(SET_COOKIE)
        .iter()
        .filter_map(|cookie| cookie.to_str().ok()?.split(';').next())
        .collect();
    if pairs.is_empty() { None } else { HeaderValue::try_from(pairs.join("; ")).ok() }
}

fn base_url(text: &str) -> Result<String, ConfigError> {
    let refused = |cause: &str| ConfigError::Url { url: text.to_owned(), cause: cause.to_owned() };
    let url = Url::parse(text.trim()).map_err(|e| refused(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(refused("neither http nor https"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("has more than scheme, host, port and path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// What a server said, fit for a log: cut, and without control characters.
fn excerpt(text: &str) -> String {
    let mut excerpt = String::new();
    for c in text.trim().chars().take(MAX_DETAIL) {
        if c.is_control() { excerpt.extend(c.escape_default()) } else { excerpt.push(c) }
    }
    excerpt
}

const USER_AGENT: &str = concat!("attestation-agent-kbs-client/", env!("CARGO_PKG_VERSION"));
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// A broker takes resources of up to 2 MiB by default, which become 2.7 MiB of base64.
const MAX_ANSWER: usize = 16 << 20;
const MAX_DETAIL: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_checked_when_it_is_configured() {
        for (text, expected) in [
            ("https://kbs:8080/", "https://kbs:8080"),
            ("http://10.0.0.1/trustee/", "http://10.0.0.1/trustee"),
            (" http://[::1]:1 ", "http://[::1]:1"),
        ] {
            assert_eq!(Kbs::new(text, None).unwrap().url(), expected);
        }
        for bad in ["", "kbs:8080", "ftp://kbs", "unix:///x", "https://u:p@kbs", "https://kbs?x", "https://kbs#x"] {
            assert!(Kbs::new(bad, None).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_servers_words_are_cut_and_cleaned() {
        assert_eq!(excerpt("a\u{1b}[31m\nb "), "a\\u{1b}[31m\\nb");
        assert_eq!(excerpt(&"ü".repeat(5000)).chars().count(), MAX_DETAIL);
    }
}
