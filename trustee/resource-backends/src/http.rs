//! The way to a service: every call has a deadline, a bounded answer and bounded repetition.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Body, Certificate, Client, Method, Request, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::error::Error;

/// A pool of connections to one service.
pub(crate) struct Http {
    service: String,
    client: Client,
    limits: Limits,
    is_busy: fn(&Answer) -> bool,
}

/// How a service is reached and trusted.
pub(crate) struct Trust {
    /// Certificates in PEM to trust besides the system's, and the key of the configuration that holds them.
    pub(crate) extra: Vec<Vec<u8>>,
    pub(crate) key: &'static str,
    /// False trusts any certificate.
    pub(crate) verify: bool,
    /// False ignores the proxies that the environment names, for addresses that only this machine has.
    pub(crate) proxy: bool,
}

/// How long a call may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// One attempt, with its answer.
    pub(crate) attempt: Duration,
    /// All attempts and the pauses between them.
    pub(crate) total: Duration,
    /// The first pause; each further one is twice as long.
    pub(crate) first_pause: Duration,
}

/// Which failures a request may be repeated after.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Repeat {
    /// All that may pass: doing it twice is the same as once.
    Always,
    /// Those that say that the service did not take the request.
    Untaken,
    /// As `Always`, and 409 too: something that was begun before has not come to its end.
    AlsoBusy,
}

/// An answer, whatever its status.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Zeroizing<Vec<u8>>,
    retry_after: Option<Duration>,
}

impl Http {
    /// # Errors
    /// [`Error::Config`] for certificates that can't be used.
    pub(crate) fn new(service: String, trust: Trust, limits: Limits) -> Result<Self, Error> {
        // The client asks for the process's provider; if another part installed one already, that one is used.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let unusable = |cause: String| Error::Config { key: trust.key, cause };
        let mut extra = Vec::new();
        for pem in &trust.extra {
            let certificates = Certificate::from_pem_bundle(pem).map_err(|e| unusable(chain(&e)))?;
            if certificates.is_empty() {
                return Err(unusable("no certificate in it".to_owned()));
            }
            extra.extend(certificates);
        }
        let mut builder = Client::builder()
            .user_agent(concat!("trustee/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry a token to a place that the configuration doesn't name.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .tls_certs_merge(extra)
            .tls_danger_accept_invalid_certs(!trust.verify);
        if !trust.proxy {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| unusable(chain(&e)))?;
        Ok(Self { service, client, limits, is_busy: |_| false })
    }

    /// For a service that says in other words than 429 that it did not take a request for now.
    pub(crate) fn busy_when(self, is_busy: fn(&Answer) -> bool) -> Self {
        Self { is_busy, ..self }
    }

    /// Which service this leads to, for errors.
    pub(crate) fn service(&self) -> &str {
        &self.service
    }

    pub(crate) fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request until it is answered or time is up. An answer of any status is an answer.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or [`Error::Malformed`] for an answer that is too long.
    pub(crate) async fn send(&self, request: RequestBuilder, repeat: Repeat) -> Result<Answer, Error> {
        let request = request.build().map_err(|e| self.unavailable(format!("no request: {}", chain(&e))))?;
        let copied = || request.try_clone().ok_or_else(|| self.unavailable("its body can't be sent twice".to_owned()));
        self.send_each(copied, repeat).await
    }

    /// As [`Http::send`] with a request of its own for every attempt, where two must not be alike.
    pub(crate) async fn send_each(
        &self,
        make: impl Fn() -> Result<Request, Error> + Send + Sync,
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        let deadline = Instant::now() + self.limits.total;
        let mut pause = self.limits.first_pause;
        for _ in 1..MAX_ATTEMPTS {
            let outcome = self.attempt(make()?, deadline).await;
            let asked = match &outcome {
                Ok(answer) if repeat.after_status(answer.status) || (self.is_busy)(answer) => {
                    answer.retry_after.unwrap_or_default()
                }
                Err(Failure::Untaken(_)) => Duration::ZERO,
                Err(Failure::Lost(_)) if repeat != Repeat::Untaken => Duration::ZERO,
                _ => return self.settle(outcome),
            };
            let wait = asked.max(jittered(pause));
            if Instant::now() + wait >= deadline {
                return self.settle(outcome);
            }
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
        let outcome = self.attempt(make()?, deadline).await;
        self.settle(outcome)
    }

    /// A parsed JSON answer. Where it is wrong is told, but not in the parser's words, which repeat what they read.
    pub(crate) fn parse<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, Error> {
        serde_json::from_slice(&answer.body)
            .map_err(|e| self.malformed(format!("not the JSON expected (line {}, column {})", e.line(), e.column())))
    }

    /// Checks that a value fits before it is sent anywhere.
    pub(crate) fn fits(&self, value: &[u8], max: usize) -> Result<(), Error> {
        if value.len() > max {
            return Err(Error::TooLarge { service: self.service.clone(), size: value.len(), max });
        }
        Ok(())
    }

    /// What a condition becomes that the service can't check.
    pub(crate) fn unsupported(&self, operation: &'static str) -> Error {
        Error::ConditionUnsupported { service: self.service.clone(), operation }
    }

    pub(crate) fn malformed(&self, cause: impl Into<String>) -> Error {
        Error::Malformed { service: self.service.clone(), cause: cause.into() }
    }

    async fn attempt(&self, request: Request, deadline: Instant) -> Result<Answer, Failure> {
        let limit = self.limits.attempt.min(deadline.saturating_duration_since(Instant::now()));
        let exchange = async {
            let response = self.client.execute(request).await.map_err(Failure::from_client)?;
            Answer::read(response).await
        };
        let late = |_| Failure::Lost(format!("no answer within {:.1} seconds", limit.as_secs_f32()));
        tokio::time::timeout(limit, exchange).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
    }

    fn settle(&self, outcome: Result<Answer, Failure>) -> Result<Answer, Error> {
        outcome.map_err(|failure| match failure {
            Failure::Untaken(cause) | Failure::Lost(cause) => self.unavailable(cause),
            Failure::TooLong => self.malformed(format!("longer than {MAX_ANSWER} bytes")),
        })
    }

    fn unavailable(&self, cause: String) -> Error {
        Error::Unavailable { service: self.service.clone(), cause }
    }
}

impl Answer {
    /// Whether the answer is a 400 that has this word in it.
    pub(crate) fn is_bad_request_with(&self, word: &str) -> bool {
        let found = || self.body.windows(word.len()).any(|window| window == word.as_bytes());
        self.status == StatusCode::BAD_REQUEST && found()
    }

    async fn read(mut response: Response) -> Result<Self, Failure> {
        let retry_after = retry_after(response.headers());
        let status = response.status();
        let expected = response.content_length().unwrap_or_default().min(MAX_ANSWER as u64) as usize;
        let mut body = Zeroizing::new(Vec::with_capacity(expected));
        while let Some(chunk) = response.chunk().await.map_err(Failure::from_client)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Failure::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Self { status, body, retry_after })
    }
}

impl Repeat {
    fn after_status(self, status: StatusCode) -> bool {
        match status.as_u16() {
            429 | 503 => true,
            500 | 502 | 504 => self != Self::Untaken,
            409 => self == Self::AlsoBusy,
            _ => false,
        }
    }
}

impl Trust {
    /// For an address that only this machine has.
    pub(crate) fn local() -> Self {
        Self { proxy: false, ..Self::default() }
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self { extra: Vec::new(), key: "ca_certs", verify: true, proxy: true }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(10),
            total: Duration::from_secs(30),
            first_pause: Duration::from_millis(200),
        }
    }
}

/// A JSON body in memory that is wiped; `room` is about how long it gets, so that it isn't moved while it grows.
pub(crate) fn json(value: &impl Serialize, room: usize) -> Result<Zeroizing<Vec<u8>>, Error> {
    let mut body = Zeroizing::new(Vec::with_capacity(room + 512));
    match serde_json::to_writer(&mut *body, value) {
        Ok(()) => Ok(body),
        Err(e) => Err(Error::Config { key: "the request", cause: format!("it has no JSON form: {e}") }),
    }
}

/// The pairs as a form or a query, in memory that is wiped.
pub(crate) fn form(pairs: &[(&str, &str)]) -> Zeroizing<Vec<u8>> {
    // Percent-encoding makes three characters of one at most.
    let room = pairs.iter().map(|(name, value)| 3 * (name.len() + value.len()) + 2).sum();
    let mut form = form_urlencoded::Serializer::new(String::with_capacity(room));
    form.extend_pairs(pairs);
    Zeroizing::new(form.finish().into_bytes())
}

/// A URL with the pairs as its query.
pub(crate) fn with_query(url: &str, pairs: &[(&str, &str)]) -> String {
    format!("{url}?{}", String::from_utf8_lossy(&form(pairs)))
}

/// A body whose memory is wiped when it has been sent.
pub(crate) fn body(content: Zeroizing<Vec<u8>>) -> Body {
    Body::from(Bytes::from_owner(content))
}

/// A header that no log shows.
pub(crate) fn sensitive(text: &str) -> Result<HeaderValue, Error> {
    let refused = |_| Error::Config { key: "a token", cause: "it has characters that no header can hold".to_owned() };
    let mut value = HeaderValue::from_str(text).map_err(refused)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A short file, without the white space around its text.
pub(crate) async fn read_secret(path: &Path) -> Result<Zeroizing<String>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let content = Zeroizing::new(tokio::fs::read(path).await.map_err(failed)?);
    match std::str::from_utf8(&content) {
        Ok(text) if text.len() <= MAX_FILE && !text.trim().is_empty() => Ok(Zeroizing::new(text.trim().to_owned())),
        _ => Err(failed(std::io::Error::new(std::io::ErrorKind::InvalidData, "not a short text"))),
    }
}

/// Where a service is: an http or https URL without a slash at its end.
pub(crate) fn base_url(key: &'static str, text: &str) -> Result<String, Error> {
    let refused = |cause: &str| Error::Config { key, cause: cause.to_owned() };
    let url = reqwest::Url::parse(text).map_err(|e| refused(&e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(refused("it is neither http nor https"));
    }
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("it has more than scheme, host, port and path"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The part of a base URL that a request names as its host.
pub(crate) fn host(base: &str) -> &str {
    let rest = base.split_once("://").map_or(base, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Why an attempt brought no answer.
enum Failure {
    /// The service can't have seen the request.
    Untaken(String),
    /// It may have.
    Lost(String),
    TooLong,
}

impl Failure {
    fn from_client(error: reqwest::Error) -> Self {
        let untaken = error.is_connect();
        let cause = chain(&error.without_url());
        if untaken { Self::Untaken(cause) } else { Self::Lost(cause) }
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok(),
    }
}

/// Half the pause and a random part of the other half, so that replicas don't come back at the same moment.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    // Without randomness the pause is a little short, which nothing depends on.
    let _ = aws_lc_rs::rand::fill(&mut random);
    pause / 2 + pause / 2 * u32::from(random[0]) / 255
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
    text.chars().take(300).collect()
}

const CONNECT: Duration = Duration::from_secs(5);
const MAX_ATTEMPTS: u32 = 8;
/// A resource of 4 MiB as a JSON array of numbers is no longer.
const MAX_ANSWER: usize = 16 << 20;
const MAX_FILE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_checked_when_it_is_configured() {
        for (text, expected) in
            [("https://vault:8200/", "https://vault:8200"), ("http://[::1]:1/x", "http://[::1]:1/x")]
        {
            assert_eq!(base_url("k", text).unwrap(), expected);
        }
        assert_eq!(host("https://vault:8200/x"), "vault:8200");
        for bad in ["", "vault:8200", "ftp://v", "https://u:p@v", "https://v?x", "https://v#x"] {
            assert!(base_url("k", bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn only_a_request_that_was_not_taken_is_repeated_when_it_must_not_run_twice() {
        for (status, always, untaken) in
            [(200, false, false), (400, false, false), (429, true, true), (500, true, false), (503, true, true)]
        {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!((Repeat::Always.after_status(status), Repeat::Untaken.after_status(status)), (always, untaken));
        }
    }

    #[test]
    fn a_time_to_come_back_is_seconds_or_a_date() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            retry_after(&headers)
        };
        let in_an_hour = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(3600));
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert!(after(&in_an_hour).is_some_and(|wait| wait > Duration::from_secs(3500)));
        assert_eq!(after("Sat, 01 Jan 2000 00:00:00 GMT"), None);
        assert_eq!(after("soon"), None);
    }
}
